"""What stands in place of hints, against an environment of which all is known, and against the learner's play."""

import pytest
from doubles import REPO

from context import HINT_HEADING, NO_HINTS_YET
from engine.errors import BadInput
from environments.frozenlake.players import LakeLearner
from envs import make_pack, players
from evaluation.contexts import next_hints, others, parse
from rollout import play, run

WORDS = str(REPO / "tests" / "words.py")


def everything(text):
    """However long, it fits."""
    return True


def played(policy, packs, mode, written=None, fits=everything):
    """Rollouts with one mode in place of hints; `written` are the hints of each pack by their writer."""
    [context] = [context for context in parse(mode) if context.name == mode]
    hints = next_hints(context, packs, lambda writer, pack: written[writer][pack], fits)
    return run([play(pack, next_hint=hint) for pack, hint in zip(packs, hints, strict=True)], policy)


def hints_of(rollouts):
    return [[task.context for task in rollout.of("solve")[1:]] for rollout in rollouts]


def success(rollouts):
    """By position, in the mean."""
    return [sum(at) / len(rollouts) for at in zip(*([e.outcome for e in r.of("solve")] for r in rollouts), strict=True)]


def shown(task):
    """The hint as the prompt of a task has it."""
    return task.messages[0]["content"].split(HINT_HEADING + "\n", 1)[1]


@pytest.fixture(scope="module")
def words():
    """Packs, and the hints that each player wrote in them; "" stands for the learner's own."""
    packs = [make_pack(WORDS, seed, 4, "tiny") for seed in range(30)]
    written = {name: hints_of(run([play(pack) for pack in packs], player)) for name, player in players(WORDS).items()}
    return packs, written | {"": written["learner"]}


SUCCESS = {  # of a player that says the word if it has read it: at the first task, at the later ones
    ("learner", "own"): 1,
    ("learner", "none"): 0,
    ("learner", "transcript"): 1,
    ("learner", "shuffled"): 0,
    ("learner", "perfect"): 1,
    ("learner", "from=silent"): 0,
    ("learner", "frozen"): 1,
    ("silent", "own"): 0,
    ("silent", "none"): 0,
    ("silent", "transcript"): 1,
    ("silent", "perfect"): 1,
    ("silent", "from=learner"): 1,
    ("silent", "frozen=2"): 0,
}


@pytest.mark.parametrize("player, mode", SUCCESS, ids=map(" ".join, SUCCESS))
def test_a_player_that_does_what_it_reads(player, mode, words):
    packs, written = words
    rollouts = played(players(WORDS)[player], packs, mode, written)
    assert success(rollouts) == [0, *[SUCCESS[player, mode]] * 3]
    asked = {"own": 3, "frozen": 1, "frozen=2": 2}.get(mode, 0)
    assert {len(rollout.of("update")) for rollout in rollouts} == {asked}


def test_what_is_shuffled_belongs_to_another_secret(words):
    packs, _ = words
    packs = packs[:5] + packs[:5]  # each secret twice
    for i, other in enumerate(others(packs)):
        assert packs[i].tasks[0].shared_secret() != packs[other].tasks[0].shared_secret()
    assert others(packs)[4] == 5  # the next one in the circle,
    assert others([packs[0], packs[0], packs[1]]) == [2, 2, 0]  # but for those with the same
    with pytest.raises(BadInput, match="context='shuffled'"):
        others([packs[0], packs[0]])


def test_packs_without_a_secret_that_can_be_compared_are_shifted(words):
    class Hidden:
        def shared_secret(self):
            return None

    packs = [make_pack(WORDS, seed, 1, "tiny") for seed in range(3)]
    for pack in packs:
        pack.tasks[0] = Hidden()
    assert others(packs) == [1, 2, 0]


@pytest.mark.parametrize("env, level", [("frozenlake", "tiny"), ("alchemy", "train"), ("terminal", "train")])
def test_perfect_hints_are_those_that_the_learner_wrote_on_the_same_tasks(env, level):
    packs = [make_pack(env, seed, 3, level) for seed in range(5)]
    own = run([play(pack) for pack in packs], players(env)["learner"])
    rollouts = played(players(env)["random"], packs, "perfect", {"learner": hints_of(own)})
    for rollout, before in zip(rollouts, own, strict=True):
        texts = [update.messages[-1]["content"] for update in before.of("update")]  # the replies themselves
        assert all(shown(task) in text for task, text in zip(rollout.of("solve")[1:], texts, strict=True))
        assert shown(rollout.of("solve")[0]) == NO_HINTS_YET


def pieces(tasks):
    """What a transcript of these tasks consists of."""
    found = []
    for task in tasks:
        found += [f"Task {task.position + 1}"]
        for message in task.messages[1:]:
            found += [("You saw:" if message["role"] == "user" else "You replied:") + "\n" + message["content"]]
        found += [f"Reward: {task.reward:.3f}"]
    return found


@pytest.mark.parametrize("limit", [0, 12, 13, 300, 700, 10**6])
def test_a_transcript_is_what_happened_and_of_it_the_oldest_goes_first(limit):
    """The longest end of it, of whole messages, that fits: found by trying all."""
    packs = [make_pack("frozenlake", seed, 4, "tiny") for seed in range(5)]
    for rollout in played(LakeLearner(), packs, "transcript", fits=lambda text: len(text) <= limit):
        tasks = rollout.of("solve")
        assert shown(tasks[0]) == NO_HINTS_YET
        for j, task in enumerate(tasks[1:], start=1):
            parts = pieces(tasks[:j])
            ends = ["\n".join(parts[first:]) for first in range(len(parts))]
            assert shown(task) == next((end for end in ends if len(end) <= limit), NO_HINTS_YET)


def test_what_is_no_mode_ends_in_one_line():
    for text in ("all", "own,", "from=", "frozen=0", "frozen=x", "perfect=1", "own;none", ""):
        with pytest.raises(BadInput, match="context="):
            parse(text)


def test_own_hints_are_played_too_where_others_are_made_of_them():
    assert [context.name for context in parse("none, shuffled")] == ["own", "none", "shuffled"]
    assert [context.name for context in parse("none,shuffled,own")] == ["none", "shuffled", "own"]


@pytest.mark.parametrize("text", ["frozen,frozen=1", "own,none,own", "perfect,from=learner", "from=a,from=runs/a"])
def test_the_same_mode_twice_is_refused(text):
    with pytest.raises(BadInput, match="^context='.*': is the same as '.*', which is named before"):
        parse(text, {"a": "runs/a"})
