"""What every environment implements: a task, a little text game.

`reset()` returns the first observation, `step(reply)` takes whatever text the agent wrote and returns (observation,
done); `reward` and `feedback` are valid once it is done. `shared_secret` and `grade_hint` serve evaluations only.
"""

import random

Cell = tuple[int, int]  # (row, column) of a map, from 0; texts count from 1

MAX_GRADED = 8_000  # characters of a hint that a grade is read from, about 2,000 tokens; it bounds what one can cost


def cell_name(cell: Cell) -> str:
    return f"row {cell[0] + 1}, column {cell[1] + 1}"


class Task:
    """One task of a pack. Subclasses set the attributes below and implement `reset`, `step`, `make_tasks`.

    All state that playing changes must be (re)created in `reset`: a Ralph loop plays copies of one task. What is played
    are deep copies of a pack's tasks, so what all packs share (a word list) is better kept in the module.
    """

    levels: tuple[str, ...] = ("train",)
    rules: str  # what the agent is told, including the reply format; the hidden thing is not in it
    max_turns: int
    reward: float = 0.0  # finite, in [0, 1] (control: -0.1 for what cannot be read); valid once `step` returned done
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

    def shared_secret(self) -> object:
        """What the tasks of a pack share and hints are about; None: nothing that can be compared.

        The same for all tasks of a pack, at any time; two packs with equal secrets (==) can use each other's hints.
        """
        return None

    @classmethod
    def grade_hint(cls, hint: str, played: list["Task"]) -> dict[str, float]:
        """How good a hint is as far as it can be read off, name -> finite number; {}: not at all.

        `played`: the tasks of the rollout that had been played when the hint was written, in their state after the
        game, oldest first, at least one. A number that cannot be told of this hint is left out. The hint may be any
        text at all.
        """
        return {}


def parse_answer(reply: str) -> str | None:
    """The text inside the only <answer>...</answer> of a reply; None unless there is exactly one."""
    if reply.count("<answer>") != 1 or reply.count("</answer>") != 1:
        return None
    inside, end, _ = reply.partition("<answer>")[2].partition("</answer>")
    return inside.strip() if end else None


def plain(hint: str) -> str:
    """The part of a hint that grades are read from, in lower case, with "is not" for "isn't", one kind of minus signs
    and without markdown's marks for bold text and code."""
    text = hint[:MAX_GRADED].lower()[:MAX_GRADED].replace("**", "").replace("`", "")  # a few letters become two
    return text.replace("\u2212", "-").replace("\u2019", "'").replace("n't", " not")
