"""rollout.py: the loop against expectations written by hand."""

import math
import random

import numpy as np
import pytest
import torch
from doubles import Chatter, Script, message, tokens

from context import HINT_HEADING, NO_HINT_AVAILABLE, NO_HINTS_YET, UPDATE_SYSTEM
from engine.errors import BadInput
from environments.frozenlake.players import LakeLearner
from environments.frozenlake.task import LAKE_LEVELS, FrozenLake, LakeMap
from envs import Pack, Task, make_pack, players
from record.files import write_text
from record.metrics import as_text
from rollout import Episode, Penalties, Reply, no_hints, play, run

# ---------------------------------------------------------------------------------------------------------
# One pack, by hand


def test_every_episode_of_a_pack_is_as_written_by_hand(tokenizer, chat):
    """Task 0 reaches the goal, task 1 breaks the format and its hint cannot be read, task 2 ends in a hole."""
    mapping = ("right", "down", "left", "up")
    lakes = [
        LakeMap(3, frozenset({(1, 1)}), (0, 0), (0, 2)),
        LakeMap(3, frozenset(), (2, 0), (0, 0)),
        LakeMap(3, frozenset({(1, 0)}), (0, 0), (1, 2)),
    ]
    tasks = [FrozenLake(lake, mapping, LAKE_LEVELS["tiny"]) for lake in lakes]
    rules = tasks[0].rules
    replies = [
        "Go right: <answer>Direction 1</answer>",
        "<answer>Direction 1</answer>",
        "Found one.\n### BEGIN HINTS\n- right: Direction 1\n### END HINTS",
        "<answer>Direction 3</answer>",
        "What now? ### é",
        "### BEGIN HINTS\n- left: Direction 3",
        "<answer>Direction 2</answer>",
    ]
    result = run([play(Pack("frozenlake", 7, 3, "tiny", False, tasks))], Script(chat, replies))[0]
    assert result.pack_seed == 7

    solve_0 = [
        message("system", rules, "", HINT_HEADING, "(no hints yet)"),
        message(
            "user",
            "You start at row 1, column 1.",
            "Turn 1 of 4, goal at row 1, column 3:",
            "P _ G\n_ O _\n_ _ _",
        ),
        message("assistant", replies[0]),
        message(
            "user",
            "You moved right with Direction 1: row 1, column 1 to row 1, column 2.",
            "Turn 2 of 4, goal at row 1, column 3:",
            "_ P G\n_ O _\n_ _ _",
        ),
        message("assistant", replies[1]),
        message(
            "user",
            "You moved right with Direction 1: row 1, column 2 to row 1, column 3.",
            "You reached the goal.",
        ),
    ]
    update_0 = [
        message("system", UPDATE_SYSTEM),
        message(
            "user",
            "### Hints you had",
            "(no hints yet)",
            "### Rules of the task",
            rules,
            "### What you saw",
            solve_0[1]["content"],
            "### What you replied",
            replies[0],
            "### What you saw",
            solve_0[3]["content"],
            "### What you replied",
            replies[1],
            "### What you saw",
            solve_0[5]["content"],
            "### How it ended",
            "You reached the goal.",
            "Reward: 0.950",
            "### Now write the hints for the next task",
        ),
        message("assistant", replies[2]),
    ]
    complaint = "Your reply did not have the form <answer>Direction N</answer>, N from 1 to 4."
    solve_1 = [
        message("system", rules, "", HINT_HEADING, "- right: Direction 1"),
        message(
            "user",
            "You start at row 3, column 1.",
            "Turn 1 of 4, goal at row 1, column 1:",
            "G _ _\n_ _ _\nP _ _",
        ),
        message("assistant", replies[3]),
        message(
            "user",
            "Nothing moved with Direction 3: still at row 3, column 1.",
            "Turn 2 of 4, goal at row 1, column 1:",
            "G _ _\n_ _ _\nP _ _",
        ),
        message("assistant", replies[4]),
        message("user", complaint),
    ]
    update_1 = [
        message("system", UPDATE_SYSTEM),
        message(
            "user",
            "### Hints you had",
            "- right: Direction 1",
            "### Rules of the task",
            rules,
            "### What you saw",
            solve_1[1]["content"],
            "### What you replied",
            replies[3],
            "### What you saw",
            solve_1[3]["content"],
            "### What you replied",
            "What now? # ## é",
            "### What you saw",
            complaint,
            "### How it ended",
            complaint,
            "Reward: 0.000",
            "### Now write the hints for the next task",
        ),
        message("assistant", replies[5]),
    ]
    solve_2 = [
        message("system", rules, "", HINT_HEADING, "(no hint available)"),
        message(
            "user",
            "You start at row 1, column 1.",
            "Turn 1 of 4, goal at row 2, column 3:",
            "P _ _\nO _ G\n_ _ _",
        ),
        message("assistant", replies[6]),
        message(
            "user",
            "You moved down with Direction 2: row 1, column 1 to row 2, column 1.",
            "You fell into a hole.",
        ),
    ]
    hint = "- right: Direction 1"
    expected = [  # kind, position, messages, context, outcome, reward, broken format
        ("solve", 0, solve_0, "(no hints yet)", 1.0, 0.95, False),
        ("update", 0, update_0, hint, 0.0, 0.0, False),
        ("solve", 1, solve_1, hint, 0.0, 0.0, True),
        ("update", 1, update_1, "(no hint available)", 0.0, -0.1, True),
        ("solve", 2, solve_2, "(no hint available)", 0.0, 0.0, False),
    ]
    replies = iter(replies)
    for e, (kind, position, messages, context, outcome, reward, broken) in zip(result.episodes, expected, strict=True):
        assert (e.kind, e.position, e.context, e.outcome, e.broken_format) == (kind, position, context, outcome, broken)
        assert e.messages == messages
        assert e.reward == pytest.approx(reward)
        opening = f"<|system|>{messages[0]['content']}<|end|><|user|>{messages[1]['content']}<|end|><|assistant|>"
        pieces = [(opening, False)]
        for k, turn in enumerate(messages[2:], 2):  # what follows the last reply is never read, so it is no token
            if turn["role"] == "assistant":
                pieces.append((turn["content"] + "<|end|>", True))
            elif k < len(messages) - 1:
                pieces.append((f"<|user|>{turn['content']}<|end|><|assistant|>", False))
        ids, mask, logps = tokens(tokenizer, pieces)
        assert tokenizer.decode(e.ids) == tokenizer.decode(ids)
        assert (e.ids, e.mask, e.logps) == (ids, mask, logps)
        assert e.n_sampled == sum(reply.n_tokens for reply in e.replies) > 0
        assert [reply.text for reply in e.replies] == [next(replies) for _ in e.replies]
    assert next(replies, None) is None


def test_contexts_are_those_of_the_protocol():
    assert (NO_HINTS_YET, NO_HINT_AVAILABLE) == ("(no hints yet)", "(no hint available)")


def test_penalty_of_a_hint_that_cannot_be_read_is_a_setting(chat):
    replies = ["nothing", "nothing", "nothing"]
    result = run([play(make_pack("frozenlake", 0, 2, "tiny"), Penalties(bad_hint=0.4))], Script(chat, replies))[0]
    assert [episode.reward for episode in result.episodes] == [0.0, -0.4, 0.0]


@pytest.mark.parametrize(
    ("penalties", "outcome", "lengths", "max_turns", "reward"),
    [
        (Penalties(), 1.0, [50], 4, 0.975),
        (Penalties(), 1.0, [50, 5000, 3, 3], 4, 0.9),
        (Penalties(), 1.0, [1_500_000, 10], 4, 0.925),  # 1 - 0.1 * ((0.5 + 0) / 2 + 2 / 4)
        (Penalties(0.1, 100, 200), 1.0, [50, 150, 300, 100], 8, 0.9125),  # 1 - 0.1 * ((0 + 0.5 + 1 + 0) / 4 + 4 / 8)
        (Penalties(0.2, 100, 200), 0.5, [200], 10, 0.28),  # 0.5 - 0.2 * (1 + 1 / 10)
        (Penalties(0.1, 100, 200), 1.0, [0, 0], 4, 0.95),  # a policy without tokens still takes turns
        (Penalties(1.0, 100, 200), 0.5, [200, 200], 2, 0.0),  # not below 0
        (Penalties(0.0, 100, 200), 0.7, [150, 500], 2, 0.7),  # off
        (Penalties(0.1, 100, 200), 0.0, [500, 500], 2, 0.0),
        (Penalties(0.1, 100, 200), -0.1, [500], 2, -0.1),
    ],
)
def test_length_penalty_by_hand(penalties, outcome, lengths, max_turns, reward):
    assert penalties.solve_reward(outcome, lengths, max_turns) == pytest.approx(reward, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Many packs at once


class Partial:
    """A player that answers only some of the waiting conversations at a time, in scrambled order."""

    def __init__(self, player, seed):
        self.player, self.rng, self.waiting, self.most = player, random.Random(seed), [], 0

    def reply(self, episodes):
        self.waiting += episodes
        self.most = max(self.most, len(self.waiting))
        chosen = self.rng.sample(self.waiting, self.rng.randint(1, len(self.waiting)))
        self.waiting = [episode for episode in self.waiting if episode not in chosen]
        return self.player.reply(chosen)


def alone(game, player):
    """One game played without `run`."""
    episode = next(game)
    while True:
        [(_, reply)] = player.reply([episode])
        try:
            episode = game.send(reply)
        except StopIteration as stop:
            return stop.value


def story(result):
    """All of a rollout that does not depend on tokens."""
    episodes = [(e.kind, e.position, e.messages, e.context, e.outcome, e.reward) for e in result.episodes]
    return result.pack_seed, episodes


SEEDS = [5, 3, 8, 0, 1, 2, 9, 7]


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_order_of_answers_and_number_at_once_change_nothing(at_once):
    packs = [make_pack("frozenlake", seed, 3, "tiny") for seed in SEEDS]
    expected = [story(alone(play(pack), LakeLearner())) for pack in packs]
    open_games, most_open = set(), [0]

    def watched(k, game):
        open_games.add(k)
        most_open.append(len(open_games))
        result = yield from game
        open_games.remove(k)
        return result

    policy = Partial(LakeLearner(), at_once)
    results = run([watched(k, play(pack.fresh())) for k, pack in enumerate(packs)], policy, at_once=at_once)
    assert [story(result) for result in results] == expected
    assert [result.pack_seed for result in results] == SEEDS
    assert policy.most == max(most_open) == min(at_once, len(SEEDS))


def test_no_games_need_no_policy():
    assert run([], None) == []


def test_episodes_alternate_and_pass_hints_on():
    result = run([play(make_pack("frozenlake", 1, 3, "tiny"))], LakeLearner())[0]
    kinds = [(episode.kind, episode.position) for episode in result.episodes]
    assert kinds == [("solve", 0), ("update", 0), ("solve", 1), ("update", 1), ("solve", 2)]
    written = [update.context for update in result.of("update")]
    assert [solved.context for solved in result.of("solve")] == [NO_HINTS_YET, *written]
    assert all(solved.messages[0]["content"].endswith("\n" + solved.context) for solved in result.of("solve"))


def test_without_hints_there_are_no_updates_and_every_task_sees_the_initial_context():
    result = run([play(make_pack("frozenlake", 1, 3, "tiny"), next_hint=no_hints)], LakeLearner())[0]
    assert [(episode.kind, episode.position) for episode in result.episodes] == [
        ("solve", 0),
        ("solve", 1),
        ("solve", 2),
    ]
    for episode in result.episodes:
        assert episode.context == NO_HINTS_YET
        assert episode.messages[0]["content"].endswith(f"\n{NO_HINTS_YET}")


def test_pack_of_one_task_is_one_episode():
    result = run([play(make_pack("frozenlake", 1, 1, "tiny"))], LakeLearner())[0]
    assert [(episode.kind, episode.context) for episode in result.episodes] == [("solve", NO_HINTS_YET)]


def test_ralph_loop_starts_the_same_task_again_with_new_hints():
    pack = make_pack("frozenlake", 1, 3, "tiny", ralph=True)
    solved = run([play(pack)], LakeLearner())[0].of("solve")
    assert len({episode.messages[1]["content"] for episode in solved}) == 1
    assert "Turn 1 of 4" in solved[0].messages[1]["content"]
    assert solved[0].context == NO_HINTS_YET != solved[1].context
    others = run([play(make_pack("frozenlake", 1, 3, "tiny"))], LakeLearner())[0].of("solve")
    assert len({episode.messages[1]["content"] for episode in others}) == 3


# ---------------------------------------------------------------------------------------------------------
# What an environment may do


def test_a_pack_that_is_played_stays_as_it_was(chat):
    """Two games of one pack, move by move in turn, are each like a game of it alone; hand-made packs as well."""
    for pack in (make_pack("gridnav", 3, 3), make_pack("frozenlake", 3, 3, "tiny", ralph=True)):
        before = [vars(task).copy() for task in pack.tasks]
        player = LEARNERS[pack.env]
        alone_first = story(alone(play(make_pack(pack.env, 3, 3, pack.level, pack.ralph)), player))
        for results in (run([play(pack), play(pack)], player), run([play(pack)], player)):
            assert [story(result) for result in results] == [alone_first] * len(results)
        assert [vars(task) for task in pack.tasks] == before
    counting = Pack("counting", 0, 2, "train", False, [Counting(), Counting()])
    for _ in range(2):
        result = run([play(counting)], Script(chat, ["a", "b", "c"]))[0]
        assert [episode.task.heard for episode in result.of("solve")] == [["a"], ["c"]]


LEARNERS = {"gridnav": players("gridnav")["learner"], "frozenlake": LakeLearner()}


class Counting(Chatter):
    """A careless task, which keeps what playing changes from one game to the next."""

    def __init__(self):
        super().__init__(["say"])
        self.heard = []

    def step(self, reply):
        self.heard.append(reply)
        return super().step(reply)


def rewarding(reward):
    task = Chatter(["say"])
    task.reward = reward
    return Pack("rewarding", 5, 2, "train", False, [Chatter(["say"]), task])


@pytest.mark.parametrize("reward", [1, True, 0, np.float32(0.5), torch.tensor(0.25)])
def test_rewards_are_numbers_of_any_kind(chat, reward):
    solved = run([play(rewarding(reward))], Script(chat, ["a", "b", "c"]))[0].of("solve")
    assert type(solved[1].outcome) is float and solved[1].outcome == float(reward)
    assert type(solved[1].reward) is float


@pytest.mark.parametrize(
    "reward",
    [math.nan, math.inf, -math.inf, None, "much", 1j, 10**400, np.zeros((9, 9))],
    ids=lambda reward: repr(reward)[:8],
)
def test_a_reward_that_is_no_finite_number_is_one_line(chat, reward):
    with pytest.raises(BadInput, match=r"^env='rewarding', level='train': position 1 of pack 5: .*finite") as error:
        run([play(rewarding(reward))], Script(chat, ["a", "b", "c"]))
    assert "\n" not in str(error.value)


class Garbled(Task):
    """Every text of it has half of a character."""

    rules, max_turns = "rules \ud800", 2

    def reset(self):
        self.turn = 0
        return "start \udfff ###"

    def step(self, reply):
        self.turn, self.feedback, self.heard = self.turn + 1, "feedback \udc80", reply
        return f"observation \ud83d {self.turn}", self.turn == 2


class Mumbler:
    def reply(self, episodes):
        return [(e, Reply("reply \ud800\n### BEGIN HINTS\nhint \udfff\n### END HINTS")) for e in episodes]


def test_lone_surrogates_end_no_run(chat, tmp_path):
    result = run([play(Pack("garbled", 0, 2, "train", False, [Garbled(), Garbled()]))], Mumbler())[0]
    solved, update, _ = result.episodes
    assert solved.messages[0]["content"].startswith("rules ?\n")
    assert [m["content"] for m in solved.messages[1:4:2]] == ["start ? # ##", "observation ? 1"]
    assert "hint ?" in update.context and not update.broken_format
    for text in ("rules ?", "start ?", "observation ? 2", "feedback ?", "reply ?"):
        assert text in update.messages[1]["content"]
    for episode in result.episodes:
        "".join(each["content"] for each in episode.messages).encode()
        chat.open_turn(Episode(episode.kind, 0, episode.messages[:2], ""))
    write_text(tmp_path / "sample.txt", as_text(result))
    assert (tmp_path / "sample.txt").read_text() == as_text(result)
