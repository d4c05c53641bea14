"""Environments: packs of related text tasks with something hidden in them.

A *pack* is a sequence of tasks that share one hidden thing. Everything in it follows from
(env, seed, size, level, ralph), so the same arguments give the same pack in every process and on every machine.
A *task* is a little text game: `reset()` returns the first observation, `step(reply)` takes whatever text
the agent wrote and returns (observation, done); `reward` and `feedback` are valid once it is done.

To add an environment, subclass `Task` and put the class into `ENVS` (complete example in README.md).
"""

import copy
import random
import re
from collections import deque
from dataclasses import dataclass


class BadInput(ValueError):
    """Something the user asked for cannot be done. The message is one line; the scripts print it and exit."""


def first_line(error: Exception) -> str:
    """An exception as part of a one-line message."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class Task:
    """One task of a pack. Subclasses set the attributes below and implement `reset`, `step`, `make_tasks`.

    All state that playing changes must be (re)created in `reset`: a Ralph loop plays copies of one task.
    """

    levels: tuple[str, ...] = ("train",)
    rules: str  # what the agent is told, including the reply format; the hidden thing is not in it
    max_turns: int
    reward: float = 0.0  # in [0, 1], valid once `step` has returned done
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


def parse_answer(reply: str) -> str | None:
    """The text inside the only <answer>...</answer> of a reply; None unless there is exactly one."""
    if reply.count("<answer>") != 1 or reply.count("</answer>") != 1:
        return None
    match = re.search(r"<answer>(.*)</answer>", reply, re.DOTALL)
    return match.group(1).strip() if match else None


# ---------------------------------------------------------------------------------------------------------
# FrozenLake-Obscure: a lake with holes and four numbered actions whose meaning is hidden.

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}  # name -> (rows, columns)
Cell = tuple[int, int]  # (row, column), from 0; texts count from 1


@dataclass(frozen=True)
class LakeLevel:
    sizes: tuple[int, int]  # the side of the square map is drawn from this range
    frozen: tuple[float, float]  # and so is the probability that a tile is frozen, not a hole
    distance: tuple[int, int]  # shortest path from start to goal, in moves
    max_turns: int
    names_direction: bool  # whether an observation says which way a move went


LAKE_LEVELS = {
    # ours: so few turns that a player cannot learn the actions and reach the goal in one task
    "tiny": LakeLevel((3, 3), (0.85, 0.95), (2, 3), 4, True),
    "train": LakeLevel((4, 5), (0.6, 0.7), (1, 6), 8, False),
    "hard": LakeLevel((6, 7), (0.6, 0.7), (1, 8), 10, False),
}


@dataclass(frozen=True)
class LakeMap:
    size: int
    holes: frozenset[Cell]
    start: Cell
    goal: Cell

    def move(self, cell: Cell, direction: str) -> Cell:
        """The cell that a move leads to; moving off the edge stays in place."""
        row, col = cell[0] + MOVES[direction][0], cell[1] + MOVES[direction][1]
        return (row, col) if 0 <= row < self.size and 0 <= col < self.size else cell

    def distance(self) -> int | None:
        """Moves on the shortest path from start to goal that avoids holes (breadth-first); None if there is none."""
        depth = {self.start: 0}
        queue = deque([self.start])
        while queue:
            cell = queue.popleft()
            if cell == self.goal:
                return depth[cell]
            for direction in MOVES:
                after = self.move(cell, direction)
                if after not in depth and after not in self.holes:
                    depth[after] = depth[cell] + 1
                    queue.append(after)
        return None


def draw_map(rng: random.Random, level: LakeLevel) -> LakeMap:
    """A random map whose shortest path lies in the level's range (drawn again until it does)."""
    size = rng.randint(*level.sizes)
    frozen = rng.uniform(*level.frozen)
    cells = [(row, col) for row in range(size) for col in range(size)]
    while True:
        start, goal = rng.sample(cells, 2)
        holes = frozenset(c for c in cells if rng.random() >= frozen) - {start, goal}
        lake = LakeMap(size, holes, start, goal)
        distance = lake.distance()
        if distance is not None and level.distance[0] <= distance <= level.distance[1]:
            return lake


def cell_name(cell: Cell) -> str:
    return f"row {cell[0] + 1}, column {cell[1] + 1}"


class FrozenLake(Task):
    """Walk to the goal with `Direction 1..4`; which of them is up, down, left or right is the pack's secret."""

    levels = tuple(LAKE_LEVELS)

    def __init__(self, lake: LakeMap, mapping: tuple[str, ...], level: LakeLevel):
        self.lake = lake
        self.mapping = mapping  # mapping[k - 1] is what Direction k does
        self.level = level
        self.max_turns = level.max_turns
        self.rules = (
            "You are crossing a frozen lake, drawn as a square map. "
            "Rows count from 1 at the top, columns from 1 at the left. "
            "On the map P is you, G is the goal, O is a hole in the ice and _ is safe ice. "
            "Reach the goal to win. A hole ends the task, and so does running out of turns.\n"
            "Each turn you take one step, named Direction N with N from 1 to 4. "
            "One of them leads up, one down, one left and one right, but you are not told which. "
            "The same ones hold in every task of this series. "
            "A step over the edge of the map leaves you where you are.\n"
            f"You have {self.max_turns} turns. Think briefly, then end each reply with your step, "
            "like this: <answer>Direction N</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        mapping = list(MOVES)
        rng.shuffle(mapping)
        settings = LAKE_LEVELS[level]
        return [cls(draw_map(rng, settings), tuple(mapping), settings) for _ in range(size)]

    def reset(self) -> str:
        self.cell, self.turn, self.done = self.lake.start, 0, False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return f"You start at {cell_name(self.cell)}.\n{self._scene()}"

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        action = re.fullmatch("Direction ([1-4])", parse_answer(reply) or "")
        if action is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>Direction N</answer>, N from 1 to 4.")
        before, direction = self.cell, self.mapping[int(action[1]) - 1]
        self.cell = self.lake.move(before, direction)
        if self.cell == before:
            effect = f"Nothing moved with {action[0]}: still at {cell_name(before)}.\n"
        else:
            way = f" {direction}" if self.level.names_direction else ""
            effect = f"You moved{way} with {action[0]}: {cell_name(before)} to {cell_name(self.cell)}.\n"
        if self.cell == self.lake.goal:
            return self._end(1.0, "You reached the goal.", effect)
        if self.cell in self.lake.holes:
            return self._end(0.0, "You fell into a hole.", effect)
        if self.turn == self.max_turns:
            return self._end(0.0, "You ran out of turns before reaching the goal.", effect)
        return effect + self._scene(), False

    def _end(self, reward: float, feedback: str, effect: str = "") -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return effect + feedback, True

    def _scene(self) -> str:
        def symbol(cell: Cell) -> str:
            return (
                "P" if cell == self.cell else "G" if cell == self.lake.goal else "O" if cell in self.lake.holes else "_"
            )

        side = range(self.lake.size)
        rows = "\n".join(" ".join(symbol((row, col)) for col in side) for row in side)
        return f"Turn {self.turn + 1} of {self.max_turns}, goal at {cell_name(self.lake.goal)}:\n{rows}"


ENVS: dict[str, type[Task]] = {"frozenlake": FrozenLake}
