"""The players of FrozenLake: the Bayes player against brute force, and what the players write."""

import dataclasses
import itertools
import random
import re

import pytest

from context import NO_HINTS_YET, parse_update, solve_system, update_messages
from environments.frozenlake.players import (
    ACTIONS,
    ALL_MAPPINGS,
    LakeInformed,
    LakeLearner,
    LakeRandom,
    Planner,
    read_lake,
    success_count,
)
from environments.frozenlake.task import LAKE_LEVELS, FrozenLake, LakeMap
from envs import Pack, make_pack, parse_answer
from rollout import play, run

STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
MAPPINGS = list(itertools.permutations(STEPS))


# ---------------------------------------------------------------------------------------------------------
# Brute force, with its own moves and no belief but "the mappings that fit all that happened"


def walk(lake, cell, direction):
    row, col = cell[0] + STEPS[direction][0], cell[1] + STEPS[direction][1]
    return (row, col) if row in range(lake.size) and col in range(lake.size) else cell


def fits(lake, mapping, history):
    """Whether the mapping explains a history of (action, cell after it) from the start."""
    cell = lake.start
    for action, after in history:
        cell = walk(lake, cell, mapping[action])
        if cell != after:
            return False
    return True


def optimum(lake, prior, turns, history=()):
    """For how many mappings of the prior the best policy reaches the goal, by trying every action in every history."""
    mappings = [mapping for mapping in prior if fits(lake, mapping, history)]
    cell = history[-1][1] if history else lake.start
    if cell == lake.goal:
        return len(mappings)
    if cell in lake.holes or turns == 0:
        return 0
    values = []
    for action in range(4):
        cells = {walk(lake, cell, mapping[action]) for mapping in mappings}
        values.append(sum(optimum(lake, prior, turns - 1, (*history, (action, after))) for after in cells))
    return max(values)


def random_lake(rng, size):
    cells = list(itertools.product(range(size), repeat=2))
    start, goal = rng.sample(cells, 2)
    return LakeMap(size, frozenset(cell for cell in cells if rng.random() < 0.25) - {start, goal}, start, goal)


@pytest.mark.parametrize(
    ("size", "turns", "lakes"), [(2, 1, 10), (2, 2, 10), (2, 3, 10), (2, 4, 3), (3, 2, 15), (3, 3, 10)]
)
def test_success_count_is_the_optimum_over_all_policies(size, turns, lakes):
    """From no knowledge, and from a random set of possible mappings."""
    rng = random.Random(f"{size}/{turns}")
    counts = set()
    for _ in range(lakes):
        lake = random_lake(rng, size)
        for prior in (MAPPINGS, rng.sample(MAPPINGS, rng.randint(1, 12))):
            want = optimum(lake, prior, turns)
            assert success_count(lake, lake.start, tuple(prior), turns) == want
            counts.add(want)
    assert len(counts) > 2  # not all hopeless or certain


def test_success_count_on_3x3_with_four_turns():
    for lake in (LakeMap(3, frozenset({(1, 1)}), (0, 0), (0, 2)), LakeMap(3, frozenset(), (2, 0), (1, 1))):
        want = optimum(lake, MAPPINGS, 4)
        assert 0 < want < 24
        assert success_count(lake, lake.start, ALL_MAPPINGS, 4) == want


def test_success_count_by_hand():
    """The goal is next to the start: one guess in four is right; with two turns two guesses, if none is fatal."""
    lake = LakeMap(2, frozenset(), (0, 0), (0, 1))
    assert success_count(lake, lake.start, ALL_MAPPINGS, 1) == 6
    line = LakeMap(3, frozenset({(0, 1), (2, 1), (1, 0)}), (1, 1), (1, 2))  # every wrong guess is fatal
    assert [success_count(line, line.start, ALL_MAPPINGS, turns) for turns in (1, 2, 8)] == [6, 6, 6]
    known = tuple(mapping for mapping in ALL_MAPPINGS if mapping[2] == "right")
    assert success_count(line, line.start, known, 1) == len(known) == 6


# ---------------------------------------------------------------------------------------------------------
# The Bayes player in the loop


def hand_pack(lakes, mapping, level="train", **changes):
    """A pack of tasks with chosen maps and a chosen mapping."""
    settings = dataclasses.replace(LAKE_LEVELS[level], **changes)
    return Pack("frozenlake", 0, len(lakes), level, False, [FrozenLake(lake, mapping, settings) for lake in lakes])


def history_of(task, episode):
    """What happened in a solved task as (action, cell after it), from its replies and its mapping."""
    cell, history = task.lake.start, []
    for reply in episode.replies:
        action = int(parse_answer(reply.text)[-1]) - 1
        cell = walk(task.lake, cell, task.mapping[action])
        history.append((action, cell))
    return history


PLAYED = [
    (LakeMap(3, frozenset({(1, 1)}), (0, 0), (0, 2)), "tiny", 4),
    (LakeMap(3, frozenset(), (2, 0), (1, 1)), "train", 3),
    (LakeMap(4, frozenset({(0, 2), (1, 0), (2, 2)}), (0, 0), (2, 1)), "train", 6),
    (LakeMap(4, frozenset({(1, 1), (2, 3)}), (3, 3), (1, 2)), "train", 8),
]


@pytest.mark.parametrize(("lake", "level", "turns"), PLAYED)
def test_bayes_player_reaches_the_optimal_success_rate(lake, level, turns):
    packs = [hand_pack([lake], mapping, level, max_turns=turns) for mapping in MAPPINGS]
    rollouts = run(map(play, packs), LakeLearner())
    won = sum(rollout.episodes[0].outcome for rollout in rollouts)
    assert won == success_count(lake, lake.start, ALL_MAPPINGS, turns)
    assert 0 < won <= 24


def test_bayes_player_is_optimal_in_the_second_task_given_the_first():
    first, second = LakeMap(3, frozenset({(1, 1)}), (0, 0), (0, 2)), LakeMap(3, frozenset({(0, 1)}), (0, 0), (1, 2))
    packs = [hand_pack([first, second], mapping, max_turns=3) for mapping in MAPPINGS]
    rollouts = run(map(play, packs), LakeLearner())
    groups = {}  # history of the first task -> the mappings that have it
    for pack, rollout in zip(packs, rollouts, strict=True):
        groups.setdefault(tuple(history_of(pack.tasks[0], rollout.episodes[0])), []).append(pack.tasks[0].mapping)
    won = sum(rollout.episodes[2].outcome for rollout in rollouts)
    assert won == sum(optimum(second, mappings, 3) for mappings in groups.values())
    assert won > optimum(second, MAPPINGS, 3)  # the hint helped


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_bayes_hint_carries_the_exact_belief(level):
    """Before the hint, in the hint, and by brute force over all that happened in the pack so far."""
    player, sizes = LakeLearner(), set()
    packs = [make_pack("frozenlake", seed, 3, level) for seed in range(6 if level == "hard" else 25)]
    for pack, rollout in zip(packs, run(map(play, packs), player), strict=True):
        want = MAPPINGS
        for task, solved, update, after in zip(
            pack.tasks, rollout.of("solve"), rollout.of("update"), rollout.of("solve")[1:], strict=False
        ):
            history = history_of(task, solved)
            want = [mapping for mapping in want if fits(task.lake, mapping, history)]
            assert task.mapping in want
            before = player.belief(update.messages[:2], read_lake(update.messages[:2]))
            read = player.belief(after.messages[:2], read_lake(after.messages[:2]))
            assert set(before) == set(read) == set(want)
            sizes.add(len(want))
    assert len(sizes) > 1


def bayes_line(way, names):
    return f"- {way}: {', '.join(sorted(names)) if len(names) < 4 else 'unknown'}"


def test_bayes_hint_is_exact_for_any_facts_per_direction():
    """A hint says of each direction that it is one of some actions; here they are random, and hold the true one."""
    rng, player = random.Random(3), LakeLearner()
    rules = hand_pack([PLAYED[0][0]], MAPPINGS[0]).tasks[0].rules
    scene = "Turn 1 of 8, goal at row 1, column 2:\nP G _\n_ _ _\n_ _ _"
    for _ in range(60):
        truth = rng.choice(MAPPINGS)
        facts = {way: {ACTIONS[truth.index(way)], *rng.sample(ACTIONS, rng.randint(0, 3))} for way in STEPS}
        want = {
            mapping
            for mapping in MAPPINGS
            if all(ACTIONS[mapping.index(way)] in actions for way, actions in facts.items())
        }
        hint = "\n".join(bayes_line(way, actions) for way, actions in facts.items())
        transcript = [{"role": "system", "content": rules}, {"role": "user", "content": scene}]
        messages = update_messages(hint, transcript, 0.0, "over")
        assert set(player.belief(messages, read_lake(messages))) == want
        written, readable = parse_update(player.hint(messages))
        assert readable
        possible = {way: {ACTIONS[mapping.index(way)] for mapping in want} for way in STEPS}
        assert written == "\n".join(bayes_line(way, actions) for way, actions in possible.items())
        messages = [
            {"role": "system", "content": solve_system(rules, written)},
            {"role": "user", "content": scene},
        ]
        assert set(player.belief(messages, read_lake(messages))) == want


def test_bayes_player_reads_and_forgets_what_the_planner_writes():
    """The two write the same form. Of a hint that no mapping fits nothing is handed down."""
    player, rules = LakeLearner(), hand_pack([PLAYED[0][0]], MAPPINGS[0]).tasks[0].rules
    scene = {"role": "user", "content": "Turn 1 of 8, goal at row 1, column 2:\nP G _\n_ _ _\n_ _ _"}
    hint = "- up: Direction 2\n- down: unknown\n- left: {}\n- right: unknown"
    for left, count in (("unknown", 6), ("Direction 4", 2), ("Direction 2", 0)):
        messages = update_messages(hint.format(left), [{"role": "system", "content": rules}, scene], 0.0, "over")
        belief = player.belief(messages, read_lake(messages))
        assert len(belief) == count
        assert all(m[1] == "up" and (left == "unknown" or m[3] == "left") for m in belief)
    assert parse_update(player.hint(messages))[0] == "\n".join(f"- {way}: unknown" for way in STEPS)


# ---------------------------------------------------------------------------------------------------------
# Reading a conversation


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_read_lake_sees_the_map_the_cell_and_the_turns_left(level):
    rng = random.Random(level)
    for seed in range(15):
        task = make_pack("frozenlake", seed, 1, level).tasks[0]
        messages = [{"role": "system", "content": solve_system(task.rules, NO_HINTS_YET)}]
        messages.append({"role": "user", "content": task.reset()})
        done, moves = False, []
        while not done:
            view = read_lake(messages)
            assert view.lake == LakeMap(task.lake.size, task.lake.holes, task.cell, task.lake.goal)
            assert view.turns_left == task.max_turns - task.turn
            assert len(view.effects) == len(moves)
            for action, names in view.effects:
                assert task.mapping[ACTIONS.index(action)] in names
            moves.append(rng.choice(ACTIONS))
            observation, done = task.step(f"<answer>{moves[-1]}</answer>")
            lie = (
                "You moved with Direction 1: row 1, column 1 to row 1, column 2.\nTurn 1 of 9, goal at row 1, column 1:"
            )
            messages.append({"role": "assistant", "content": lie + "\nP _"})  # what the player says is no evidence
            messages.append({"role": "user", "content": observation})


# ---------------------------------------------------------------------------------------------------------
# The other players


def play_packs(player, seeds, size=4, level="train"):
    packs = [make_pack("frozenlake", seed, size, level) for seed in seeds]
    return packs, run(map(play, packs), player)


PLAYERS = {
    "random": LakeRandom,
    "bayes": lambda seed: LakeLearner(),
    "planner": Planner,
    "sloppy planner": lambda seed: Planner(seed, plan=0.5, recall=0.5, explore=0.5, write=0.5, wrong=0.5),
}


@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("level", ["tiny", "train"])
def test_players_are_well_formed(name, level):
    _, rollouts = play_packs(PLAYERS[name](0), range(10), level=level)
    for rollout in rollouts:
        assert [episode.kind for episode in rollout.episodes] == ["solve", "update"] * 3 + ["solve"]
        assert not any(episode.broken_format for episode in rollout.episodes)


@pytest.mark.parametrize("name", PLAYERS)
def test_players_follow_their_seed(name):
    def replies(seed):
        _, rollouts = play_packs(PLAYERS[name](seed), range(5))
        return [[reply.text for reply in episode.replies] for rollout in rollouts for episode in rollout.episodes]

    assert replies(1) == replies(1)
    assert (replies(1) != replies(2)) == (name != "bayes")


def test_random_player_chooses_all_actions_evenly():
    player = LakeRandom(0)
    actions = [parse_answer(player.act([])) for _ in range(2000)]
    assert set(actions) == set(ACTIONS)
    assert all(abs(actions.count(action) / 2000 - 0.25) < 0.05 for action in ACTIONS)


ENTRY = re.compile(r"- (up|down|left|right): (unknown|Direction [1-4])")


def entries(update):
    """The lines of a planner's hint as direction -> action or "unknown"."""
    matches = [ENTRY.fullmatch(line) for line in update.context.split("\n")]
    assert all(matches) and [match[1] for match in matches] == list(STEPS)
    return {match[1]: match[2] for match in matches}


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_planner_hints_are_right_complete_and_kept(level):
    """An entry is the true action; all that a move showed is in the hint; nothing known is forgotten."""
    packs, rollouts = play_packs(Planner(0), range(40), level=level)
    n_known = []
    for pack, rollout in zip(packs, rollouts, strict=True):
        moved = set()
        for task, solved, update in zip(pack.tasks, rollout.of("solve"), rollout.of("update"), strict=False):
            cell = task.lake.start
            for action, after in history_of(task, solved):
                if after != cell:
                    moved.add(task.mapping[action])
                cell = after
            known = {way: action for way, action in entries(update).items() if action != "unknown"}
            assert all(action == f"Direction {task.mapping.index(way) + 1}" for way, action in known.items())
            assert moved <= set(known)
            n_known.append(len(known))
    assert min(n_known) < 2 and max(n_known) == 4


def test_planner_with_full_hints_walks_a_shortest_path():
    rng = random.Random(4)
    for seed in range(20):
        lake = make_pack("frozenlake", seed, 1, "hard").tasks[0].lake
        task = hand_pack([lake], rng.choice(MAPPINGS), "hard").tasks[0]
        hint = "\n".join(f"- {way}: Direction {task.mapping.index(way) + 1}" for way in STEPS)
        messages = [{"role": "system", "content": solve_system(task.rules, hint)}]
        messages.append({"role": "user", "content": task.reset()})
        done, player = False, Planner(seed)
        while not done:
            observation, done = task.step(player.act(messages))
            messages.append({"role": "user", "content": observation})
        assert task.reward == 1 and task.turn == lake.distance()


def test_planner_says_which_way_it_goes():
    packs, rollouts = play_packs(Planner(1), range(20))
    said = 0
    for pack, rollout in zip(packs, rollouts, strict=True):
        for task, solved in zip(pack.tasks, rollout.of("solve"), strict=True):
            for reply in solved.replies:
                if match := re.fullmatch(r"I know (\w+): Direction (\d)\n<answer>Direction \2</answer>", reply.text):
                    assert task.mapping[int(match[2]) - 1] == match[1]
                    said += 1
    assert said > 50


def test_planner_knobs():
    """Nothing is written at write=0; entries are random at wrong=1; a careless planner wins less often."""
    _, rollouts = play_packs(Planner(0, write=0.0), range(10))
    assert all(set(entries(u).values()) == {"unknown"} for rollout in rollouts for u in rollout.of("update"))
    packs, rollouts = play_packs(Planner(0, wrong=1.0), range(10))
    written = [
        (way, action, pack.tasks[0].mapping)
        for pack, rollout in zip(packs, rollouts, strict=True)
        for update in rollout.of("update")
        for way, action in entries(update).items()
    ]
    right = [action == f"Direction {mapping.index(way) + 1}" for way, action, mapping in written]
    assert all(action != "unknown" for _, action, _ in written)
    assert 0.1 < sum(right) / len(right) < 0.4

    def success(player):
        return sum(solved.outcome for rollout in play_packs(player, range(30))[1] for solved in rollout.of("solve"))

    clean = success(Planner(0))
    assert success(Planner(0, plan=0.0)) < clean and success(Planner(0, recall=0.0)) < clean
    assert success(LakeRandom(0)) < clean


@pytest.mark.parametrize("level", LAKE_LEVELS)
def test_informed_player_always_reaches_the_goal_on_a_shortest_path(level):
    packs, rollouts = play_packs(LakeInformed(0), range(60), level=level)
    for pack, rollout in zip(packs, rollouts, strict=True):
        for task, episode in zip(pack.tasks, rollout.of("solve"), strict=True):
            assert (episode.outcome, len(episode.replies)) == (1.0, task.lake.distance())


def test_spelled_out_thoughts_change_the_wording_only_and_are_true():
    packs, brief = play_packs(Planner(5), range(20))
    _, spelled = play_packs(Planner(5, spell_out=True), range(20))
    seen, told = 0, set()
    for pack, short, long in zip(packs, brief, spelled, strict=True):
        tasks = iter(pack.tasks)
        for one, other in zip(short.episodes, long.episodes, strict=True):
            assert (one.reward, one.kind) == (other.reward, other.kind)
            if one.kind == "update":
                assert one.context == other.context
                continue
            task = next(tasks)
            task.reset()
            for reply, thought in zip(one.replies, other.replies, strict=True):
                places, _, rest = thought.text.partition("\n")
                assert rest == reply.text
                (row, col), (to_row, to_col) = task.cell, task.lake.goal
                down, right = "up same down".split()[(to_row > row) - (to_row < row) + 1], to_col - col
                across = "same" if not right else "right" if right > 0 else "left"
                seen_as = f"Row {row + 1} to {to_row + 1}: {down}. Column {col + 1} to {to_col + 1}: {across}. Good: "
                assert places.startswith(seen_as)
                for recalled in places.partition("Good: ")[2].removesuffix(".").split(", "):
                    way, action = recalled.split(" is ")
                    assert action == "unknown" or task.mapping[int(action[-1]) - 1] == way
                    if rest.startswith(f"I know {way}:"):
                        assert rest.endswith(f"<answer>{action}</answer>")
                    told |= {action}
                    after = dataclasses.replace(task.lake, start=task.lake.move(task.cell, way)).distance()
                    assert after == dataclasses.replace(task.lake, start=task.cell).distance() - 1
                    seen += 1
                task.step(reply.text)
    assert seen > 100 and told == {"unknown", "Direction 1", "Direction 2", "Direction 3", "Direction 4"}
