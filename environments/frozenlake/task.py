"""FrozenLake-Obscure: a lake with holes and four numbered actions whose meaning is hidden."""

import random
import re
from collections import deque
from dataclasses import dataclass

from environments.frozenlake.grades import grade_meanings
from environments.task import Cell, Task, cell_name, parse_answer

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}  # name -> (rows, columns)


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
    "tiny-hard": LakeLevel((4, 4), (0.85, 0.95), (3, 4), 5, True),
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

    def shared_secret(self) -> dict[str, str]:
        return {way: f"Direction {self.mapping.index(way) + 1}" for way in MOVES}

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """Shares of the four directions that the hint says right, wrong (contradictions, too) and not at all."""
        return grade_meanings(hint, played[0].mapping)

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
