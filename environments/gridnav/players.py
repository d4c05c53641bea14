"""Scripted players of GridNav: random, informed, learner. The last two plan exactly, with true or estimated costs."""

import functools
import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from operator import mul

from environments.gridnav.task import CostMap, GridNav, cells_entered
from environments.player import InformedPlayer, Player, update_reply
from environments.task import Cell, cell_name


@functools.cache
def grid_sweeps(size: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Every line of the grid in both directions, as pairs (cell, next cell) from its far end back.

    Here and in `lightest_path` a cell is the number row * size + column.
    """
    lines = [range(row * size, (row + 1) * size) for row in range(size)]
    lines += [range(col, size * size, size) for col in range(size)]
    lines += [line[::-1] for line in lines]
    return tuple(tuple(zip(line[-2::-1], line[:0:-1], strict=True)) for line in lines)


def lightest_path(weights: list[int], size: int, start: int, goal: int, moves: int) -> list[int]:
    """The destinations of `moves` moves from start to goal that enter the least weight in sum (dynamic programming)."""
    least: list[float] = [math.inf] * size**2  # weight still to enter from each cell, with no move left at first
    least[goal] = 0
    choices = []  # choices[k][cell]: the best destination from there with k + 1 moves left
    for _ in range(moves):
        after, least, choice = least, [math.inf] * size**2, [goal] * size**2
        for sweep in grid_sweeps(size):
            weight, end = math.inf, goal  # the best move along this line from the cell at hand, and where it ends
            for cell, entered in sweep:
                if after[entered] <= weight:  # end here rather than go on
                    weight, end = after[entered], entered
                weight += weights[entered]
                if weight < least[cell]:
                    least[cell], choice[cell] = weight, end
        choices.append(choice)
    return list(itertools.accumulate(reversed(choices), lambda cell, choice: choice[cell], initial=start))[1:]


def least_mean_path(
    costs: CostMap, start: Cell, goal: Cell, moves: int, n_entered: int = 0, total_cost: int = 0
) -> list[Cell]:
    """The destinations of `moves` moves from start to goal with the least mean cost of the cells entered, exactly.

    `n_entered` cells of cost `total_cost` in sum were entered before and count in the mean. A ratio of sums is least
    where the path that is lightest with the weights cost - m has a mean of m (Dinkelbach's method: m, the mean of the
    last lightest path, falls until it does). Weights are kept whole numbers, so nothing is rounded. There must be a
    path; with 2 moves or more there always is one, but on a side of 2.
    """
    size, flat = len(costs), [cost for row in costs for cost in row]
    mean = Fraction(5)  # any number will do; near the answer saves rounds
    while True:
        weights = [cost * mean.denominator - mean.numerator for cost in flat]
        ends = lightest_path(weights, size, start[0] * size + start[1], goal[0] * size + goal[1], moves)
        path = [divmod(end, size) for end in ends]
        entered = [cell for leg in itertools.pairwise([start, *path]) for cell in cells_entered(*leg)]
        total = total_cost + sum(costs[row][col] for row, col in entered)
        before, mean = mean, Fraction(total, n_entered + len(entered))
        if mean == before:
            return path


# ---------------------------------------------------------------------------------------------------------
# What a conversation says

GRID_NUMBER = "([0-9]{1,9})"
GRID_CELL = f"row {GRID_NUMBER}, column {GRID_NUMBER}"
GRID_SIZE = re.compile(f"^You are on a grid of {GRID_NUMBER} rows", re.MULTILINE)
GRID_SCENE = re.compile(
    rf"^Move {GRID_NUMBER} of {GRID_NUMBER}: you are at {GRID_CELL}, the goal is {GRID_CELL}\."
    rf"(?: Cells entered so far: {GRID_NUMBER}, total cost {GRID_NUMBER}\.)?$",
    re.MULTILINE,
)
# a row of the map, what a move revealed of a row, or a line of the learner's hint
GRID_ROW = re.compile("^ ?(?:Row |- row )?([0-9]{1,2})(?: from column ([0-9]{1,2}))?: ([ 0-9?]+)$", re.MULTILINE)


@dataclass(frozen=True)
class GridView:
    size: int
    cell: Cell
    goal: Cell
    moves_left: int
    n_entered: int
    total_cost: int
    known: dict[Cell, int]  # cell -> cost, from the hints and from the map


def read_grid(messages: list[dict]) -> GridView:
    """Parse a solve-task or update-context conversation of GridNav. (The update's last position may be a move old.)"""
    text = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    size = int(GRID_SIZE.search(text)[1])
    move, moves, *places, n_entered, total_cost = (int(number or 0) for number in GRID_SCENE.findall(text)[-1])
    row, col, goal_row, goal_col = (place - 1 for place in places)
    known = {}
    for number, first, costs in GRID_ROW.findall(text):  # hints come first in the text, so what the map shows wins
        for column, cost in enumerate(costs.split(), start=int(first or 1)):
            if re.fullmatch("[0-9]{1,2}", cost) and 1 <= int(number) <= size and 1 <= column <= size:
                known[int(number) - 1, column - 1] = int(cost)
    return GridView(size, (row, col), (goal_row, goal_col), moves - move + 1, n_entered, total_cost, known)


def grid_answer(cell: Cell) -> str:
    return f"<answer>{cell_name(cell)}</answer>"


# ---------------------------------------------------------------------------------------------------------
# The players


class GridRandom(Player):
    """Any legal move."""

    def act(self, messages: list[dict]) -> str:
        view = read_grid(messages)
        cells = itertools.product(range(view.size), repeat=2)
        return grid_answer(self.rng.choice([c for c in cells if (c[0] == view.cell[0]) != (c[1] == view.cell[1])]))


class GridInformed(InformedPlayer):
    """Knows all costs and takes a path of the highest reward."""

    def plan(self, task: GridNav) -> str:
        moves, so_far = task.max_turns - task.turn, (task.n_entered, task.total_cost)
        return grid_answer(least_mean_path(task.grid.costs, task.cell, task.goal, moves, *so_far)[0])


class GridLearner(Player):
    """Plans with the costs that it knows and an estimate of the others, anew before every move.

    The estimate of a hidden cell is an average of the known costs, weighted by closeness, and of a prior. The prior is
    well below the mean cost of a map, which is about 25: optimism in the face of uncertainty, which leads to cells that
    nothing is known about where the known ones are worse.
    """

    prior = 10.0  # cost expected far from all known cells
    prior_weight = 0.2  # that of a known cell is 1 at no distance
    reach = 0.1  # scale of closeness, in units of the grid's side; about that of the narrowest bumps

    def estimate(self, view: GridView) -> CostMap:
        """The costs that are known, and a guess of those that are not."""
        side = range(view.size)
        scale = self.reach * view.size  # in cells
        closeness = [[math.exp(-(((i - j) / scale) ** 2) / 2) for j in side] for i in side]

        def smooth(values: list[list[float]]) -> list[list[float]]:
            """At each cell the sum of all values, weighted by closeness: along the columns, then along the rows."""
            for _ in range(2):  # each pass transposes
                values = [[sum(map(mul, line, weights)) for weights in closeness] for line in zip(*values, strict=True)]
            return values

        weight = smooth([[float((row, col) in view.known) for col in side] for row in side])
        total = smooth([[view.known.get((row, col), 0) for col in side] for row in side])

        def cost(row: int, col: int) -> int:
            guess = (self.prior_weight * self.prior + total[row][col]) / (self.prior_weight + weight[row][col])
            return view.known.get((row, col), round(guess))

        return tuple(tuple(cost(row, col) for col in side) for row in side)

    def act(self, messages: list[dict]) -> str:
        view = read_grid(messages)
        costs = self.estimate(view)
        path = least_mean_path(costs, view.cell, view.goal, view.moves_left, view.n_entered, view.total_cost)
        return grid_answer(path[0])

    def hint(self, messages: list[dict]) -> str:
        """A line for each row with known costs, from the first of them to the last, with ?? for hidden ones between."""
        view = read_grid(messages)
        lines = []
        for row in range(view.size):
            cols = [col for col in range(view.size) if (row, col) in view.known]
            if cols:
                span = (str(view.known.get((row, col), "??")) for col in range(cols[0], cols[-1] + 1))
                lines.append(f"- row {row + 1} from column {cols[0] + 1}: {' '.join(span)}")
        return update_reply(["Known costs:", *lines])


PLAYERS = {"random": GridRandom, "informed": GridInformed, "learner": GridLearner}
