"""GridNav: grid navigation. A map of costs, the same in all tasks of a pack, is uncovered by walking over it.

Two decisions that the rules of the game leave open:
    - Only entering a cell reveals its surroundings, and the start is not entered. So a pack begins with a blank map and
      a blind move, and all that is known later was paid for.
    - An observation draws the whole map at the start of a task; after a move it lists the rows that have new cells.
      A map of 16 x 16 is some 800 tokens where every digit is one; drawn again after each of 10 moves it would fill
      the conversation. The map and the lists after it always add up to the map as it is.
"""

import math
import random
import re
from dataclasses import dataclass, field

from environments.gridnav.grades import grade_costs
from environments.task import Cell, Task, cell_name, parse_answer


@dataclass(frozen=True)
class GridLevel:
    sizes: tuple[int, int]  # the side of the square grid is drawn from this range
    bumps: int  # the costs are a sum of this many Gaussian bumps
    scales: tuple[float, float]  # standard deviations of a bump along its two axes, in units of the grid's side
    moves: tuple[int, int]  # the number of moves of a task is drawn from this range
    radius: int  # entering a cell reveals all cells at most this many rows and columns away


GRID_LEVELS = {
    "train": GridLevel((8, 12), 4, (0.10, 0.35), (4, 6), 2),
    "hard": GridLevel((12, 16), 6, (0.10, 0.35), (6, 10), 1),
}

# Any amount of white space (ASCII) where the form has some, and none is needed at the comma. The possessive *+ and ++
# never backtrack, so that a huge reply is read in one pass. More than 9 digits are not a number in this form.
GRID_MOVE = re.compile(r"row\s++([0-9]{1,9})\s*+,\s*+column\s++([0-9]{1,9})", re.ASCII)

CostMap = tuple[tuple[int, ...], ...]  # costs[row][column], 0 to 99


def draw_costs(rng: random.Random, size: int, level: GridLevel) -> CostMap:
    """A sum of anisotropic Gaussian bumps on the unit square, normalised to [0, 1], squared, times 99, rounded."""
    points = [(i + 0.5) / size for i in range(size)]  # centres of the rows, and of the columns
    field = [[0.0] * size for _ in range(size)]
    for _ in range(level.bumps):
        row0, col0, angle = rng.random(), rng.random(), rng.uniform(0, math.pi)
        long, short, height = rng.uniform(*level.scales), rng.uniform(*level.scales), rng.uniform(0.8, 1.2)
        cos, sin = math.cos(angle), math.sin(angle)
        for values, row in zip(field, points, strict=True):
            for i, col in enumerate(points):
                u = (cos * (row - row0) + sin * (col - col0)) / long
                v = (cos * (col - col0) - sin * (row - row0)) / short
                values[i] += height * math.exp(-(u * u + v * v) / 2)
    low, high = min(map(min, field)), max(map(max, field))
    return tuple(tuple(round(99 * ((x - low) / (high - low)) ** 2) for x in values) for values in field)


def cells_entered(cell: Cell, to: Cell) -> list[Cell]:
    """The cells that a move along a row or column enters, in order: all after `cell` up to and with `to`."""
    rows, cols = to[0] - cell[0], to[1] - cell[1]
    steps = abs(rows) + abs(cols)  # one of the two is 0
    return [(cell[0] + rows * i // steps, cell[1] + cols * i // steps) for i in range(1, steps + 1)]


def grid_walk(rng: random.Random, size: int, moves: int) -> tuple[Cell, Cell]:
    """Both ends of a random walk: each move goes to any other cell of the row or column, all equally likely."""
    start = cell = (rng.randrange(size), rng.randrange(size))
    for _ in range(moves):
        shift = rng.randrange(1, size)
        row, col = cell
        cell = ((row + shift) % size, col) if rng.random() < 0.5 else (row, (col + shift) % size)
    return start, cell


@dataclass(eq=False)
class GridMap:
    """The secret of a pack and how much of it is uncovered. All tasks of the pack hold the same one."""

    costs: CostMap
    radius: int  # see GridLevel
    revealed: set[Cell] = field(default_factory=set)

    @property
    def size(self) -> int:
        return len(self.costs)

    def reveal_around(self, cell: Cell) -> None:
        """Reveal all cells within the radius (Chebyshev distance) of a cell that are on the grid."""
        near = range(-self.radius, self.radius + 1)
        around = ((cell[0] + rows, cell[1] + cols) for rows in near for cols in near)
        self.revealed |= {(row, col) for row, col in around if 0 <= row < self.size and 0 <= col < self.size}

    def show(self, row: int, cols: range) -> str:
        """A piece of a row, two characters to a cell."""
        return " ".join(f"{self.costs[row][col]:>2}" if (row, col) in self.revealed else "??" for col in cols)

    def draw(self) -> str:
        """The whole map, with the numbers of the columns above and of the rows at the left."""
        side = range(self.size)
        rows = [f"{row + 1:>2}: {self.show(row, side)}" for row in side]
        return "\n".join(["    " + " ".join(f"{col + 1:>2}" for col in side), *rows])

    def news(self, before: set[Cell]) -> str:
        """A line for each row with cells that were not revealed before: the span from the first to the last of them."""
        lines = ""
        for row in range(self.size):
            cols = [col for col in range(self.size) if (row, col) in self.revealed and (row, col) not in before]
            if cols:
                lines += f"Row {row + 1} from column {cols[0] + 1}: {self.show(row, range(cols[0], cols[-1] + 1))}\n"
        return lines


class GridNav(Task):
    """Be on the goal after exactly so many moves and enter cheap cells on the way; the costs are the pack's secret.

    Reward: 1 - (mean cost of all cells entered) / 100 on the goal, hence 0.01 to 1; 0 elsewhere.

    What playing reveals is shared on purpose by all tasks of one pack object, those of a Ralph loop too, and with no
    other pack. `reset` does not hide it again, not at the first task either: tasks that are played a second time start
    with the map they ended with. `rollout.play` plays copies of them, and so begins with a blank map every time.
    """

    levels = tuple(GRID_LEVELS)

    def __init__(self, grid: GridMap, start: Cell, goal: Cell, moves: int):
        self.grid = grid
        self.start = start
        self.goal = goal  # may be the start
        self.max_turns = moves  # exactly so many are made
        reach = "1 row and 1 column" if grid.radius == 1 else f"{grid.radius} rows and {grid.radius} columns"
        self.rules = (
            f"You are on a grid of {grid.size} rows and {grid.size} columns. "
            "Rows count from 1 at the top, columns from 1 at the left. Each cell has a cost from 0 to 99. The costs "
            "are hidden at first and the same in every task of this series; cells close together cost about the same.\n"
            "A move names another cell in your row or your column. You enter every cell on the straight way to it, "
            f"the named cell included. Entering a cell reveals the costs of all cells up to {reach} away. "
            "Revealed costs stay on the map, also in later tasks. "
            "The map is drawn when a task starts; after a move you are told what is new on it.\n"
            f"You make exactly {moves} moves, one each turn, and must be on the goal after the last one; being there "
            "earlier does not count. Then your reward is 1 - M / 100, where M is the mean cost of all cells that you "
            "entered in this task (a cell entered twice counts twice, the start only if you enter it again). "
            "Otherwise it is 0. A move off the grid, to a cell that is neither in your row nor in your column, or to "
            "the cell you are on ends the task with 0.\n"
            "Think briefly, then end each reply with your move, like this: <answer>row R, column C</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        settings = GRID_LEVELS[level]
        grid = GridMap(draw_costs(rng, rng.randint(*settings.sizes), settings), settings.radius)
        numbers = [rng.randint(*settings.moves) for _ in range(size)]
        return [cls(grid, *grid_walk(rng, grid.size, moves), moves) for moves in numbers]

    def reset(self) -> str:
        self.cell, self.turn, self.done = self.start, 0, False
        self.n_entered = self.total_cost = 0
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return f"Costs by row and column, ?? where not revealed:\n{self.grid.draw()}\n{self._scene()}"

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        move = GRID_MOVE.fullmatch(parse_answer(reply) or "")
        if move is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>row R, column C</answer>, R and C numbers.")
        to = (int(move[1]) - 1, int(move[2]) - 1)
        if fault := self._fault(to):
            return self._end(0.0, f"Your move was illegal: {cell_name(to)} is {fault}.")
        effect = self._go(to)
        if self.turn < self.max_turns:
            return effect + self._scene(), False
        if self.cell == self.goal:
            reward = 1 - self.total_cost / self.n_entered / 100
            return self._end(reward, f"You are on the goal after {self.turn} moves, as you should be.", effect)
        return self._end(0.0, f"You are at {cell_name(self.cell)} after the last move, not on the goal.", effect)

    def shared_secret(self) -> CostMap:
        return self.grid.costs

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """The number of cells whose exact cost the hint states, and the share of them that is right (left out if there
        are none). General advice ("the north is cheap") cannot be read off."""
        return grade_costs(hint, played[0].grid.costs)

    def _fault(self, to: Cell) -> str:
        """What is illegal about a move to a cell, if anything."""
        if not (0 <= to[0] < self.grid.size and 0 <= to[1] < self.grid.size):
            return "off the grid"
        if to == self.cell:
            return "the cell you are on"
        return "" if to[0] == self.cell[0] or to[1] == self.cell[1] else "neither in your row nor in your column"

    def _go(self, to: Cell) -> str:
        """Make a legal move; says what it cost and what it revealed."""
        before, entered = set(self.grid.revealed), cells_entered(self.cell, to)
        for cell in entered:
            self.grid.reveal_around(cell)
        costs = [self.grid.costs[row][col] for row, col in entered]
        self.cell = to
        self.n_entered += len(costs)
        self.total_cost += sum(costs)
        news = self.grid.news(before)
        return f"You entered cells of cost {', '.join(map(str, costs))}.{' New on the map:' * bool(news)}\n{news}"

    def _end(self, reward: float, ending: str, effect: str = "") -> tuple[str, bool]:
        if self.n_entered:
            mean = self.total_cost / self.n_entered
            ending += f" Mean cost of the cells you entered ({self.n_entered}): {mean:.1f}."
        self.reward, self.feedback, self.done = reward, ending, True
        return effect + self.feedback, True

    def _scene(self) -> str:
        scene = f"Move {self.turn + 1} of {self.max_turns}: you are at {cell_name(self.cell)}, "
        scene += f"the goal is {cell_name(self.goal)}."
        if self.n_entered:
            scene += f" Cells entered so far: {self.n_entered}, total cost {self.total_cost}."
        return scene
