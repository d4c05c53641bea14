"""From numbers to a verdict, by one rule.

A claim names quantities and the range in which each ought to lie: a gain above 0, a loss of at most a tenth. Each seed
gives a value of its own, on packs of its own, paired by pack where two policies are compared; so the t interval over
seeds covers training, packs and sampling. A check agrees if the whole interval lies within the range, disagrees if all
of it lies outside, and otherwise cannot be told; from one seed nothing can. A claim agrees if all of its checks do, and
disagrees if one does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.statistics import interval

AGREES, DISAGREES, CANNOT = "agrees", "disagrees", "cannot be told"
# 97.5 % points of Student's t with 1, 2, ... degrees of freedom
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)
MOST_SEEDS = len(T) + 1

Values = Mapping[int, Tensor]  # seed -> a quantity of every pack [P], or one number [1]


@dataclass(frozen=True)
class Estimate:
    """A quantity over seeds: mean, standard deviation (nan for one seed), and the 95 % interval of the mean; with one
    seed that over its packs, or (nan, nan) where there is only one number."""

    seeds: int
    mean: float
    deviation: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """Mean with its interval, bold if that leaves out 0."""
        if math.isnan(self.low):
            return f"{self.mean:+.2f}"
        text = f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def estimate(values: Values) -> Estimate | None:
    """Over the seeds that there are; None without any."""
    if not values:
        return None
    means = torch.stack([each.double().mean() for each in values.values()])  # [seeds]
    mean = means.mean().item()
    if len(means) > 1:
        deviation = means.std().item()
        half = T[len(means) - 2] * deviation / math.sqrt(len(means))
        return Estimate(len(means), mean, deviation, mean - half, mean + half)
    [alone] = values.values()  # [P]
    if len(alone) == 1:
        return Estimate(1, mean, math.nan, math.nan, math.nan)
    _, [low], [high] = interval(alone.float()[:, None])
    return Estimate(1, mean, math.nan, low, high)


def minus(first: Values, second: Values) -> Values:
    """Differences on the seeds that both have, pack by pack."""
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def average(several: Sequence[Values]) -> Values:
    """Of quantities whose packs may differ: the mean of their means [1], on the seeds that all have."""
    seeds = set.intersection(*(set(values) for values in several)) if several else set()
    return {seed: torch.stack([values[seed].mean() for values in several]).mean()[None] for seed in sorted(seeds)}


@dataclass(frozen=True)
class Check:
    """One quantity of a claim, and the range in which it ought to lie."""

    what: str
    values: Values
    above: float = -math.inf
    below: float = math.inf

    @property
    def estimate(self) -> Estimate | None:
        return estimate(self.values)

    @property
    def verdict(self) -> str:
        found = self.estimate
        if found is None or found.seeds == 1:
            return CANNOT
        if self.above < found.low and found.high < self.below:
            return AGREES
        return DISAGREES if found.high < self.above or found.low > self.below else CANNOT

    @property
    def expected(self) -> str:
        if self.above == -math.inf:
            return f"below {self.below:g}"
        return f"above {self.above:g}" if self.below == math.inf else f"{self.above:g} to {self.below:g}"


@dataclass(frozen=True)
class Claim:
    statement: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        verdicts = [check.verdict for check in self.checks]
        if DISAGREES in verdicts:
            return DISAGREES
        return AGREES if verdicts and set(verdicts) == {AGREES} else CANNOT

    @property
    def sentence(self) -> str:
        """The verdict, and of how many checks it is made."""
        verdicts = [check.verdict for check in self.checks]
        counts = [f"{verdicts.count(v)} {v}" for v in (AGREES, DISAGREES, CANNOT) if v in verdicts]
        alone = len(verdicts) == 1
        return f"{self.statement}: **{self.verdict}**" + ("." if alone else f" ({', '.join(counts)}).")
