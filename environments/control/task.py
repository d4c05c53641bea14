"""Optimal control: steer a point with hidden dynamics to a target, by writing one feedback expression per task.

At step t = 0 .. horizon-1 the control is u = expression(x, v, t, ...), clipped to [-1, 1], and then

    v <- a v + b u        x <- x + v        (the new v)

with a and b hidden and shared by the pack. All quantities are plain numbers without units. After the last step
L = (x - x_target)^2 + 2 (v - v_target)^2 + 0.03 * (sum of u^2 over all steps) gives the reward 1 / (1 + L).
"""

import random
from dataclasses import dataclass

from environments.control.expressions import MAX_LENGTH, Expression, ExpressionError, clip, parse_expression
from environments.control.grades import grade_numbers
from environments.task import Task, parse_answer

CONTROL_VARIABLES = ("x", "v", "t", "x_target", "v_target", "horizon", "remaining_steps")
CONTROL_A = (0.55, 1.2)  # the ranges of the hidden a ...
CONTROL_B = (0.35, 1.5)  # ... and of |b|
VELOCITY_WEIGHT, EFFORT_WEIGHT = 2.0, 0.03  # of the final velocity error and of the controls in L
UNREADABLE_REWARD = -0.1


@dataclass(frozen=True)
class ControlLevel:
    """Ranges that are drawn from uniformly; x0, v0 and target are then rounded to the two decimals that are shown."""

    x0: tuple[float, float]
    v0: tuple[float, float]
    target: tuple[float, float]  # position; the target velocity is 0
    horizon: int  # steps


CONTROL_LEVELS = {
    "train": ControlLevel((-2.0, 2.0), (-1.0, 1.0), (-5.0, 5.0), 12),
    "hard": ControlLevel((-2.0, 2.0), (-1.5, 1.5), (-8.0, 8.0), 12),
}


class Control(Task):
    """Bring x to a target and v to 0 with a feedback expression; the coefficients a and b are the pack's secret.

    The reward is 1 / (1 + L), in (0, 1]; 0 if the expression fails while running; -0.1 if it cannot be read.
    """

    levels = tuple(CONTROL_LEVELS)
    max_turns = 1
    rules = (
        "You steer a point on a line. Its position x and its velocity v change in steps t = 0, 1, 2, ...:\n"
        "v becomes a*v + b*u, then x becomes x + v, where u is your control, clipped to [-1, 1].\n"
        "The numbers a (above 0) and b (above or below 0, never near 0) are not told. "
        "They are the same in every task of this series. Start and target differ.\n"
        "You write one expression that gives u at every step. It may use the variables x and v (as they are before the "
        "step), t, x_target, v_target, horizon (the number of steps) and remaining_steps (horizon - t); numbers, + - * "
        "/ **, parentheses, comparisons, and, or, not, abs(a), min(a, b), max(a, b), pow(a, b), clip(value, low, high) "
        f"and ifelse(condition, value_if_true, value_if_false). It has at most {MAX_LENGTH} characters.\n"
        f"After the last step, L = (x - x_target)^2 + {VELOCITY_WEIGHT:g}*(v - v_target)^2 + "
        f"{EFFORT_WEIGHT}*(sum of all u^2). The reward is 1 / (1 + L). "
        f"It is 0 if the expression fails (such as dividing by zero) and {UNREADABLE_REWARD} if it cannot be read.\n"
        "You have 1 turn. Think briefly, then end your reply with your expression, "
        "like this: <answer>EXPRESSION</answer>"
    )

    def __init__(self, a: float, b: float, x0: float, v0: float, target: float, horizon: int):
        self.a, self.b = a, b
        self.x0, self.v0, self.target, self.horizon = x0, v0, target, horizon

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        settings = CONTROL_LEVELS[level]
        a, b = rng.uniform(*CONTROL_A), rng.choice((-1, 1)) * rng.uniform(*CONTROL_B)
        ranges = (settings.x0, settings.v0, settings.target)
        return [cls(a, b, *(round(rng.uniform(*ends), 2) for ends in ranges), settings.horizon) for _ in range(size)]

    def reset(self) -> str:
        self.done = False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return (
            f"Start: x = {self.x0:z.2f}, v = {self.v0:z.2f}. "
            f"Target: x_target = {self.target:z.2f}, v_target = 0. Steps: horizon = {self.horizon}."
        )

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        answer = parse_answer(reply)
        if answer is None:
            return self._unreadable("Your reply did not have the form <answer>EXPRESSION</answer>")
        try:
            expression = parse_expression(answer, CONTROL_VARIABLES)
        except ExpressionError as error:
            return self._unreadable(f"Your expression cannot be read ({error})")
        return self._run(expression)

    def shared_secret(self) -> tuple[float, float]:
        return self.a, self.b

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """The absolute errors of the numbers that the hint states for a and b, each left out if there is none; whether
        a controller that it recommends is a good one is not read off."""
        return grade_numbers(hint, played[0].a, played[0].b)

    def _unreadable(self, what: str) -> tuple[str, bool]:
        self.broken_format = True
        return self._end(UNREADABLE_REWARD, [], f"{what}, so nothing moved and the reward is {UNREADABLE_REWARD}.")

    def _run(self, expression: Expression) -> tuple[str, bool]:
        """Control the point with it to the end."""
        values = {"x_target": self.target, "v_target": 0.0, "horizon": float(self.horizon)}
        x, v, effort, trajectory = self.x0, self.v0, 0.0, ["t x v u"]
        for t in range(self.horizon):
            values |= {"x": x, "v": v, "t": float(t), "remaining_steps": float(self.horizon - t)}
            try:
                u = clip(expression(values), -1.0, 1.0)
            except ExpressionError as error:
                trajectory.append(f"{t} {x:z.4f} {v:z.4f} failed")
                return self._end(0.0, trajectory, f"Your expression failed at t = {t} ({error}), so the reward is 0.")
            trajectory.append(f"{t} {x:z.4f} {v:z.4f} {u:z.4f}")
            v = self.a * v + self.b * u
            x += v
            effort += u * u
        trajectory.append(f"{self.horizon} {x:z.4f} {v:z.4f} end")
        loss = (x - self.target) ** 2 + VELOCITY_WEIGHT * v**2 + EFFORT_WEIGHT * effort
        reward = 1 / (1 + loss)
        result = (
            f"Your expression brought x to {x:z.4f} (x_target = {self.target:z.2f}) and v to {v:z.4f} (v_target = 0). "
            f"With the sum of u^2 = {effort:.4f} that is L = {loss:.4f} and the reward {reward:.3f}."
        )
        return self._end(reward, trajectory, result)

    def _end(self, reward: float, trajectory: list[str], feedback: str) -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return "\n".join([*trajectory, feedback]), True
