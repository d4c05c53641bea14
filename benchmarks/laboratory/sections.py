"""An experiment, and its section of the report: tables, a picture, claims."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.laboratory.claims import Claim, Values, estimate
from benchmarks.laboratory.jobs import Scale, Want
from benchmarks.laboratory.results import Found
from evaluation.tables import markdown


@dataclass(frozen=True)
class Section:
    """`tables` are (caption, markdown); `picture` makes the figure."""

    tables: list[tuple[str, str]]
    claims: list[Claim]
    picture: Callable[[], Figure]


@dataclass(frozen=True)
class Experiment:
    number: int
    name: str
    title: str
    question: str
    wants: Callable[[Scale], list[Want]]
    section: Callable[[Found], Section]


def cell(values: Values) -> str:
    """Mean and standard deviation over seeds."""
    found = estimate(values)
    if found is None:
        return "-"
    return f"{found.mean:.2f}" if math.isnan(found.deviation) else f"{found.mean:.2f} ({found.deviation:.2f})"


def positions(rows: Sequence[tuple[str, dict[int, Tensor]]]) -> str:
    """Success by position and the gap; a row is its title and seed -> packs [P, S]. Of long packs every fourth position
    after the first ones."""
    size = max((packs.shape[1] for _, found in rows for packs in found.values()), default=0)
    shown = [j for j in range(size) if j < 4 or j % 4 == 3]
    lines = []
    for title, found in rows:
        cells = [cell({seed: packs[:, j] for seed, packs in found.items()}) for j in shown]
        gap = cell({seed: packs[:, -1] - packs[:, 0] for seed, packs in found.items()})
        lines.append([title, *cells, gap, str(len(found))])
    return markdown(["success", *(f"position {j}" for j in shown), "gap", "seeds"], lines)


def checks(claim: Claim) -> str:
    """A row for each check: its estimate with the interval, what is expected, and the verdict."""
    rows = []
    for check in claim.checks:
        found = check.estimate
        text, seeds = (found.text, found.seeds) if found else ("-", 0)
        rows.append([check.what, text, check.expected, str(seeds), check.verdict])
    return markdown(["", "mean, 95 % interval", "expected", "seeds", "verdict"], rows)


def over_seeds(found: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """seed -> packs [P, S]: mean and standard deviation over seeds, [S] each (0 for one seed)."""
    means = torch.stack([packs.mean(dim=0) for packs in found.values()])  # [seeds, S]
    return means.mean(dim=0), means.std(dim=0) if len(means) > 1 else torch.zeros(means.shape[1])
