"""The numbers of an evaluation: bootstrap intervals, paired differences, what is counted by position."""

import random
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from context import BEGIN, END
from engine.errors import BadInput
from environments.frozenlake.players import LakeLearner
from envs import Task, make_pack
from evaluation.report import compared, explained
from evaluation.statistics import averaged, combination, details, difference, game, grades, interval, summarise
from evaluation.tables import signed, with_interval
from rollout import Reply, no_hints, play, run


def games(successes):
    """Games of which only the successes [N][S] matter."""
    counts = {"broken_format": 0, "episodes": 1, "truncated": 0, "replies": 1}
    return [{"pack": pack, "success": row, "reward": row, **counts} for pack, row in enumerate(successes)]


def coins(n, size, seed, chance=0.5):
    rng = random.Random(seed)
    return [[float(rng.random() < chance) for _ in range(size)] for _ in range(n)]


@pytest.mark.parametrize("n, chance", [(50, 0.5), (200, 0.9), (500, 0.2)])
def test_intervals_are_those_of_scipy_s_bootstrap(n, chance):
    """But for the draws: both ends within a tenth of the interval's width."""
    values = coins(n, 3, seed=n, chance=chance)
    means, lows, highs = interval(torch.tensor(values))
    for column, mean, low, high in zip(zip(*values, strict=True), means, lows, highs, strict=True):
        found = stats.bootstrap(
            (np.array(column),), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        assert mean == pytest.approx(statistics.mean(column), abs=1e-4)
        width = found.high - found.low
        assert low == pytest.approx(found.low, abs=0.1 * width) and high == pytest.approx(found.high, abs=0.1 * width)


def test_paired_intervals_are_those_of_scipy_s_paired_bootstrap():
    first, second = coins(300, 1, seed=1), coins(300, 1, seed=2, chance=0.7)
    ours = difference(games(first), games(second))
    columns = (np.array(second)[:, 0], np.array(first)[:, 0])
    found = stats.bootstrap(
        columns,
        lambda a, b: np.mean(a) - np.mean(b),
        paired=True,
        vectorized=False,
        n_resamples=3000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = found.high - found.low
    assert ours["difference"][0] == pytest.approx(np.mean(columns[0]) - np.mean(columns[1]), abs=1e-4)
    assert ours["difference_low"][0] == pytest.approx(found.low, abs=0.1 * width)
    assert ours["difference_high"][0] == pytest.approx(found.high, abs=0.1 * width)


def test_what_two_policies_have_in_common_falls_out_of_their_difference():
    """Packs are as hard for one as for the other, and the second has a tenth more everywhere: that is certain."""
    hard = [[random.Random(k).random() / 2] * 2 for k in range(100)]
    better = [[x + 0.1 for x in row] for row in hard]
    found = difference(games(hard), games(better))
    for key in ("difference", "difference_low", "difference_high"):
        assert found[key] == pytest.approx([0.1] * 3, abs=1e-4)
    alone = summarise("", games(hard))
    assert alone["success_high"][0] - alone["success_low"][0] > 0.04


def test_the_interval_of_a_difference_contains_the_truth_as_often_as_it_says():
    """Of pairs that differ by 0.2 in the mean: in 95 % of 200 experiments, give or take."""
    hits = 0
    for k in range(200):
        rng = random.Random(k)
        first = [[rng.gauss(0, 1)] for _ in range(60)]
        second = [[row[0] + rng.gauss(0.2, 0.5)] for row in first]
        found = difference(games(first), games(second))
        hits += found["difference_low"][0] <= 0.2 <= found["difference_high"][0]
    assert 0.89 <= hits / 200 <= 0.99


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_last_of_a_combination_is_the_mean_over_positions(n, size, seed):
    a, b, c = (coins(n, size, seed + k) for k in range(3))
    found = combination([games(a), games(b)], [games(c)])["difference"]
    by_hand = [statistics.mean(a[i][j] + b[i][j] - c[i][j] for i in range(n)) for j in range(size)]
    assert found == pytest.approx([*by_hand, statistics.mean(by_hand)], abs=2e-4)


def test_seeds_are_merged_pack_by_pack():
    merged = averaged([games([[1.0, 0.0], [1.0, 1.0]]), games([[0.0, 0.0], [1.0, 0.0]])])
    assert [each["success"] for each in merged] == [[0.5, 0.0], [1.0, 0.5]]
    assert [each["episodes"] for each in merged] == [2, 2]


def ralph_loops(packs, copies, seed):
    """Games of Ralph loops over every task: those of one pack succeed together more often than not."""
    rng = random.Random(seed)
    found = []
    for pack in range(packs):
        chance = rng.random()
        rows = [[float(rng.random() < chance) for _ in range(2)] for _ in range(copies)]
        found += [game | {"pack": pack} for game in games(rows)]
    return found


def cluster_bootstrap(values, packs):
    """Ends of the 95 % interval of the mean of values [N, S] when whole packs are drawn, with all of their games."""
    values, packs = np.array(values), np.array(packs)
    rng, names = np.random.default_rng(0), np.unique(packs)
    clusters = [values[packs == name] for name in names]
    means = [
        np.concatenate([clusters[k] for k in rng.integers(0, len(names), len(names))]).mean(axis=0) for _ in range(4000)
    ]
    return np.quantile(means, [0.025, 0.975], axis=0)


def test_loops_over_the_tasks_of_one_pack_are_no_independent_samples():
    """Against a bootstrap of clusters; one of games would be much too sure of itself."""
    first, second = ralph_loops(60, 8, seed=1), ralph_loops(60, 8, seed=2)
    packs = [game["pack"] for game in first]
    record, found = summarise("", first), difference(first, second)
    assert record["packs"] == 60
    low, high = cluster_bootstrap([game["success"] for game in first], packs)
    pairs = [np.array(b["success"]) - np.array(a["success"]) for a, b in zip(first, second, strict=True)]
    low_pair, high_pair = cluster_bootstrap(pairs, packs)
    _, naive_low, naive_high = interval(torch.tensor([game["success"] for game in first]))
    for j in range(2):
        width = high[j] - low[j]
        assert naive_high[j] - naive_low[j] < 0.7 * width
        assert record["success_low"][j] == pytest.approx(low[j], abs=0.1 * width)
        assert record["success_high"][j] == pytest.approx(high[j], abs=0.1 * width)
        width = high_pair[j] - low_pair[j]
        assert found["difference_low"][j] == pytest.approx(low_pair[j], abs=0.1 * width)
        assert found["difference_high"][j] == pytest.approx(high_pair[j], abs=0.1 * width)
        assert record["success"][j] == pytest.approx(np.mean([game["success"][j] for game in first]), abs=1e-4)
    merged = averaged([first, second])
    assert summarise("", merged)["packs"] == 60


def test_a_single_pack_has_no_intervals():
    found = difference(games([[0.0, 1.0]]), games([[1.0, 1.0]]))
    assert found == {"difference": [1, 0, 0.5], "difference_low": [None] * 3, "difference_high": [None] * 3}
    assert signed(found, 0) == "+1.00"
    one, two = summarise("", games([[1.0]])), summarise("", games([[1.0], [1.0]]))
    assert with_interval(one, "success", 0) == "1.00" and with_interval(two, "success", 0) == "1.00 [1.00, 1.00]"


# ---------------------------------------------------------------------------------------------------------
# What is compared


def record(policy, context, rows):
    return {"policy": policy, "context": context, "label": f"{policy} {context}", "games": games(rows)}


def test_every_policy_is_compared_with_the_first_and_every_mode_with_the_first():
    records = [record(p, c, [[0.0]]) for p in ("base", "run", "more") for c in ("own", "none", "perfect")]
    labels = {each["label"] for each in compared(records)}
    policies = {f"{p} {c} - base {c}" for p in ("run", "more") for c in ("own", "none", "perfect")}
    modes = {f"{p} {c} - {p} own" for p in ("base", "run", "more") for c in ("none", "perfect")}
    assert labels == policies | modes and len(compared(records)) == len(labels)
    assert compared(records[:1]) == compared([]) == explained([]) == []


def test_the_gain_is_taken_apart_into_play_use_and_writing():
    """The base has 0.1 without hints, 0.2 with its own; the run 0.15 without, 0.45 with those, 0.8 with its own."""
    means = {("base", "own"): 0.2, ("base", "none"): 0.1, ("run", "own"): 0.8, ("run", "none"): 0.15}
    records = [record(p, c, [[x]] * 4) for (p, c), x in {**means, ("run", "from=base"): 0.45}.items()]
    play_, use, write, total = (each["difference"][-1] for each in explained(records))
    assert (play_, use, write, total) == pytest.approx((0.05, 0.2, 0.35, 0.6), abs=1e-4)
    assert play_ + use + write == pytest.approx(total)
    assert explained(records[:-1]) == []


# ---------------------------------------------------------------------------------------------------------
# Games


def test_what_is_kept_of_a_game_by_hand():
    """Two turns, a hint of two lines of which one was there before, then a task that ends at once."""

    def answers(pack):
        kept = f"{BEGIN}\n- a: b\n(no hints yet)\n{END}"
        replies = iter(
            [
                Reply("<answer>Direction 1</answer>", 5, n_read=30),
                Reply("?", 7, truncated=True, n_read=50, n_thought=3, cost=0.25),
                Reply(kept, 11, n_read=90, cost=0.5),
                Reply("?", 2, n_read=40),
            ]
        )

        class Policy:
            def reply(self, episodes):
                return [(episode, next(replies)) for episode in episodes]

        return run([play(pack)], Policy())[0]

    pack = next(p for p in (make_pack("frozenlake", k, 2, "train") for k in range(99)) if survives(p))
    found = game(answers(pack))
    assert (found["turns"], found["reply_tokens"], found["read_tokens"]) == ([2, 1], [12, 2], [140, 40])
    assert (found["hint_tokens"], found["hint_words"], found["hint_kept"]) == ([11], [6], [0.5])
    assert (found["broken_format"], found["episodes"], found["broken_task"]) == (2, 3, [1.0, 1.0])
    assert (found["truncated"], found["replies"], found["thought_tokens"], found["cost"]) == (1, 4, [3, 0], [0.75, 0])
    assert found["hints"] == ["- a: b\n(no hints yet)"] and len(found["grades"]) == 1


def test_no_hint_has_no_words():
    rollouts = run([play(make_pack("frozenlake", 0, 3, "tiny"), next_hint=no_hints)], LakeLearner())
    found = game(rollouts[0])
    assert found["hint_words"] == [0, 0] and found["hint_kept"] == [0, 0] and found["hints"] == ["(no hints yet)"] * 2


def survives(pack):
    """Whether the first task goes on after Direction 1."""
    task = pack.tasks[0]
    task.reset()
    return not task.step("<answer>Direction 1</answer>")[1]


def test_details_are_means_by_position():
    rollouts = run([play(make_pack("frozenlake", k, 3, "tiny")) for k in range(20)], LakeLearner())
    found = details([game(rollout) for rollout in rollouts])
    turns = [[len(task.replies) for task in rollout.of("solve")] for rollout in rollouts]
    assert found["turns"] == pytest.approx([statistics.mean(at) for at in zip(*turns, strict=True)])
    assert len(found["hint_words"]) == 2 and found["broken_task"] == [0, 0, 0]


def test_grades_are_means_over_the_hints_that_have_them():
    base = game(run([play(make_pack("frozenlake", 0, 3, "tiny"))], LakeLearner())[0])
    graded = [base | {"grades": [{"kept": 1.0}, {}]}, base | {"grades": [{"kept": 0.0, "odd": 3.0}, {}]}]
    found = details(graded)
    assert (found["grade_kept"], found["grade_odd"]) == ([0.5, None], [3.0, None])


def graded(found):
    """The grades of a task whose environment says that of every hint."""

    class Odd(Task):
        @classmethod
        def grade_hint(cls, hint, played):
            return found

    return grades("odd/tiny", "a hint", [Odd()])


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(0.5), np.int64(3), np.array(2.0), torch.tensor([0.25])])
def test_numbers_of_any_library_are_grades(value):
    found = graded({"right": value})
    assert found == {"right": float(value)} and type(found["right"]) is float


@pytest.mark.parametrize(
    "found, named",
    [
        ("well", "'well'"),
        (None, "None"),
        ([1.0], "[1.0]"),
        (0.5, "0.5"),
        ({1: 0.5, "right": 0.5}, "called 1"),
        ({"right": "0.5"}, "'right'"),
        ({"right": None}, "None"),
        ({"right": [1.0]}, "'right'"),
        ({"right": float("nan")}, "nan"),
        ({"right": np.float64("inf")}, "inf"),
        ({"right": 10**400}, "'right'"),
        ({"right": 10**5000}, "a huge int"),
        ({"right": 1j}, "1j"),
        ({"right": torch.ones(2)}, "tensor"),
        ({"right": np.ones(2)}, "array"),
    ],
)
def test_what_is_no_grade_ends_in_one_line(found, named):
    with pytest.raises(BadInput, match="^env='odd/tiny': grade_hint gives ") as raised:
        graded(found)
    assert named in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 200
