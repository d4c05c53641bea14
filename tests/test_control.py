"""environments/control: the dynamics by hand, the optimum by its certificate, any reply is survived."""

import copy
import itertools
import math
import random
import re

import pytest
from conftest import cpu_seconds
from doubles import same_in_other_processes
from hypothesis import given, settings
from hypothesis import strategies as st

from context import NO_HINTS_YET, parse_update, solve_system, update_messages
from environments.control.expressions import MAX_LENGTH, parse_expression
from environments.control.players import (
    CONTROL_HINT,
    ControlInformed,
    ControlLearner,
    ControlRandom,
    Dynamics,
    fit_dynamics,
    optimal_expression,
)
from environments.control.task import CONTROL_LEVELS, CONTROL_VARIABLES, Control
from envs import make_pack, parse_answer
from rollout import Penalties, Reply, play, run

LEVELS = ("train", "hard")


def answer(expression):
    return f"I steer. <answer>{expression}</answer>"


def a_task(a=1.0, b=1.0, x0=0.0, v0=0.0, target=2.0, horizon=2):
    task = Control(a, b, x0, v0, target, horizon)
    task.reset()
    return task


def hidden(task):
    return (task.a, task.b, task.x0, task.v0, task.target, task.horizon)


# ---------------------------------------------------------------------------------------------------------
# Packs


def many_fingerprints():
    """All that can be seen of packs over seeds, levels and loops; its source also runs in other processes."""
    lines = []
    for seed, level, ralph in itertools.product((0, 1, 123456), ("train", "hard"), (False, True)):
        for task in make_pack("control", seed, 3, level, ralph).tasks:
            lines.append(repr([task.rules, task.max_turns, task.reset(), task.a, task.b]))
            expression = "ifelse(t < 4 and x < x_target, 0.7, -0.3 * v) + 0.1 / remaining_steps"
            lines.append(repr([task.step(f"<answer>{expression}</answer>"), task.reward, task.feedback]))
    return "\n".join(lines)


def test_same_arguments_give_the_same_pack_in_every_process():
    assert same_in_other_processes(many_fingerprints)


def test_different_seeds_and_levels_give_different_packs():
    packs = [make_pack("control", seed, 4, level) for seed in range(50) for level in LEVELS]
    assert len({tuple(map(hidden, pack.tasks)) for pack in packs}) == len(packs)
    assert len({pack.tasks[0].a for pack in packs}) == len(packs)  # a level does not give away another one's secret


def test_drawing_a_pack_does_not_touch_the_global_random_state():
    state = random.getstate()
    make_pack("control", 0, 4)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("level", "v0", "target"), [("train", (-1, 1), (-5, 5)), ("hard", (-1.5, 1.5), (-8, 8))], ids=LEVELS
)
def test_tasks_of_a_level(level, v0, target):
    """Everything lies in its range and fills it evenly: the quartiles are where those of a uniform draw are."""
    assert set(Control.levels) == set(CONTROL_LEVELS) == set(LEVELS)
    packs = [make_pack("control", seed, 4, level) for seed in range(800)]
    tasks = [task for pack in packs for task in pack.tasks]
    assert all({(task.a, task.b) for task in pack.tasks} == {(pack.tasks[0].a, pack.tasks[0].b)} for pack in packs)
    assert all(len({(task.x0, task.v0, task.target) for task in pack.tasks}) == 4 for pack in packs)
    assert {(task.horizon, task.max_turns) for task in tasks} == {(12, 1)}
    first = [pack.tasks[0] for pack in packs]
    assert 0.42 < sum(task.b > 0 for task in first) / len(first) < 0.58
    drawn = [([task.a for task in first], (0.55, 1.2)), ([abs(task.b) for task in first], (0.35, 1.5))]
    drawn += [([task.x0 for task in tasks], (-2, 2)), ([task.v0 for task in tasks], v0)]
    drawn += [([task.target for task in tasks], target)]
    for values, (low, high) in drawn:
        assert low <= min(values) and max(values) <= high
        for share in (0.02, 0.25, 0.5, 0.75, 0.98):
            assert abs(sum(value < low + share * (high - low) for value in values) / len(values) - share) < 0.05


def test_the_rules_name_the_variables_and_no_secret():
    rules = Control.rules
    assert all(re.search(rf"\b{name}\b", rules) for name in CONTROL_VARIABLES)
    assert "<answer>EXPRESSION</answer>" in rules and "1 turn" in rules and str(MAX_LENGTH) in rules
    for seed in range(20):
        task = make_pack("control", seed, 1).tasks[0]
        assert task.rules == rules and task.feedback == ""
        assert f"{task.a:.2f}" not in rules + task.reset() or f"{task.a:.2f}" in (f"{task.x0:.2f}", f"{task.v0:.2f}")


@pytest.mark.parametrize("ralph", [False, True])
def test_copies_of_a_pack_do_not_affect_each_other(ralph):
    pack = make_pack("control", 5, 3, ralph=ralph)
    others = [pack.fresh(), pack.fresh().fresh()]
    starts = [task.reset() for task in pack.tasks]
    assert len(set(starts)) == (1 if ralph else 3)
    first = pack.tasks[0].step(answer("0.5"))
    assert pack.tasks[0].done and not pack.tasks[1].done
    pack.tasks[1].step("no answer")
    for other in others:
        assert [task.reset() for task in other.tasks] == starts
        assert other.tasks[0].step(answer("0.5")) == first
        assert not other.tasks[1].broken_format and other.tasks[1].reward == 0 and not other.tasks[1].done
    assert pack.tasks[1].broken_format and pack.tasks[2].reset() == starts[2]


def test_a_copied_task_is_independent():
    task = a_task()
    other = copy.copy(task)
    task.step("no answer")
    assert not other.done and other.step(answer("1"))[1] and not other.broken_format


# ---------------------------------------------------------------------------------------------------------
# Playing


def test_play_by_hand():
    """v: 0.5 -> 0.25 + 1 -> 0.625 - 2 (u is clipped to -1); x: 1 -> 2.25 -> 0.875."""
    task = Control(a=0.5, b=2.0, x0=1.0, v0=0.5, target=-0.125, horizon=2)
    assert task.reset() == "Start: x = 1.00, v = 0.50. Target: x_target = -0.12, v_target = 0. Steps: horizon = 2."
    observation, done = task.step(answer("ifelse(t == 0, 0.5, -7)"))
    assert done and not task.broken_format
    # L = (0.875 + 0.125)^2 + 2 * 1.375^2 + 0.03 * (0.25 + 1) = 4.81875
    assert task.reward == pytest.approx(1 / 5.81875, abs=1e-12)
    lines = observation.split("\n")
    assert lines[:4] == ["t x v u", "0 1.0000 0.5000 0.5000", "1 2.2500 1.2500 -1.0000", "2 0.8750 -1.3750 end"]
    assert lines[4:] == [task.feedback]
    assert "x to 0.8750" in task.feedback and "v to -1.3750" in task.feedback and "x_target = -0.12" in task.feedback
    assert "u^2 = 1.2500" in task.feedback and "L = 4.8187" in task.feedback and "0.172" in task.feedback


def test_the_reward_is_1_for_staying_at_the_target_for_nothing():
    task = a_task(x0=2.0, horizon=12)
    assert task.step(answer("0"))[1] and task.reward == 1


def test_a_very_bad_control_has_nearly_no_reward():
    task = a_task(a=1.2, b=1.5, x0=2.0, v0=1.5, target=-8.0, horizon=12)
    task.step(answer("1e9"))
    assert 0 < task.reward < 1e-4


@pytest.mark.parametrize(
    ("expression", "controls"),
    [
        ("t / 10", [0.0, 0.1, 0.2]),
        ("remaining_steps / 10", [0.3, 0.2, 0.1]),
        ("horizon / 10", [0.3, 0.3, 0.3]),
        ("x_target / 10", [0.5, 0.5, 0.5]),
        ("v_target + 0.25", [0.25, 0.25, 0.25]),
        ("x / 10", [0.1, 0.1 + 0.02, 0.1 + 0.04 + 0.0012]),  # as it is before the step
        ("v / 10", [0.02, 0.02 + 0.0002, 0.02 + 0.0002 + 0.000202]),
        ("5", [1, 1, 1]),
        ("-1e300", [-1, -1, -1]),
        ("t > 0", [0, 1, 1]),
    ],
)
def test_what_each_variable_means(expression, controls):
    task = a_task(a=1.0, b=0.01, x0=1.0, v0=0.2, target=5.0, horizon=3)
    observation, _ = task.step(answer(expression))
    shown = [float(line.split()[3]) for line in observation.split("\n")[1:4]]
    assert shown == pytest.approx(controls, abs=2e-3 if expression[0] in "xv" else 5e-5)


@pytest.mark.parametrize(
    "expression", ["1 / (t - 3)", "ifelse(t < 3, 0.5, (0 - 1) ** 0.5)", "ifelse(t >= 3, 9 ** 999, 0)"]
)
def test_an_expression_that_fails_at_step_3(expression):
    task = a_task(horizon=12)
    observation, done = task.step(answer(expression))
    assert done and task.reward == 0 and not task.broken_format
    assert "failed at t = 3" in task.feedback and "reward is 0" in task.feedback
    lines = observation.split("\n")
    assert [line.split()[0] for line in lines] == ["t", "0", "1", "2", "3", "Your"]
    assert lines[4].endswith(" failed") and lines[5] == task.feedback


UNREADABLE = ["", "no answer at all", "0.5", "<answer>0.5", "0.5</answer>", "<answer>1</answer><answer>1</answer>"]
UNREADABLE += ["</answer>1<answer>", "<answer></answer>", "<answer><answer>1</answer></answer>", "<ANSWER>1</ANSWER>"]
UNREADABLE += [answer(e) for e in ("u = 0.5", "EXPRESSION", "0.5 x", "2x", "y", "x ** ", "k * (x_target - x)", "`0.5`")]
UNREADABLE += [
    answer(e) for e in ("__import__('os').system('true')", "x.__class__", "().__class__.__bases__[0]", "a", "b")
]
UNREADABLE += [
    answer(e) for e in ("9" * 400, "### END HINTS", "0.5 ### BEGIN HINTS", "0.5 # quick", "True", "'###'", "u")
]
UNREADABLE += [
    answer(e) for e in ("$(touch x)", "../../etc/passwd", "*", "\x00", "\ud800", "\u0663", "x\u00b2", "<|im_end|>")
]


@pytest.mark.parametrize("reply", UNREADABLE)
def test_a_reply_that_cannot_be_read(reply):
    task = a_task(horizon=12)
    observation, done = task.step(reply)
    assert done and task.broken_format and task.reward == -0.1
    assert observation == task.feedback and "-0.1" in observation and "nothing moved" in observation
    assert "##" not in observation and len(observation) < 150 and observation.isascii() and observation.isprintable()


def test_the_feedback_says_what_was_wrong():
    for expression, words in {"gain * x": "gain cannot", "2x": "'2x'", "x ^ 2": "'^'", "min(x)": "min has"}.items():
        task = a_task()
        task.step(answer(expression))
        assert words in task.feedback


def test_reset_plays_the_same_task_again_and_a_step_after_the_end_is_refused():
    task = a_task(horizon=12)
    start = task.reset()
    end = task.step(answer("0.1"))
    reward = task.reward
    with pytest.raises(RuntimeError, match="reset"):
        task.step(answer("0.1"))
    assert task.reset() == start and (task.reward, task.feedback, task.broken_format) == (0.0, "", False)
    task.step("broken")
    with pytest.raises(RuntimeError, match="reset"):
        task.step(answer("0.1"))
    assert task.reset() == start and not task.broken_format
    assert task.step(answer("0.1")) == end and task.reward == reward


def simulate(task, controls):
    """L for a list of controls in [-1, 1], with none of the code under test."""
    x, v = task.x0, task.v0
    for u in controls:
        v = task.a * v + task.b * u
        x = x + v
    return (x - task.target) ** 2 + 2 * v * v + 0.03 * sum(u * u for u in controls)


def python_controls(task, expression):
    """The controls of an expression, evaluated by Python itself."""
    functions = {
        "clip": lambda number, low, high: max(low, min(high, number)),
        "ifelse": lambda condition, yes, no: yes if condition else no,
    }
    x, v, controls = task.x0, task.v0, []
    for t in range(12):
        values = {"x": x, "v": v, "t": t, "x_target": task.target, "v_target": 0, "horizon": 12}
        u = eval(expression, {"__builtins__": {}, **functions, **values, "remaining_steps": 12 - t})
        controls.append(max(-1, min(1, u)))
        v = task.a * v + task.b * controls[-1]
        x = x + v
    return controls


@pytest.mark.parametrize("level", LEVELS)
def test_random_play_matches_a_plain_simulation(level):
    player = ControlRandom(1)
    for seed in range(100):
        task = make_pack("control", seed, 1, level).tasks[0]
        task.reset()
        reply = player.act([])
        observation, _ = task.step(reply)
        controls = python_controls(task, parse_answer(reply))
        assert task.reward == pytest.approx(1 / (1 + simulate(task, controls)), rel=1e-9)
        shown = [float(line.split()[3]) for line in observation.split("\n")[1:13]]
        assert shown == pytest.approx(controls, abs=5.1e-5)


def test_a_rollout_keeps_the_negative_reward_and_penalises_the_positive_ones():
    class Clumsy:
        def reply(self, episodes):
            return [(e, Reply("oops" if e.position == 0 else answer("0"))) for e in episodes]

    rollout = run([play(make_pack("control", 0, 2), Penalties(length=0.1))], Clumsy())[0]
    first, second = rollout.of("solve")
    assert (first.outcome, first.reward, first.broken_format) == (-0.1, -0.1, True)
    assert second.outcome > 0 and second.reward == max(0, second.outcome - 0.1) and not second.broken_format
    assert "Reward: -0.100" in rollout.of("update")[0].messages[1]["content"]


# ---------------------------------------------------------------------------------------------------------
# Any reply


PIECES = [
    "<answer>",
    "</answer>",
    "x",
    "v",
    "t",
    "horizon",
    "remaining_steps",
    "x_target",
    "0.5",
    "1e999",
    "-",
    "+",
    " * ",
]
PIECES += [
    " / ",
    "**",
    "(",
    ")",
    ",",
    "ifelse(",
    "clip(",
    "abs(",
    "<",
    " and ",
    " not ",
    "###",
    "\n",
    "\x00",
    "\u0663",
    "#",
]
inside = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(PIECES[2:]), max_size=12).map("".join),
    st.text(alphabet="xvt0123.e+-*/<=(), ", max_size=20),
)
replies = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join), inside.map(answer))


@settings(max_examples=1500, deadline=None)
@given(reply=replies)
def test_any_reply_ends_the_task_well(reply):
    task = a_task(a=1.1, b=-0.8, x0=-1.25, v0=0.5, target=4.0, horizon=12)
    observation, done = task.step(reply)
    assert done is True and type(observation) is str and observation.endswith(task.feedback)
    assert len(task.feedback) > 20 and "##" not in observation and len(observation) < 700
    assert observation.isascii() and observation.replace("\n", "").isprintable()
    assert (task.reward == -0.1) == task.broken_format
    assert task.broken_format or 0 <= task.reward <= 1
    assert task.broken_format or ("failed" in task.feedback) == (task.reward == 0)


@pytest.mark.parametrize(
    "reply",
    ["x" * 5_000_000, "<answer>" * 600_000, "</answer>" * 600_000 + "<answer>", "</answer><answer>" + "y" * 2_000_000]
    + [answer(" " * 5_000_000), answer("(" * 5_000_000), answer("9" * 5_000_000), answer("x + " * 1_250_000 + "x")]
    + [answer("-" * 499 + "x"), answer("10" + "**10" * 45), answer("<" * 5_000_000), "<answer>" + "</answer" * 600_000]
    + [answer("max(" + "x," * 240 + "x)"), answer("\n" * 2_000_000 + "0.5" + "\n" * 2_000_000), answer("x*" * 50 + "x")]
    + ["\ud800" * 1_000_000 + answer("0.5"), "\x00" * 5_000_000, answer("(" * 49 + "+".join("x" * 50) + ")" * 49)],
    ids=range(18),
)
def test_no_reply_takes_long(reply):
    assert cpu_seconds(0.05, lambda: a_task(horizon=12), lambda task: task.step(reply)) < 0.05
    observation, done = a_task(horizon=12).step(reply)
    assert done and len(observation) < 700


# ---------------------------------------------------------------------------------------------------------
# The optimum


def gradient(task, controls):
    """dL/du by central differences, which are exact (but for rounding) because L is quadratic in the controls."""
    slopes = []
    for k in range(len(controls)):
        up, down = ([u + step * (i == k) for i, u in enumerate(controls)] for step in (0.5, -0.5))
        slopes.append(simulate(task, up) - simulate(task, down))
    return slopes


def excess(task, controls):
    """An upper bound on how far L is above its minimum over controls in [-1, 1].

    The second derivative of L is 0.06 at least in every direction, from the effort alone. So for all other controls w,
    L(w) >= L(u) + gradient . (w - u) + 0.03 |w - u|^2, least where each w is by itself."""
    bound = 0.0
    for slope, u in zip(gradient(task, controls), controls, strict=True):
        move = min(max(u - slope / 0.06, -1), 1) - u
        bound -= slope * move + 0.03 * move**2
    return bound


def least_loss(task, rng):
    """The minimum of L by coordinate descent, from random controls: each in turn moves to the best value for it."""
    controls = [rng.uniform(-1, 1) for _ in range(task.horizon)]
    while excess(task, controls) > 1e-7:
        for _ in range(200):
            k = rng.randrange(task.horizon)
            low, mid, high = (simulate(task, [*controls[:k], u, *controls[k + 1 :]]) for u in (-1, 0, 1))
            controls[k] = min(max((low - high) / (2 * (low + high - 2 * mid)), -1), 1)
    return simulate(task, controls)


@pytest.mark.parametrize("level", LEVELS)
def test_the_informed_player_is_optimal(level):
    for seed in range(60):
        for task in make_pack("control", seed, 4, level).tasks:
            task.reset()
            expression = parse_answer(ControlInformed().plan(task))
            controls = python_controls(task, expression)
            assert len(expression) < 200 and excess(task, controls) < 1e-7
            task.step(answer(expression))
            assert not task.broken_format and task.reward == pytest.approx(1 / (1 + simulate(task, controls)), abs=1e-9)


def test_the_optimum_with_controls_at_their_limits():
    """Targets so far away that many controls are at a limit, some at both; in the levels hardly any are."""
    rng, at_limits = random.Random(1), []
    for _ in range(200):
        a, b = rng.uniform(0.55, 1.2), rng.choice((-1, 1)) * rng.uniform(0.35, 1.5)
        task = Control(a, b, rng.uniform(-2, 2), rng.uniform(-5, 5), rng.uniform(-30, 30), 12)
        controls = python_controls(task, optimal_expression(*hidden(task)))
        assert excess(task, controls) < 1e-6
        at_limits.append((controls.count(-1), controls.count(1)))
    assert sum(low + high > 0 for low, high in at_limits) > 60
    assert sum(low > 0 < high for low, high in at_limits) > 20
    assert sum(low + high == 0 for low, high in at_limits) > 20


EXTREMES = [
    (a, b, x0, v0, target)
    for a in (0.55, 1 - 1e-9, 1.0, 1 + 1e-7, 1.00001, 1.2)
    for b in (-1.5, 0.35)
    for x0, v0, target in ((-2.0, -1.5, 8.0), (2.0, 1.5, 8.0), (0.0, 0.0, 0.0), (1.0, -0.3, 1.0))
]


@pytest.mark.parametrize("numbers", EXTREMES)
def test_the_optimum_at_the_ends_of_the_ranges(numbers):
    task = Control(*numbers, 12)
    assert excess(task, python_controls(task, optimal_expression(*numbers, 12))) < 1e-7


def test_the_optimum_against_coordinate_descent():
    """From random controls; with a well below 1, where it converges fast."""
    rng = random.Random(0)
    for _ in range(10):
        task = Control(rng.uniform(0.55, 0.8), rng.uniform(0.35, 1.5), 1.0, rng.uniform(-2, 2), rng.uniform(-9, 9), 12)
        found = simulate(task, python_controls(task, optimal_expression(*hidden(task))))
        want = least_loss(task, rng)
        assert want - 1e-7 < found < want + 1e-8


def test_the_certificate_rejects_what_is_not_optimal():
    for seed in range(20):
        task = make_pack("control", seed, 1).tasks[0]
        best = python_controls(task, optimal_expression(*hidden(task)))
        worse = [u + (0.05 if u < 0.5 else -0.05) for u in best]
        assert excess(task, worse) >= simulate(task, worse) - simulate(task, best) > 1e-4


def test_optimal_controls_of_one_step_by_hand():
    """One step from rest at 0 to 1, a = b = 1: L = (u - 1)^2 + 2 u^2 + 0.03 u^2 is least at u = 1 / 3.03."""
    expression = optimal_expression(1.0, 1.0, 0.0, 0.0, 1.0, 1)
    values = dict.fromkeys(CONTROL_VARIABLES, 0.0) | {"remaining_steps": 1.0}
    assert parse_expression(expression, CONTROL_VARIABLES)(values) == pytest.approx(1 / 3.03, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------
# The players


def play_packs(player, seeds, level="train", size=4):
    packs = [make_pack("control", seed, size, level) for seed in seeds]
    return packs, run(map(play, packs), player)


def success(rollouts):
    """Mean outcome by position."""
    columns = zip(*([episode.outcome for episode in rollout.of("solve")] for rollout in rollouts), strict=True)
    return [sum(column) / len(column) for column in columns]


def estimate(text):
    (numbers,) = CONTROL_HINT.findall(text)
    return Dynamics(*map(float, numbers))


@pytest.mark.parametrize("level", LEVELS)
def test_the_learner_gains_and_the_informed_player_is_ahead(level):
    learned, informed, random_ = (
        success(play_packs(player, range(120), level)[1])
        for player in (ControlLearner(), ControlInformed(), ControlRandom())
    )
    assert learned[3] > learned[0] + 0.3 and learned[3] > 0.95
    assert informed[0] > learned[0] + 0.3 and informed[0] > 0.95
    assert all(best > some - 1e-9 for best, some in zip(informed, learned, strict=True))
    assert all(0 < some < 0.3 for some in random_)
    assert all(some > other + 0.15 for some, other in zip(learned, random_, strict=True))


@pytest.mark.parametrize("player", [ControlRandom, ControlInformed, ControlLearner])
@pytest.mark.parametrize("level", LEVELS)
def test_players_never_break_the_format_nor_fail(player, level):
    _, rollouts = play_packs(player(0), range(60), level)
    for rollout in rollouts:
        assert [episode.kind for episode in rollout.episodes] == ["solve", "update"] * 3 + ["solve"]
        assert not any(episode.broken_format for episode in rollout.episodes)
        assert all(episode.outcome > 0 for episode in rollout.of("solve"))


def test_players_follow_their_seed():
    def replies(player):
        return [[r.text for e in rollout.episodes for r in e.replies] for rollout in play_packs(player, range(5))[1]]

    assert replies(ControlRandom(1)) == replies(ControlRandom(1)) != replies(ControlRandom(2))
    assert replies(ControlLearner(1)) == replies(ControlLearner(2))


def test_the_random_player_writes_many_shapes_with_gains_of_both_signs():
    player = ControlRandom(0)
    texts = [parse_answer(player.act([])) for _ in range(2000)]
    shapes = [re.sub(r"-?[0-9.]+", "N", text) for text in texts]
    assert len(set(shapes)) == 5 and all(300 < shapes.count(shape) < 500 for shape in set(shapes))
    assert 0.4 < sum(text.removeprefix("ifelse(t < horizon / 2, ").startswith("-") for text in texts) / 1600 < 0.6


@pytest.mark.parametrize("level", LEVELS)
def test_the_hint_carries_the_dynamics_with_an_honest_error(level):
    """Off by no more than a few of the errors that it states, and an error that only shrinks along the pack."""
    packs, rollouts = play_packs(ControlLearner(), range(100), level)
    off = []
    for pack, rollout in zip(packs, rollouts, strict=True):
        task, before = pack.tasks[0], math.inf
        for update in rollout.of("update"):
            if not CONTROL_HINT.search(update.context):
                assert before == math.inf  # what is known is never forgotten
                continue
            found = estimate(update.context)
            off.append(max(abs(found.a - task.a), abs(found.b - task.b)))
            assert off[-1] < 4 * found.error + 2e-6 and found.error <= before
            before = found.error
    assert len(off) > 290 and sorted(off)[len(off) // 2] < 1e-4


def test_a_less_accurate_measurement_does_not_replace_a_better_one():
    learner, task = ControlLearner(), a_task(a=0.9, b=-0.7, horizon=12)
    observation, _ = task.step(answer("0.001 * (t > 5)"))  # moves so little that rounding hides the dynamics
    transcript = [{"role": "system", "content": task.rules}, {"role": "user", "content": task.reset()}]
    transcript += [{"role": "assistant", "content": answer("0")}, {"role": "user", "content": observation}]
    rough = estimate(parse_update(learner.hint(update_messages(NO_HINTS_YET, transcript, 0.1, "over")))[0])
    assert 1e-3 < rough.error < 0.1
    for error, kept in (("0.000500", True), ("0.090000", False)):
        hint = f"a = 0.912000, b = -0.712000, both to about {error}"
        written, readable = parse_update(learner.hint(update_messages(hint, transcript, 0.1, "over")))
        assert readable and (written == hint) == kept
        assert kept or estimate(written) == rough


@pytest.mark.parametrize(
    "reply", ["no answer", answer("1 / t"), answer("0"), answer("1 / (t - 1)"), answer("0.0003 * (t > 9)")]
)
def test_a_hint_when_nothing_was_learned(reply):
    learner, task = ControlLearner(), a_task(horizon=12)
    start, (observation, _) = task.reset(), task.step(reply)
    transcript = [{"role": "system", "content": task.rules}, {"role": "user", "content": start}]
    transcript += [{"role": "assistant", "content": reply}, {"role": "user", "content": observation}]
    written, readable = parse_update(learner.hint(update_messages(NO_HINTS_YET, transcript, 0.0, task.feedback)))
    assert readable and not CONTROL_HINT.search(written)
    messages = [{"role": "system", "content": solve_system(task.rules, written)}, {"role": "user", "content": start}]
    assert parse_answer(learner.act(messages)) == learner.blind


def test_the_learner_with_exact_hints_plays_the_optimum():
    for seed in range(20):
        task = make_pack("control", seed, 1, "hard").tasks[0]
        hint = f"a = {task.a:.6f}, b = {task.b:.6f}, both to about 0.000001"
        messages = [{"role": "system", "content": solve_system(task.rules, hint)}]
        messages.append({"role": "user", "content": task.reset()})
        task.step(ControlLearner().act(messages))
        best = simulate(task, python_controls(task, optimal_expression(*hidden(task))))
        assert task.reward == pytest.approx(1 / (1 + best), abs=1e-5)


def test_fit_dynamics_recovers_any_dynamics_from_a_printed_trajectory():
    rng = random.Random(2)
    for _ in range(100):
        a, b = rng.uniform(0.55, 1.2), rng.choice((-1, 1)) * rng.uniform(0.35, 1.5)
        task = Control(a, b, rng.uniform(-2, 2), rng.uniform(-1, 1), 3.0, 12)
        task.reset()
        observation, _ = task.step(answer("ifelse(t < 4, 0.8, ifelse(t < 8, -0.6, 0.1))"))
        found = fit_dynamics(observation)
        assert abs(found.a - a) < 5 * found.error and abs(found.b - b) < 5 * found.error and found.error < 1e-3
