"""Scripted players of FrozenLake-Obscure: random, informed and learner, and the one that imitate.py teaches."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from environments.frozenlake.task import LAKE_LEVELS, MOVES, FrozenLake, LakeMap
from environments.player import InformedPlayer, Player, update_reply
from environments.tables import Demonstrator, Table, entries, told
from environments.task import Cell

ACTIONS = ("Direction 1", "Direction 2", "Direction 3", "Direction 4")
CELL = r"row (\d), column (\d)"
MOVED = re.compile(rf"You moved(?: \w+)? with (Direction \d): {CELL} to {CELL}\.")
BLOCKED = re.compile(rf"Nothing moved with (Direction \d): still at {CELL}\.")


@dataclass(frozen=True)
class LakeView:
    """What a FrozenLake conversation says: the map with the player's cell as its start, turns left, what moves did."""

    lake: LakeMap
    turns_left: int
    effects: tuple[tuple[str, frozenset[str]], ...]  # (action, the directions that it may be, given what it did)


def read_lake(messages: list[dict]) -> LakeView:
    """Parse a solve-task or update-context conversation of FrozenLake. (The update's last map may be a turn old.)"""
    text = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    rows = [line.split() for line in re.findall(r"^[PGO_](?: [PGO_])+$", text, re.MULTILINE)]
    size = len(rows[-1])  # of an observation; what a hint says comes before
    at = {(r, c): symbol for r, row in enumerate(rows[-size:]) for c, symbol in enumerate(row)}
    holes = frozenset(cell for cell, symbol in at.items() if symbol == "O")
    goal = tuple(int(n) - 1 for n in re.findall(f"goal at {CELL}:", text)[-1])
    lake = LakeMap(size, holes, next(cell for cell, symbol in at.items() if symbol == "P"), goal)
    effects = []
    for action, *numbers in MOVED.findall(text):
        r1, c1, r2, c2 = map(int, numbers)
        effects.append((action, frozenset(name for name, step in MOVES.items() if step == (r2 - r1, c2 - c1))))
    for action, row, col in BLOCKED.findall(text):
        cell = (int(row) - 1, int(col) - 1)
        effects.append((action, frozenset(name for name in MOVES if lake.move(cell, name) == cell)))
    turn, turns = map(int, re.findall(r"Turn (\d+) of (\d+)", text)[-1])
    return LakeView(lake, turns - turn + 1, tuple(effects))


class LakeRandom(Player):
    def act(self, messages: list[dict]) -> str:
        return f"<answer>{self.rng.choice(ACTIONS)}</answer>"


class LakeInformed(InformedPlayer):
    """Walks a shortest path, which the turns always suffice for."""

    def plan(self, task: FrozenLake) -> str:
        way = best_ways(dataclasses.replace(task.lake, start=task.cell))[0]
        return f"<answer>{ACTIONS[task.mapping.index(way)]}</answer>"


def best_ways(lake: LakeMap) -> list[str]:
    """The directions that begin a shortest path from the start to the goal."""
    left = {way: dataclasses.replace(lake, start=lake.move(lake.start, way)).distance() for way in MOVES}
    safe = [way for way in MOVES if lake.move(lake.start, way) not in lake.holes | {lake.start}]
    return [way for way in safe if left[way] == min(left[w] for w in safe)]


# ---------------------------------------------------------------------------------------------------------
# The exact Bayes-optimal FrozenLake player

Mapping = tuple[str, ...]  # mapping[k - 1]: the direction of action k
Belief = tuple[Mapping, ...]  # the mappings still possible, all equally likely
ALL_MAPPINGS: Belief = tuple(itertools.permutations(MOVES))


@functools.cache
def outcomes(lake: LakeMap, cell: Cell, action: int, belief: Belief) -> tuple[tuple[Cell, Belief], ...]:
    """(cell after the action, the mappings that lead there), for every cell that some mapping leads to."""
    after: dict[Cell, list[Mapping]] = {}
    for mapping in belief:
        after.setdefault(lake.move(cell, mapping[action]), []).append(mapping)
    return tuple((to, tuple(mappings)) for to, mappings in after.items())


@functools.lru_cache(maxsize=1 << 20)
def success_count(lake: LakeMap, cell: Cell, belief: Belief, turns: int) -> int:
    """Expectimax: of the mappings in the belief, for how many optimal play reaches the goal within `turns`."""
    if cell == lake.goal:
        return len(belief)
    if cell in lake.holes or turns < abs(cell[0] - lake.goal[0]) + abs(cell[1] - lake.goal[1]):
        return 0
    return max(action_count(lake, cell, action, belief, turns) for action in range(4))


def action_count(lake: LakeMap, cell: Cell, action: int, belief: Belief, turns: int) -> int:
    """The same when the next move is `action`."""
    return sum(success_count(lake, to, rest, turns - 1) for to, rest in outcomes(lake, cell, action, belief))


class LakeLearner(Player):
    """The exact Bayes-optimal player: maximises the chance to solve the task at hand, given all seen in the pack.

    Its belief is the set of action-to-direction mappings that are still possible (24 at first). Whatever a move shows
    has the form "this action is one of these directions". So all of it is in the relation "this action may be that
    direction", which a hint lists by direction: "- up: Direction 1, Direction 4", or "unknown" for all four.
    """

    def belief(self, messages: list[dict], view: LakeView) -> Belief:
        text = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
        listed = re.findall(rf"^- ({'|'.join(MOVES)}): (Direction [1-4](?:, Direction [1-4])*)$", text, re.MULTILINE)
        hints = [(way, names.split(", ")) for way, names in listed]
        return tuple(
            mapping
            for mapping in ALL_MAPPINGS
            if all(ACTIONS[mapping.index(way)] in actions for way, actions in hints)
            and all(mapping[ACTIONS.index(action)] in ways for action, ways in view.effects)
        )

    def act(self, messages: list[dict]) -> str:
        view = read_lake(messages)
        belief = self.belief(messages, view)
        lake = view.lake
        chances = [action_count(lake, lake.start, action, belief, view.turns_left) for action in range(4)]
        return f"<answer>{ACTIONS[chances.index(max(chances))]}</answer>"

    def hint(self, messages: list[dict]) -> str:
        belief = self.belief(messages, read_lake(messages))
        lines = []
        for way in MOVES:
            possible = sorted({ACTIONS[mapping.index(way)] for mapping in belief})
            told = 0 < len(possible) < 4  # none is possible where a hint from elsewhere was wrong
            lines.append(f"- {way}: {', '.join(possible) if told else 'unknown'}")
        return update_reply(lines)


# ---------------------------------------------------------------------------------------------------------
# The player that imitate.py teaches


def lake_table(messages: list[dict]) -> Table:
    """What a conversation says of the actions, direction -> action; wanted are those along a shortest path."""
    view = read_lake(messages)
    options = dict.fromkeys(MOVES, ACTIONS)
    known = entries(told(messages), options)
    known |= {next(iter(ways)): action for action, ways in view.effects if len(ways) == 1}
    return Table(options, known, frozenset(), tuple(best_ways(view.lake)), "{}", one_of=True)


class Planner(Demonstrator):
    """Says which way it goes and keeps one hint line per direction. `plan`: how often it heads for the goal, else
    anywhere. With `spell_out` it first compares rows and columns, says which ways it considers and what it knows of
    them, and lists all it knows before a hint: steps small enough for a language model."""

    def __init__(self, seed: int | str = 0, plan: float = 1.0, spell_out: bool = False, **knobs):
        super().__init__(lake_table, seed, **knobs)
        self.plan, self.spell_out = plan, spell_out

    def act(self, messages: list[dict]) -> str:
        table = self.read(messages)
        ways = table.wanted if self.rng.random() < self.plan else tuple(MOVES)
        usable = [way for way in ways if way in table.known]
        line, action = self.choose(table, self.rng.choice(usable or ways), messages)
        reply = f"{line}\n{table.answer([action])}"
        return f"{self.compared(read_lake(messages).lake, ways, table.known)}\n{reply}" if self.spell_out else reply

    def compared(self, lake: LakeMap, ways: Sequence[str], known: dict[str, str]) -> str:
        (row, col), (to_row, to_col) = lake.start, lake.goal
        vertical = "same" if row == to_row else "down" if row < to_row else "up"
        horizontal = "same" if col == to_col else "right" if col < to_col else "left"
        recalled = ", ".join(f"{way} is {known.get(way, 'unknown')}" for way in ways)
        return (
            f"Row {row + 1} to {to_row + 1}: {vertical}. Column {col + 1} to {to_col + 1}: {horizontal}. "
            f"Good: {recalled}."
        )

    def thought(self, table: Table) -> str:
        if not self.spell_out:
            return super().thought(table)
        # in the order in which it was found out: to copy it is easier than to sort it
        found = ", ".join(f"{way} is {action}" for way, action in table.known.items())
        return f"I know: {found}." if found else "I know nothing yet."


PLAYERS = {"random": LakeRandom, "informed": LakeInformed, "learner": LakeLearner}
DEMONSTRATORS = dict.fromkeys(LAKE_LEVELS, Planner)
