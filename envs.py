"""Environments: packs of related text tasks with something hidden in them.

A *pack* is a sequence of tasks that share one hidden thing. Everything in it follows from
(env, seed, size, level, ralph), so the same arguments give the same pack in every process and on every machine.

To add an environment, subclass `Task` and put the class into `ENVS` (complete example in README.md).
"""

import copy
import random
from dataclasses import dataclass

from engine.errors import BadInput
from environments.alchemy import Alchemy
from environments.control import Control
from environments.frozenlake import FrozenLake
from environments.gridnav import GridNav
from environments.task import Task, parse_answer
from environments.terminal import Terminal

__all__ = ["ENVS", "BadInput", "Pack", "Task", "make_pack", "parse_answer"]

ENVS: dict[str, type[Task]] = {
    "frozenlake": FrozenLake,
    "alchemy": Alchemy,
    "gridnav": GridNav,
    "control": Control,
    "terminal": Terminal,
}


@dataclass(frozen=True)
class Pack:
    """`size` tasks of one environment with a shared hidden thing. `tasks[j]` is the task at position j."""

    env: str
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

    Raises BadInput for an unknown environment or level, or a size below 1.
    """
    if env not in ENVS:
        raise BadInput(f"env={env!r}: unknown environment; choose from {', '.join(ENVS)}")
    if level not in ENVS[env].levels:
        raise BadInput(f"level={level!r}: unknown level of {env}; choose from {', '.join(ENVS[env].levels)}")
    if size < 1:
        raise BadInput(f"pack_size={size}: a pack needs at least 1 task")
    rng = random.Random(f"{env}/{level}/{seed}")  # seeding by a string is stable across processes and platforms
    tasks = ENVS[env].make_tasks(rng, 1 if ralph else size, level)
    if ralph:
        tasks = [copy.copy(tasks[0]) for _ in range(size)]
    return Pack(env, seed, size, level, ralph, tasks)


def name_of(env: str) -> str:
    return env


def players(env: str) -> dict:
    from players import PLAYERS

    return {label: player(0) for label, player in PLAYERS.get(env, {}).items()}
