"""What every environment implements: a task, a little text game.

`reset()` returns the first observation, `step(reply)` takes whatever text the agent wrote and returns (observation,
done); `reward` and `feedback` are valid once it is done.
"""

import random

Cell = tuple[int, int]  # (row, column) of a map, from 0; texts count from 1


def cell_name(cell: Cell) -> str:
    return f"row {cell[0] + 1}, column {cell[1] + 1}"


class Task:
    """One task of a pack. Subclasses set the attributes below and implement `reset`, `step`, `make_tasks`.

    All state that playing changes must be (re)created in `reset`: a Ralph loop plays copies of one task.
    """

    levels: tuple[str, ...] = ("train",)
    rules: str  # what the agent is told, including the reply format; the hidden thing is not in it
    max_turns: int
    reward: float = 0.0  # in [0, 1] (control: -0.1 for what cannot be read), valid once `step` has returned done
    feedback: str = ""  # how the task ended, valid once `step` has returned done
    broken_format: bool = False  # whether it ended because a reply broke the format (counted in the metrics)

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list["Task"]:
        """Draw the hidden thing and `size` tasks that share it. All randomness comes from `rng`."""
        raise NotImplementedError

    def reset(self) -> str:
        """Start (again) and return the first observation."""
        raise NotImplementedError

    def step(self, reply: str) -> tuple[str, bool]:
        """Play one turn with the agent's whole reply, any text at all; returns (observation, done)."""
        raise NotImplementedError


def parse_answer(reply: str) -> str | None:
    """The text inside the only <answer>...</answer> of a reply; None unless there is exactly one."""
    if reply.count("<answer>") != 1 or reply.count("</answer>") != 1:
        return None
    inside, end, _ = reply.partition("<answer>")[2].partition("</answer>")
    return inside.strip() if end else None
