"""The tiny levels of alchemy and terminal and their players: exact lines, hostile replies, grades."""

import itertools
import math
from fractions import Fraction

import pytest
from doubles import same_in_other_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.alchemy.tiny import TINY_LEVELS as ALCHEMY
from environments.alchemy.tiny import TinyAlchemy, all_pairs
from environments.alchemy.tiny_players import read_tiny_alchemy
from environments.terminal.tiny import TINY_LEVELS as TERMINAL
from environments.terminal.tiny import TinyTerminal, grade_names
from environments.terminal.tiny_players import read_tiny_terminal
from envs import make_pack, players
from rollout import play, run

TASKS = {"alchemy": TinyAlchemy, "terminal": TinyTerminal}
READ = {"alchemy": read_tiny_alchemy, "terminal": read_tiny_terminal}
LEVELS = ("tiny", "tiny-hard")
GAMES = list(itertools.product(TASKS, LEVELS))


def rollouts_of(env, level, player, packs=1000, size=4):
    return run([play(make_pack(env, seed, size, level)) for seed in range(packs)], player)


# ---------------------------------------------------------------------------------------------------------
# Exact lines: what a player's chances are, followed through all that can happen


def alchemy_line(level, size=4):
    """A player who never forgets, and tries at random what is still possible. A state: how many recipes are known, how
    many pairs make nothing for certain. Targets are drawn evenly, a known one is made at once."""
    pairs, products, turns = math.comb(len(level.elements), 2), len(level.products), level.max_turns

    def task(state, turn=0):
        """state -> {(state after the task, solved): chance}, for a target that is unknown when the turn comes"""
        known, empty = state
        left = pairs - known - empty
        if turn == turns:
            return {(state, False): Fraction(1)}
        found = {((known + 1, empty), True): Fraction(1, left)}
        others, nothing = Fraction(products - known - 1, left), Fraction(left - (products - known), left)
        for after, chance in (((known + 1, empty), others), ((known, empty + 1), nothing)):
            if chance:
                for end, share in task(after, turn + 1).items():
                    found[end] = found.get(end, 0) + chance * share
        return found

    chances, line = {(0, 0): Fraction(1)}, []
    for _ in range(size):
        solved, after = Fraction(0), {}
        for state, chance in chances.items():
            known = Fraction(state[0], products)
            ends = [((state, True), known)]
            if known < 1:
                ends += [(end, (1 - known) * share) for end, share in task(state).items()]
            for (to, won), share in ends:
                solved += chance * share * won
                after[to] = after.get(to, 0) + chance * share
        chances = after
        line.append(float(solved))
    return line


def terminal_line(level, size=4):
    """The same for a state: how many names of each kind are still possible (1: known). Each turn tries a user and a
    tool, and shows of both whether they are right."""
    n, turns = level.choices, level.max_turns

    def tried(left):
        """One kind, one try: {(possible names left, right): chance}"""
        if left == 1:
            return {(1, True): Fraction(1)}
        right, wrong = Fraction(1, left), Fraction(left - 1, left)
        return {(1, True): right, (left - 1, False): wrong}

    def task(user, tool, turn=0):
        if turn == turns:
            return {(user, tool, False): Fraction(1)}
        found = {}
        for (u, accepted), p in tried(user).items():
            for (t, able), q in tried(tool).items():
                ends = {(u, t, True): Fraction(1)} if accepted and able else task(u, t, turn + 1)
                for end, share in ends.items():
                    found[end] = found.get(end, 0) + p * q * share
        return found

    chances, line = {(n, n, n): Fraction(1)}, []
    for _ in range(size):
        solved, after = Fraction(0), {}
        for (user, *tools), chance in chances.items():
            for kind in (0, 1):  # half of the errands need either tool
                for (u, t, won), share in task(user, tools[kind]).items():
                    left = tools.copy()
                    left[kind] = t
                    solved += chance * share / 2 * won
                    after[(u, *left)] = after.get((u, *left), 0) + chance * share / 2
        chances = after
        line.append(float(solved))
    return line


EXACT = {"alchemy": alchemy_line, "terminal": terminal_line}
SETTINGS = {"alchemy": ALCHEMY, "terminal": TERMINAL}


@pytest.mark.parametrize(("env", "level"), GAMES)
def test_learner_is_on_its_exact_line(env, level):
    line = EXACT[env](SETTINGS[env][level])
    assert line[0] <= 0.55 and line[3] - line[0] >= 0.3
    rollouts = rollouts_of(env, level, players(env)["learner"])
    for position, exact in enumerate(line):
        solved = sum(rollout.of("solve")[position].outcome for rollout in rollouts) / len(rollouts)
        assert abs(solved - exact) < 4 * math.sqrt(exact * (1 - exact) / len(rollouts))


def test_lines_by_hand():
    """Two of six pairs; two of three users and tools, one after the other: (2/3)^2."""
    assert alchemy_line(ALCHEMY["tiny"])[0] == pytest.approx(2 / 6)
    assert alchemy_line(ALCHEMY["tiny-hard"])[0] == pytest.approx(3 / 10)
    assert terminal_line(TERMINAL["tiny"])[0] == pytest.approx(4 / 9)
    assert terminal_line(TERMINAL["tiny-hard"])[0] == pytest.approx(1 / 4)


@pytest.mark.parametrize(("env", "level"), GAMES)
def test_random_and_informed_players_are_on_their_exact_lines(env, level):
    setting = SETTINGS[env][level]
    miss = 1 - 1 / (math.comb(len(setting.elements), 2) if env == "alchemy" else setting.choices**2)
    exact = 1 - miss**setting.max_turns
    solved = [e.outcome for r in rollouts_of(env, level, players(env)["random"]) for e in r.of("solve")]
    assert abs(sum(solved) / len(solved) - exact) < 4 * math.sqrt(exact * (1 - exact) / len(solved))
    for rollout in rollouts_of(env, level, players(env)["informed"], packs=100):
        assert [(e.outcome, len(e.replies)) for e in rollout.of("solve")] == [(1.0, 1)] * 4


# ---------------------------------------------------------------------------------------------------------
# Packs and tasks


def fingerprint(pack):
    return repr([[task.reset(), task.rules, task.max_turns, sorted(task.secret.items())] for task in pack.tasks])


def many_fingerprints():
    """Of packs over seeds and levels; its source also runs in other processes."""
    arguments = itertools.product(("alchemy", "terminal"), (0, 1, 123456), (3,), ("tiny", "tiny-hard"), (False, True))
    return "\n".join(fingerprint(make_pack(*each)) for each in arguments)


def test_same_arguments_give_the_same_pack_in_every_process():
    assert same_in_other_processes(many_fingerprints, fingerprint)


@pytest.mark.parametrize(("env", "level"), GAMES)
def test_a_pack_shares_its_secret_and_all_values_occur(env, level):
    packs = [make_pack(env, seed, 4, level) for seed in range(400)]
    assert all(
        type(task) is TASKS[env] and task.secret == pack.tasks[0].secret for pack in packs for task in pack.tasks
    )
    options = READ[env](next(play(packs[0])).messages).options
    for key, values in options.items():
        assert {pack.tasks[0].secret[key] for pack in packs} == set(values)
    asked = [getattr(task, "target", None) or task.errand for pack in packs for task in pack.tasks]
    shares = {name: asked.count(name) / len(asked) for name in asked}
    even = len(ALCHEMY[level].products) if env == "alchemy" else 4
    for name, share in shares.items():
        assert abs(share - (2 if name == "Delete" else 1) / even) < 0.05
    assert len(shares) == (even if env == "alchemy" else 3)


TRUE_STEPS = {
    "alchemy": lambda task: f"<answer>{task.secret[task.target]}</answer>",
    "terminal": lambda task: (
        f"<answer>{task.secret['delete' if task.errand == 'Delete' else 'copy']} notes.txt {task.secret['user']}@host"
        "</answer>"
    ),
}


@pytest.mark.parametrize(("env", "level"), GAMES)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 20), replies=st.lists(st.text(max_size=60) | st.sampled_from(["", "<answer>"]), max_size=3))
def test_any_reply_at_all_is_survived(env, level, seed, replies):
    [task] = make_pack(env, seed, 1, level).tasks
    task.reset()
    for text in replies:
        observation, done = task.step(f"<answer>{text}</answer>")
        assert 0 <= task.reward <= 1 and task.feedback == (task.feedback if done else "")
        assert "###" not in observation and len(observation) < 300
        if done:
            with pytest.raises(RuntimeError):
                task.step("")
            task.reset()
    task.reset()
    assert task.step(TRUE_STEPS[env](task))[1] and task.reward == 1


def test_alchemy_effects_by_hand():
    task = TinyAlchemy(
        {"ash": "air + fire", "dust": "earth + fire", "glass": "air + earth", "lava": "fire + water"},
        "ash",
        ALCHEMY["tiny"],
    )
    assert task.reset() == "Turn 1 of 2. Make ash: that is the target."
    assert task.step("<answer>fire + earth</answer>") == (
        "You made dust: earth + fire.\nTurn 2 of 2. Make ash: that is the target.",
        False,
    )
    assert task.step("<answer>air+water</answer>") == (
        "Nothing comes of air + water.\nYou ran out of turns before making the target.",
        True,
    )
    assert task.discovered == {("earth", "fire")}
    for odd in ("air + air", "air + gold", "ash + air"):
        task.reset()
        effect, done = task.step(f"<answer>{odd}</answer>")
        assert effect.startswith("Nothing happened") and not done and not task.broken_format
    task.reset()
    assert task.step("<answer>fire + air</answer>") == ("You made ash: air + fire.\nThat is the target.", True)
    assert task.reward == 1 and task.reset() and task.discovered == set() and task.reward == 0
    assert task.step("air + fire")[1] and task.broken_format and task.reward == 0


def test_terminal_effects_by_hand():
    task = TinyTerminal({"user": "bob", "copy": "scp", "delete": "trash"}, "Upload", TERMINAL["tiny"])
    assert task.reset() == "Upload notes.txt.\nTurn 1 of 2:"
    assert task.step("<answer>rsync notes.txt bob@host</answer>") == (
        "Accepted user: bob.\nThere is no tool rsync.\nTurn 2 of 2:",
        False,
    )
    assert task.step("<answer>trash notes.txt eve@host</answer>") == (
        "There is no user eve.\nThis is no tool to copy: trash.\nYou ran out of turns before the errand was done.",
        True,
    )
    task.reset()
    effect, done = task.step("<answer>scp other.txt bob@host</answer>")
    assert effect.startswith("Accepted user: bob.\nAble to copy: scp.\nThere is no file other.txt.") and not done
    assert task.step("<answer>scp  notes.txt bob@host</answer>")[0].endswith("The errand is done.") and task.reward == 1
    task.reset()
    assert task.step("<answer>scp notes.txt bob</answer>")[1] and task.broken_format and task.reward == 0


# ---------------------------------------------------------------------------------------------------------
# Grades


def test_alchemy_hints_are_graded_as_on_other_levels():
    task = make_pack("alchemy", 0, 1, "tiny").tasks[0]
    task.reset()
    (a, pair), (b, other), (c, third), _ = task.secret.items()
    wrong = next(each for each in all_pairs(ALCHEMY["tiny"].elements) if each not in task.secret.values())
    task.discovered = {tuple(pair.split(" + ")), tuple(other.split(" + "))}
    assert task.grade_hint(f"- {a}: {pair}\n- {b}: unknown\n- {c}: {wrong}", [task]) == {"kept": 0.5, "invented": 1.0}
    assert task.grade_hint(f"- nothing: {pair}\n- nothing: {other}", [task]) == {"kept": 0.0, "invented": 0.0}
    assert task.grade_hint(f"{pair} makes {a}; {c} is made from {third}", [task]) == {"kept": 0.5, "invented": 0.0}


NAMES_OF = {
    "- user: bob\n- copy: scp\n- delete: unknown": (2, 0),
    "- user: alice\n- copy: unknown\n- delete: trash": (1, 1),
    "Log in as bob. Use scp for copying, and trash for deleting": (3, 0),
    "bob works, alice does not": (1, 0),
    "not alice, not bob": (0, 0),
    "alice or bob": (0, 0),
    "Maybe bob?": (0, 0),
    "scp is missing but rsync works": (0, 1),
    "There is no tool scp.": (0, 0),
    "": (0, 0),
}


@pytest.mark.parametrize("hint", NAMES_OF)
def test_terminal_grades_by_hand(hint):
    right, wrong = NAMES_OF[hint]
    secret = {"user": "bob", "copy": "scp", "delete": "trash"}
    grades = grade_names(hint, secret, TERMINAL["tiny"].names())
    assert grades == pytest.approx({"right": right / 3, "wrong": wrong / 3, "unsaid": 1 - (right + wrong) / 3})
