"""What numbers a control hint states for a and b.

Read are "a = 0.83", "a is about 0.83" and the like, and the equation "v becomes 0.83*v - 1.2*u". A range, a bound or a
number that a calculation goes on with is not read.
"""

import re

from environments.task import plain

NUMBER = r"([+-]? ?(?:[0-9]{1,6}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}))"
GOES_ON = r"(?![0-9.]*[0-9e%])(?! ?(?:[*/^]|\+ ?[0-9]|(?:to|or|and|-|–) ?[0-9.+-]))"
SIGN = r"(?:[:=≈~]{1,2}|\b(?:is|was|equals)\b) ?(?:(?:about|around|roughly|approx\.?|approximately|exactly|[=≈~]) ?)?"
VALUE = re.compile(rf"(?<![\w.*/^'])([ab]) ?{SIGN}{NUMBER}{GOES_ON}")
EQUATION = re.compile(rf"{NUMBER} ?\*? ?v(?:\[t\]|_t|\(t\))? ?([+-]) ?{NUMBER} ?\*? ?u\b")


def stated_numbers(hint: str) -> dict[str, list[float]]:
    """The numbers that the hint states for "a" and for "b"."""
    text = re.sub(r"\s+", " ", plain(hint))
    stated: dict[str, list[float]] = {"a": [], "b": []}
    for name, number in VALUE.findall(text):
        stated[name].append(float(number.replace(" ", "")))
    for a, sign, b in EQUATION.findall(text):
        stated["a"].append(float(a.replace(" ", "")))
        stated["b"].append(float(f"{sign}1") * float(b.replace(" ", "")))
    return stated


def grade_numbers(hint: str, a: float, b: float) -> dict[str, float]:
    """The absolute errors "error_a" and "error_b", the worst if several numbers are stated, left out if none is."""
    stated, truth = stated_numbers(hint), {"a": a, "b": b}
    return {f"error_{name}": max(abs(x - truth[name]) for x in said) for name, said in stated.items() if said}
