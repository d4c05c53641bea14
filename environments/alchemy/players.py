"""Scripted players of Alchemy-Random: random, informed and learner."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from environments.alchemy.task import Alchemy, ElementPair, element_pair
from environments.alchemy.tiny import TINY_LEVELS, TinyAlchemy
from environments.alchemy.tiny_players import TinyDemonstrator, TinyInformed, TinyLearner, TinyRandom
from environments.player import InformedPlayer, Player, update_reply
from environments.tables import ByTask

Stock = dict[str, int]  # units owned of each element
Steps = tuple[ElementPair, ...]  # pairs to combine, in order
ELEMENT = "[a-z]{3,5}"
ELEMENTS = f"{ELEMENT}(?:, {ELEMENT})*"


def alchemy_action(pair: ElementPair) -> str:
    return f"<answer>{pair[0]} + {pair[1]}</answer>"


def owned_pairs(stock: Stock, limited: bool) -> list[ElementPair]:
    """All pairs that can be combined; one unit is enough for a pair of the same if nothing is ever used up."""
    pairs = itertools.combinations_with_replacement([name for name, units in stock.items() if units], 2)
    return [element_pair(a, b) for a, b in pairs if a != b or not limited or stock[a] > 1]


def ways_to_get(
    needs: tuple[str, ...], stock: Stock, recipes: dict[ElementPair, str], limited: bool
) -> Iterator[tuple[Steps, Stock]]:
    """All ways to have a unit of each of `needs` at hand: the steps that make those not owned, and what is then left
    beside them (all of it, if nothing is ever used up). One that is owned is never made anew."""
    if not needs:
        yield (), stock
        return
    first, rest = needs[0], needs[1:]
    if stock.get(first, 0) > 0:
        left = {**stock, first: stock[first] - 1} if limited else stock
        yield from ways_to_get(rest, left, recipes, limited)
        return
    for pair in [pair for pair, product in recipes.items() if product == first]:
        for making, left in ways_to_get(pair, stock, recipes, limited):
            for steps, remaining in ways_to_get(rest, left if limited else {**left, first: 1}, recipes, limited):
                yield (*making, pair, *steps), remaining


def shortest_way(needs: tuple[str, ...], stock: Stock, recipes: dict[ElementPair, str], limited: bool) -> Steps | None:
    """The fewest steps to have a unit of each of `needs`; None if the recipes and the stock do not allow it."""
    return min((steps for steps, _ in ways_to_get(needs, stock, recipes, limited)), key=len, default=None)


@dataclass(frozen=True)
class AlchemyView:
    """What an Alchemy conversation says, hints included: what pairs make, and the state of the task."""

    recipes: dict[ElementPair, str]
    nothing: tuple[ElementPair, ...]  # pairs known to make nothing
    tiers: tuple[tuple[str, ...], ...]
    target: str
    stock: Stock
    limited: bool
    turns_left: int


def read_alchemy(messages: list[dict]) -> AlchemyView:
    """Parse a solve-task or update-context conversation of Alchemy. (The update's stock may be a turn old.)"""
    text = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    made = re.findall(rf"^(?:- )?({ELEMENT}) \+ ({ELEMENT}) (?:=|made) ({ELEMENT})\.?$", text, re.MULTILINE)
    recipes = {element_pair(a, b): product for a, b, product in made}
    lists = re.findall(rf"^- ({ELEMENT}) makes nothing with ({ELEMENTS})$", text, re.MULTILINE)
    empty = [(a, b) for a, partners in lists for b in partners.split(", ")]
    empty += re.findall(rf"^({ELEMENT}) \+ ({ELEMENT}) made nothing\.$", text, re.MULTILINE)
    nothing = tuple(dict.fromkeys(element_pair(a, b) for a, b in empty))
    tiers = tuple(tuple(names.split(", ")) for names in re.findall(rf"^Tier [0-9]: ({ELEMENTS})$", text, re.MULTILINE))
    scenes = re.findall(rf"^Turn ([0-9]+) of ([0-9]+), target ({ELEMENT})\. You own: (.*)\.$", text, re.MULTILINE)
    turn, turns, target, owned = scenes[-1]
    items = re.findall(rf"(?:([0-9]+) )?({ELEMENT})", owned)
    stock = {name: int(units or 1) for units, name in items}
    return AlchemyView(recipes, nothing, tiers, target, stock, items[0][0] != "", int(turns) - int(turn) + 1)


class AlchemyRandom(Player):
    """Combines two elements that it owns, all pairs equally likely."""

    def act(self, messages: list[dict]) -> str:
        view = read_alchemy(messages)
        return alchemy_action(self.rng.choice(owned_pairs(view.stock, view.limited)))


class AlchemyInformed(InformedPlayer):
    """Makes the target in the fewest steps, which the turns and the material at the start always suffice for."""

    def plan(self, task: Alchemy) -> str:
        limited = task.level.limited
        way = shortest_way((task.target,), task.stock, task.graph.recipes, limited)
        return alchemy_action((way or owned_pairs(task.stock, limited))[0])  # any pair if the target is out of reach


class AlchemyLearner(Player):
    """Follows known recipes where they lead to the target, and otherwise tries the pair that most likely helps.

    It hands down every recipe and every pair that makes nothing. Its beliefs about the others are those of the rules:
    an element of tier t is made from two of tier t - 1 or, rarely (LOWER), from one of tier t - 1 and one of t - 2,
    and all such pairs are equally likely as long as nothing is known about them.
    """

    LOWER = 0.05
    LATER = 0.05  # the worth, for later tasks, of a recipe of an element that the target does not need (1: it does)
    SCARCE = 4.0  # what using up the last unit of an element costs, in turns; one of two units costs half as much

    def act(self, messages: list[dict]) -> str:
        view = read_alchemy(messages)
        way = shortest_way((view.target,), view.stock, view.recipes, view.limited)
        if way is None or len(way) > view.turns_left:
            way = self.exploration(view)
        return alchemy_action(way[0])

    def exploration(self, view: AlchemyView) -> Steps:
        """The steps to try the pair with the most promise for what it costs: turns, and units of what is scarce."""
        best, most = tuple(owned_pairs(view.stock, view.limited)), 0.0  # any pair, if none has promise
        for pair, promise in self.promises(view).items():
            way = shortest_way(pair, view.stock, view.recipes, view.limited)
            if way is None or len(way) >= view.turns_left:
                continue
            cost = len(way) + 1 + self.SCARCE * sum(1 / view.stock.get(name, 1) for name in pair)
            if promise / cost > most:
                best, most = (*way, pair), promise / cost
        return best

    def promises(self, view: AlchemyView) -> dict[ElementPair, float]:
        """How likely each untried pair makes something that the target needs.

        From the target down: an element with a known recipe passes its need on to its inputs, one without passes it on
        to all untried pairs that may make it, each in proportion to its probability.
        """
        need = {name: self.LATER for tier in view.tiers[1:] for name in tier} | {view.target: 1.0}
        known = {product: pair for pair, product in view.recipes.items()}
        promise: dict[ElementPair, float] = {}
        for tier in range(len(view.tiers) - 1, 0, -1):
            chances = self.chances(view, tier)
            for element in view.tiers[tier]:
                if view.stock.get(element, 0):
                    continue
                if element in known:
                    sources = {known[element]: 1.0}
                else:
                    sources = chances
                    for pair, chance in chances.items():
                        promise[pair] = promise.get(pair, 0.0) + need[element] * chance
                for pair, chance in sources.items():
                    for name in set(pair) - set(view.tiers[0]):  # needed for this element or for another one
                        need[name] = 1 - (1 - need[name]) * (1 - need[element] * chance)
        return promise

    def chances(self, view: AlchemyView, tier: int) -> dict[ElementPair, float]:
        """The untried pairs that may make an element of the tier, and how likely each makes a given one."""
        below = view.tiers[tier - 1]
        lower = view.tiers[tier - 2] if tier > 1 else ()
        weights: dict[ElementPair, float] = {}
        for seconds, weight in ((below, 1 - self.LOWER), (lower, self.LOWER)):
            for a, b in itertools.product(below, seconds):
                pair = element_pair(a, b)
                if pair not in view.recipes and pair not in view.nothing:
                    weights[pair] = weights.get(pair, 0.0) + weight / len(below) / len(seconds)
        total = sum(weights.values())
        return {pair: weight / total for pair, weight in weights.items()}

    def hint(self, messages: list[dict]) -> str:
        view = read_alchemy(messages)
        lines = [f"- {a} + {b} = {product}" for (a, b), product in view.recipes.items()]
        partners: dict[str, list[str]] = {}
        for a, b in view.nothing:
            partners.setdefault(a, []).append(b)
        lines += [f"- {a} makes nothing with {', '.join(names)}" for a, names in partners.items()]
        return update_reply(lines or ["- nothing known"])


PLAYERS = {
    "random": partial(ByTask, {Alchemy: AlchemyRandom, TinyAlchemy: TinyRandom}),
    "informed": partial(ByTask, {Alchemy: AlchemyInformed, TinyAlchemy: TinyInformed}),
    "learner": partial(ByTask, {Alchemy: AlchemyLearner, TinyAlchemy: TinyLearner}),
}
DEMONSTRATORS = dict.fromkeys(TINY_LEVELS, TinyDemonstrator)
