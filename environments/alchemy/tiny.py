"""The tiny levels of Alchemy: a few elements with names that never change, one recipe for each product, no tiers.

What is made of what is the pack's secret, as on the other levels. With two turns (three on level `tiny-hard`) a player
cannot try all pairs in one task.
"""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from environments.alchemy.grades import grade_recipes
from environments.task import Task, parse_answer

ELEMENTS = ("air", "earth", "fire", "water", "wood")
PRODUCTS = ("ash", "dust", "glass", "lava", "mist")


def all_pairs(elements: Sequence[str]) -> tuple[str, ...]:
    """The pairs of two different elements, as "air + earth"."""
    return tuple(f"{a} + {b}" for a, b in itertools.combinations(elements, 2))


@dataclass(frozen=True)
class TinyLevel:
    elements: tuple[str, ...]
    products: tuple[str, ...]
    max_turns: int


TINY_LEVELS = {
    "tiny": TinyLevel(ELEMENTS[:4], PRODUCTS[:4], 2),
    "tiny-hard": TinyLevel(ELEMENTS, PRODUCTS, 3),
}


class TinyAlchemy(Task):
    """Make the target out of two elements; which pair makes which product is the pack's secret."""

    def __init__(self, secret: dict[str, str], target: str, level: TinyLevel):
        self.secret = secret  # product -> the pair that makes it
        self.target = target
        self.level = level
        self.max_turns = level.max_turns
        self.rules = (
            "You are an alchemist. Make the target to win.\n"
            "Each turn you combine two different elements. Some pairs make a product, the others make nothing. You are "
            "not told which, but they are the same in every task of this series. Nothing is ever used up.\n"
            f"The elements are {', '.join(level.elements)}. The products are {', '.join(level.products)}.\n"
            f"You have {self.max_turns} turns. Think briefly, then end each reply with the two elements to combine, "
            "in alphabetical order, like this: <answer>name + name</answer>"
        )

    @classmethod
    def make_tasks(cls, rng: random.Random, size: int, level: str) -> list[Task]:
        settings = TINY_LEVELS[level]
        pairs = rng.sample(all_pairs(settings.elements), len(settings.products))
        secret = dict(zip(settings.products, pairs, strict=True))
        return [cls(secret, rng.choice(settings.products), settings) for _ in range(size)]

    def reset(self) -> str:
        self.discovered: set[tuple[str, str]] = set()  # pairs that made something
        self.turn, self.done = 0, False
        self.reward, self.feedback, self.broken_format = 0.0, "", False
        return self._scene()

    def step(self, reply: str) -> tuple[str, bool]:
        if self.done:
            raise RuntimeError("this task is over; call reset() to play it again")
        self.turn += 1
        named = re.fullmatch(r"([a-z]{1,20}) ?\+ ?([a-z]{1,20})", parse_answer(reply) or "")
        if named is None:
            self.broken_format = True
            return self._end(0.0, "Your reply did not have the form <answer>name + name</answer>.")
        pair = " + ".join(sorted(named.groups()))
        made = next((product for product, recipe in self.secret.items() if recipe == pair), None)
        if made is not None:
            self.discovered.add(tuple(pair.split(" + ")))
            effect = f"You made {made}: {pair}.\n"
        elif pair in all_pairs(self.level.elements):
            effect = f"Nothing comes of {pair}.\n"
        else:
            effect = "Nothing happened: these are not two different elements.\n"
        if made == self.target:
            return self._end(1.0, "That is the target.", effect)
        if self.turn == self.max_turns:
            return self._end(0.0, "You ran out of turns before making the target.", effect)
        return effect + self._scene(), False

    def shared_secret(self) -> dict[str, str]:
        return self.secret

    @classmethod
    def grade_hint(cls, hint: str, played: list[Task]) -> dict[str, float]:
        """As on the other levels: the share "kept" of the recipes found so far, and the number of "invented" ones."""
        recipes = {tuple(pair.split(" + ")): product for product, pair in played[0].secret.items()}
        names = frozenset((*played[0].level.elements, *played[0].level.products))
        return grade_recipes(hint, recipes, set().union(*(task.discovered for task in played)), names)

    def _end(self, reward: float, feedback: str, effect: str = "") -> tuple[str, bool]:
        self.reward, self.feedback, self.done = reward, feedback, True
        return effect + feedback, True

    def _scene(self) -> str:
        return f"Turn {self.turn + 1} of {self.max_turns}. Make {self.target}: that is the target."
