"""Alchemy-Random: make a target element by combining elements two at a time; which pairs make what is hidden.

The recipes of a pack are random and the same in all its tasks; each task has a target of its own. Where the rules leave
a choice open: a recipe may take an element twice (a tier can have a single element, and the next one is made from it);
the number of recipes is drawn for each element; both levels have 3 or 4 tiers. The tiny levels are ours (tiny.py).
"""

import random
import re
import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from environments.alchemy.grades import grade_recipes
from environments.alchemy.tiny import TINY_LEVELS, TinyAlchemy
from environments.task import Task, parse_answer

ElementPair = tuple[str, str]  # two names in alphabetical order; they may be the same


@dataclass(frozen=True)
class AlchemyLevel:
    bases: tuple[int, int]  # the number of base elements (tier 0) is drawn from this range
    shrink: tuple[float, float]  # and so is the size of a tier, as a share of the tier below,
    recipes: tuple[int, int]  # the number of recipes of each element,
    lower: tuple[float, float]  # the probability that the second input comes from a lower tier than the first,
    noise: tuple[float, float]  # and the number of noise elements, as a share of their tier
    limited: bool  # whether combining two elements uses them up
    max_turns: int
    tiers: tuple[int, int] = (3, 4)
    gap: int = 1  # how many tiers below the first input the second can come from
    noise_rounds: int = 2
    spare: tuple[float, float] = (1.5, 2.0)  # limited material: units at the start, in units needed


ALCHEMY_LEVELS = {
    "train": AlchemyLevel((3, 4), (0.4, 0.6), (1, 1), (0.0, 0.1), (0.0, 0.0), limited=False, max_turns=8),
    "hard": AlchemyLevel((4, 6), (0.4, 0.8), (1, 2), (0.0, 0.05), (0.0, 0.3), limited=True, max_turns=15),
}


def element_pair(a: str, b: str) -> ElementPair:
    return (a, b) if a <= b else (b, a)


@dataclass(frozen=True)
class RecipeGraph:
    """What can be made from what. No target needs a noise element, so they lead nowhere useful."""

    tiers: tuple[tuple[str, ...], ...]  # every element by tier, in alphabetical order
    recipes: dict[ElementPair, str]  # what a pair makes; the pairs that are not here make nothing
    noise: frozenset[str]

    def trees(self, element: str) -> list[Counter[str]]:
        """Every tree of recipes that makes one unit, as the units of each base element that it takes."""
        if element in self.tiers[0]:
            return [Counter([element])]
        pairs = [pair for pair, product in self.recipes.items() if product == element]
        return [first + second for a, b in pairs for first in self.trees(a) for second in self.trees(b)]

    def need(self, element: str) -> int:
        """The most of any one base element that making one unit takes on the cheapest tree: that with the fewest units
        (hence steps, one less than units); of several, the one where this is lowest."""
        return min((units.total(), max(units.values())) for units in self.trees(element))[1]


def draw_element_names(rng: random.Random) -> Iterator[str]:
    """Endless random names, all different."""
    seen = set()
    while True:
        name = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 5)))
        if name not in seen:
            seen.add(name)
            yield name


def draw_recipe_graph(rng: random.Random, level: AlchemyLevel) -> RecipeGraph:
    """A random graph of the level.

    Every element that is not noise has a recipe: at most round(0.8 n) elements with 2 recipes each cannot use up the
    n (n + 1) / 2 pairs within the tier below, or the n^2 or more with the tier under that, before the last one has any.
    """
    names = draw_element_names(rng)
    shrink, lower, noise = rng.uniform(*level.shrink), rng.uniform(*level.lower), rng.uniform(*level.noise)
    sizes = [rng.randint(*level.bases)]
    for _ in range(rng.randint(*level.tiers) - 1):
        sizes.append(max(1, round(sizes[-1] * shrink)))
    tiers = [[next(names) for _ in range(size)] for size in sizes]
    recipes: dict[ElementPair, str] = {}

    def add_recipes(element: str, tier: int) -> bool:
        """Give the element its recipes; whether there was a pair left for any."""
        for _ in range(rng.randint(*level.recipes)):
            pair = draw_free_pair(rng, tiers[:tier], lower, level.gap, recipes)
            if pair is not None:
                recipes[pair] = element
        return element in recipes.values()

    for tier in range(1, len(sizes)):
        for element in tiers[tier]:
            add_recipes(element, tier)
    useful = {element for tier in tiers for element in tier}
    for part in range(level.noise_rounds):
        for tier in range(1, len(sizes)):
            for _ in range(round(noise * sizes[tier] / 2**part)):  # later rounds add half as many
                element = next(names)
                if add_recipes(element, tier):
                    tiers[tier].append(element)
    everything = frozenset(element for tier in tiers for element in tier)
    return RecipeGraph(tuple(tuple(sorted(tier)) for tier in tiers), recipes, everything - useful)


def draw_free_pair(
    rng: random.Random, below: list[list[str]], lower: float, gap: int, recipes: dict[ElementPair, str]
) -> ElementPair | None:
    """A pair that makes nothing yet: the first input from the last tier of `below`, the second from that tier too, or
    (probability `lower`) from one of the `gap` tiers under it. None if no such pair is left."""
    seconds = below[-1]
    if len(below) > 1 and rng.random() < lower:
        seconds = [element for tier in below[-1 - gap : -1] for element in tier]
    free = [element_pair(a, b) for a in below[-1] for b in seconds if element_pair(a, b) not in recipes]
    return rng.choice(free) if free else None


def draw_target_elements(rng: random.Random, graph: RecipeGraph, size: int) -> list[str]:
    """`size` targets, all different as long as there are enough. Tier t is drawn with weight t + 1."""
    left = [[element for element in tier if element not in graph.noise] for tier in graph.tiers]
    targets: list[str] = []
    while len(targets) < size and any(left[1:]):
        weights = [tier + 1 if tier and left[tier] else 0 for tier in range(len(left))]
        [elements] = rng.choices(left, weights)
        targets.append(elements.pop(rng.randrange(len(elements))))
    rng.shuffle(targets)
    return [targets[j % len(targets)] for j in range(size)]


class Alchemy(Task):
    """Make the target out of the base elements; the recipes are the pack's secret.

    The turns always suffice for a player who knows the recipes: the highest tier is 3, so 2^3 - 1 steps make anything.
    So does limited material: the start holds at least as many units of every base element as are needed of any.
    """

    levels = (*TINY_LEVELS, *ALCHEMY_LEVELS)

    def __init__(self, graph: RecipeGraph, target: str, level: AlchemyLevel, units: int = 1):
        self.graph = graph
        self.target = target
        self.level = level
        self.units = units  # of each base element at the start; 1 stands for any number where nothing is used up
        self.max_turns = level.max_turns
        material = "Nothing is ever used up. "
        if level.limited:
            material = (
                "A combination uses up one unit of each of its two elements, whether it makes something or not. "
                "The task is lost when fewer than two units are left. "
            )
        self.rules = (
            "You are an alchemist. Make the target element to win.\n"
            "Each turn you combine two elements that you own, or one element with itself. "
            "Some pairs make a new element, the others make nothing. You are not told which, "
            "but they are the same in every task of this series. The order within a pair does not matter. "
            "Elements have tiers. You start with those of tier 0. "
            "Every other one is made from an element of the tier just below its own and a second one, "
            "mostly from that tier too, now and then from a lower one. Not every element is of use. "
            f"{material}"
            "Naming an element that you do not own takes a turn, and nothing happens.\n"
            f"You have {self.max_turns} turns. Think briefly, then end each reply with the two elements to combine, "
            "like this: <answer>name + name</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        if level in TINY_LEVELS:
            return TinyAlchemy.make_tasks(rng, size, level)
        settings = ALCHEMY_LEVELS[level]
        graph = draw_recipe_graph(rng, settings)
        tasks: list[Task] = []
        for target in draw_target_elements(rng, graph, size):
            units = round(rng.uniform(*settings.spare) * graph.need(target)) if settings.limited else 1
            tasks.append(cls(graph, target, settings, units))
        return tasks

    def reset(self) -> str:
        self.stock = dict.fromkeys(self.graph.tiers[0], self.units)  # units of every element owned so far
        self.discovered: set[ElementPair] = set()  # pairs that made something
        self.turn, self.done = 0, False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        tiers = "\n".join(f"Tier {tier}: {', '.join(elements)}" for tier, elements in enumerate(self.graph.tiers))
        return f"{tiers}\n{self._scene()}"

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        named = re.fullmatch(r"([a-z]{1,20}) ?\+ ?([a-z]{1,20})", parse_answer(reply) or "")
        if named is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>name + name</answer>.")
        effect = self._combine(named[1], named[2]) + "\n"
        if self.target in self.stock:
            return self._end(1.0, f"You made the target {self.target}.", effect)
        if self.level.limited and sum(self.stock.values()) < 2:
            return self._end(0.0, f"Fewer than two units are left, and {self.target} is not made.", effect)
        if self.turn == self.max_turns:
            return self._end(0.0, f"You ran out of turns before making {self.target}.", effect)
        return effect + self._scene(), False

    def shared_secret(self) -> frozenset[tuple[ElementPair, str]]:
        return frozenset(self.graph.recipes.items())

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """The share "kept" of the recipes discovered in the rollout so far that the hint states, left out while there
        are none, and the number of "invented" ones, false recipes that it states."""
        discovered = set().union(*(task.discovered for task in played))
        graph = played[0].graph
        return grade_recipes(hint, graph.recipes, discovered, frozenset().union(*graph.tiers))

    def _combine(self, a: str, b: str) -> str:
        """Carry out a + b; returns what happened."""
        obstacles = [self._obstacle(name) for name in dict.fromkeys((a, b)) if not self.stock.get(name)]
        if not obstacles and self.level.limited and a == b and self.stock[a] == 1:
            obstacles = [f"you own only one {a}"]
        if obstacles:
            return f"Nothing happened: {' and '.join(obstacles)}."
        if self.level.limited:
            self.stock[a] -= 1
            self.stock[b] -= 1
        product = self.graph.recipes.get(element_pair(a, b))
        if product is None:
            return f"{a} + {b} made nothing."
        self.discovered.add(element_pair(a, b))
        self.stock[product] = self.stock.get(product, 0) + 1 if self.level.limited else 1
        return f"{a} + {b} made {product}."

    def _obstacle(self, name: str) -> str:
        return f"{name} is used up" if name in self.stock else f"you do not own {name}"

    def _end(self, reward: float, feedback: str, effect: str = "") -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return effect + feedback, True

    def _scene(self) -> str:
        owned = [(name, self.stock.get(name)) for tier in self.graph.tiers for name in tier if self.stock.get(name)]
        items = [f"{units} {name}" if self.level.limited else name for name, units in owned]
        return f"Turn {self.turn + 1} of {self.max_turns}, target {self.target}. You own: {', '.join(items)}."
