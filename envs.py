"""Environments: packs of related text tasks with something hidden in them.

A *pack* is a sequence of tasks that share one hidden thing. Everything in it follows from
(env, seed, size, level, ralph), so the same arguments give the same pack in every process and on every machine.

To add an environment, write a subclass of `Task` into a file environments/NAME.py, or anywhere else and give its path
(complete example in README.md).
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import BadInput
from environments.finding import ENVS, name_of, player_classes, task_class, whole
from environments.task import Task, parse_answer

__all__ = [
    "ENVS",
    "Pack",
    "Task",
    "demonstrator",
    "make_pack",
    "name_of",
    "parse_answer",
    "players",
    "task_class",
    "whole",
]


@dataclass(frozen=True)
class Pack:
    """`size` tasks of one environment with a shared hidden thing. `tasks[j]` is the task at position j."""

    env: str  # name or path
    seed: int
    size: int
    level: str
    ralph: bool
    tasks: list[Task]

    def fresh(self) -> "Pack":
        """An independent copy in its initial state: what happens in one copy never shows in another."""
        return make_pack(self.env, self.seed, self.size, self.level, self.ralph)


def make_pack(env: str, seed: int, size: int, level: str = "train", ralph: bool = False) -> Pack:
    """The pack that these arguments name. With `ralph`, all its tasks are the same task (a Ralph loop).

    `env` is the name of an environment in environments/, or the path of a file or folder elsewhere. Raises BadInput if
    it cannot be had or does not know the level, and for a size below 1.
    """
    kind = task_class(env)
    if level not in kind.levels:
        raise BadInput(f"level={level!r}: unknown level of {name_of(env)}; choose from {', '.join(kind.levels)}")
    if size < 1:
        raise BadInput(f"pack_size={size}: a pack needs at least 1 task")
    rng = random.Random(f"{name_of(env)}/{level}/{seed}")  # the same from a string on all platforms
    tasks = kind.make_tasks(rng, 1 if ralph else size, level)
    if ralph:
        tasks = [copy.copy(tasks[0]) for _ in range(size)]
    return Pack(env, seed, size, level, ralph, tasks)


def demonstrator(env: str, level: str) -> Callable[..., Any]:
    """The class of the player that imitate.py teaches on a level: demonstrator(env, level)(seed=0, recall=0.5).

    Raises BadInput if there is none."""
    known = player_classes(env, "DEMONSTRATORS")
    if level not in known:
        there = f"there is one for {', '.join(known)}" if known else "DEMONSTRATORS in its players.py names them"
        raise BadInput(f"level={level!r}: nobody plays this level of {name_of(env)} for others to imitate; {there}")
    return known[level]


def players(env: str) -> dict[str, Any]:
    """label -> scripted player of an environment, whose lines are drawn beside every evaluation on it."""
    return {label: player(0) for label, player in player_classes(env).items()}
