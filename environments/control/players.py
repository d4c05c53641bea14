"""Scripted players for optimal control: random, informed and learner."""

import math
import re
from dataclasses import dataclass

from environments.control.expressions import clip
from environments.control.task import EFFORT_WEIGHT, VELOCITY_WEIGHT, Control
from environments.player import InformedPlayer, Player, update_reply

# ---------------------------------------------------------------------------------------------------------
# The optimum for known dynamics

Pair = tuple[float, float]  # about position, about velocity


def optimal_expression(a: float, b: float, x0: float, v0: float, target: float, horizon: int) -> str:
    """The optimal controls of one task, as an expression in the remaining steps.

    With m steps to go, a control u adds s_m u to the final position and r_m u to the final velocity, where
    r_m = b a^(m-1) and s_m = r_1 + ... + r_m = b (1 - a^m) / (1 - a). The loss is convex in the controls, so they are
    optimal if and only if each is clip(-(e s_m + 2 w r_m) / 0.03, -1, 1), where e and w are the final errors of
    position and velocity that they lead to. These two numbers say it all.
    """
    if abs(1 - a) < 1e-8:
        a = 1 + 1e-8  # near enough, and no division by zero
    e, w = optimal_errors(a, b, x0, v0, target, horizon)
    push, brake = -e * b / EFFORT_WEIGHT, -VELOCITY_WEIGHT * w * b / EFFORT_WEIGHT
    return (
        f"clip({push:.10g} * (1 - {a:.10g}**remaining_steps) / (1 - {a:.10g})"
        f" + {brake:.10g} * {a:.10g}**(remaining_steps - 1), -1, 1)"
    )


def optimal_errors(a: float, b: float, x0: float, v0: float, target: float, horizon: int) -> Pair:
    """The final errors e and w of the optimal controls (see above).

    What is clipped there is monotonic in m. So the controls are at one limit for some steps (or none), then between the
    limits, then at the opposite one. For each division of the steps into these three, e and w follow from two linear
    equations. Only the right one gives the optimal controls, so the least loss tells which it is.
    """
    effects = [(b * sum(a**k for k in range(m)), b * a ** (m - 1)) for m in range(horizon, 0, -1)]  # (s_m, r_m)
    coasting = (x0 + v0 * sum(a**k for k in range(1, horizon + 1)) - target, v0 * a**horizon)  # errors if u is 0
    divisions = [
        [limit] * first + [None] * (last - first) + [-limit] * (horizon - last)
        for limit in (-1, 1)
        for last in range(horizon + 1)
        for first in range(last + 1)
    ]
    candidates = [solve_errors(effects, coasting, division) for division in divisions]
    return min(candidates, key=lambda errors: loss_of(effects, coasting, errors))


def solve_errors(effects: list[Pair], coasting: Pair, limits: list[int | None]) -> Pair:
    """e and w where each control is at the given limit or, if that is None, -(e s + 2 w r) / 0.03 with no limits."""
    ss = sr = rr = 0.0
    e, w = coasting
    for (s, r), limit in zip(effects, limits, strict=True):
        if limit is None:
            ss, sr, rr = ss + s * s / EFFORT_WEIGHT, sr + s * r / EFFORT_WEIGHT, rr + r * r / EFFORT_WEIGHT
        else:
            e, w = e + s * limit, w + r * limit
    return solve_2x2(1 + ss, VELOCITY_WEIGHT * sr, sr, 1 + VELOCITY_WEIGHT * rr, e, w)


def loss_of(effects: list[Pair], coasting: Pair, errors: Pair) -> float:
    """The loss of the controls that follow from final errors e and w, which need not be those they lead to."""
    e, w = coasting
    effort = 0.0
    for s, r in effects:
        u = clip(-(errors[0] * s + VELOCITY_WEIGHT * errors[1] * r) / EFFORT_WEIGHT, -1, 1)
        e, w, effort = e + s * u, w + r * u, effort + u * u
    return e * e + VELOCITY_WEIGHT * w * w + EFFORT_WEIGHT * effort


def solve_2x2(p: float, q: float, r: float, s: float, y: float, z: float) -> Pair:
    """The solution of p e + q w = y, r e + s w = z."""
    determinant = p * s - q * r
    return (s * y - q * z) / determinant, (p * z - r * y) / determinant


# ---------------------------------------------------------------------------------------------------------
# What a conversation says

DECIMAL = r"(-?[0-9]+\.[0-9]+)"
CONTROL_START = re.compile(
    rf"Start: x = {DECIMAL}, v = {DECIMAL}\. Target: x_target = {DECIMAL}, .* horizon = ([0-9]+)\."
)
CONTROL_STEP = re.compile(rf"^[0-9]+ {DECIMAL} {DECIMAL} (?:{DECIMAL}|end|failed)$", re.MULTILINE)
CONTROL_HINT = re.compile(rf"^a = {DECIMAL}, b = {DECIMAL}, both to about {DECIMAL}$", re.MULTILINE)
ROUNDING = 1e-4 / math.sqrt(12)  # the standard deviation of the rounding error of a printed number


@dataclass(frozen=True)
class Dynamics:
    """An estimate of a and b with the standard error of the less certain one."""

    a: float
    b: float
    error: float


def told(messages: list[dict]) -> str:
    return "\n".join(message["content"] for message in messages if message["role"] != "assistant")


def fit_dynamics(text: str) -> Dynamics | None:
    """a and b by least squares from the trajectory in the text, if it has one that tells them apart."""
    points = [[float(number or 0) for number in found] for found in CONTROL_STEP.findall(text)]
    steps = [(v, u, after) for (_, v, u), (_, after, _) in zip(points, points[1:], strict=False)]
    vv, vu, uu = sum(v * v for v, _, _ in steps), sum(v * u for v, u, _ in steps), sum(u * u for _, u, _ in steps)
    determinant = vv * uu - vu * vu
    if determinant <= 0:
        return None
    a, b = solve_2x2(vv, vu, vu, uu, sum(v * after for v, _, after in steps), sum(u * after for _, u, after in steps))
    noise = ROUNDING * math.sqrt(1 + a * a + b * b)  # standard deviation of after - a v - b u
    error = noise * math.sqrt(max(vv, uu) / determinant)
    return Dynamics(a, b, error) if error < 0.1 else None


# ---------------------------------------------------------------------------------------------------------
# The players


class ControlRandom(Player):
    """Expressions of a few shapes, with random gains."""

    def act(self, messages: list[dict]) -> str:
        first, second = (f"{self.rng.uniform(-1, 1):.2f}" for _ in range(2))
        shapes = (
            first,
            f"{first} * (x_target - x) + {second} * v",
            f"clip({first} * (x_target - x), -0.5, 0.5) + {second} * (v_target - v)",
            f"ifelse(t < horizon / 2, {first}, {second})",
            f"{first} * (x_target - x) / remaining_steps",
        )
        return f"<answer>{self.rng.choice(shapes)}</answer>"


class ControlInformed(InformedPlayer):
    """Plays the exact optimum."""

    def plan(self, task: Control) -> str:
        best = optimal_expression(task.a, task.b, task.x0, task.v0, task.target, task.horizon)
        return f"<answer>{best}</answer>"


class ControlLearner(Player):
    """Measures a and b in the first task and plays the optimum for them from then on.

    Two steps of a trajectory give a and b, so the first task can be played for its reward alone. The gains below are
    about the best on average if b is taken to be positive; where it is negative, that task is lost, as it would be with
    most things played blindly. The more accurate one of the hint and the trajectory goes into the next hint.
    """

    blind = "0.3 * (x_target - x) - 0.8 * v"

    def known(self, messages: list[dict]) -> Dynamics | None:
        text = told(messages)
        estimates = [Dynamics(*map(float, numbers)) for numbers in CONTROL_HINT.findall(text)] + [fit_dynamics(text)]
        return min(filter(None, estimates), key=lambda dynamics: dynamics.error, default=None)

    def act(self, messages: list[dict]) -> str:
        known = self.known(messages)
        if known is None:
            return f"<answer>{self.blind}</answer>"
        *start, horizon = CONTROL_START.findall(told(messages))[-1]
        return f"<answer>{optimal_expression(known.a, known.b, *map(float, start), int(horizon))}</answer>"

    def hint(self, messages: list[dict]) -> str:
        known = self.known(messages)
        if known is None:
            return update_reply(["a and b are not known yet"])
        return update_reply([f"a = {known.a:.6f}, b = {known.b:.6f}, both to about {known.error:.6f}"])


PLAYERS = {"random": ControlRandom, "informed": ControlInformed, "learner": ControlLearner}
