"""Pictures of the report, 900 pixels wide: success by position, bars, matrices, lines over steps."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from benchmarks.laboratory.claims import Estimate
from benchmarks.laboratory.sections import over_seeds
from record.pictures import MARKERS

DPI, WIDTH = 100, 9.0
CYCLE = ("C0", "C1", "C2", "C4", "C6", "C9", "C5", "C7")  # without the greys
# of what is shown in several pictures; further lines take the rest of the cycle
COLOURS = {"before": "0.6", "after": "C0", "blanked": "C1", "learner": "0.2"}
Rows = Sequence[tuple[str, dict[int, Tensor]]]  # title, seed -> packs [P, S]


def panels(number: int, height: float = 3.6, layout: str = "none"):
    """A figure with so many panels in a row, and these."""
    figure, axes = plt.subplots(1, number, figsize=(WIDTH, height), squeeze=False, sharey=True, layout=layout)
    return figure, list(axes[0])


def finished(figure: Figure, axes: list, columns: int = 5) -> Figure:
    """With a grid, and one legend below all panels."""
    for axis in axes:
        axis.grid(alpha=0.3)
    found = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    rows = -(-len(found) // columns)
    figure.tight_layout(rect=(0, 0.065 * rows * 3.6 / figure.get_figheight(), 1, 1))
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def by_position(given: Sequence[tuple[str, Rows]], height: float = 3.6) -> Figure:
    """A panel for each (title, rows): mean success by position, bars of one standard deviation over seeds."""
    figure, axes = panels(len(given), height)
    titles = list(dict.fromkeys(title for _, rows in given for title, _ in rows))
    free = iter(CYCLE[2:])
    colours = {title: COLOURS.get(title) or next(free) for title in titles}
    for axis, (name, rows) in zip(axes, given, strict=True):
        for title, found in rows:
            if not found:
                continue
            mean, deviation = over_seeds(found)  # [S], [S]
            number = titles.index(title)
            at = (torch.arange(len(mean)) + 0.03 * (number - (len(titles) - 1) / 2)).tolist()
            options = {"color": colours[title], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}
            axis.errorbar(at, mean.tolist(), deviation.tolist(), label=title, capsize=2, **options)
        axis.set(xlabel="position in the pack", ylim=(-0.03, 1.03))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(name, fontsize=10)
    axes[0].set_ylabel("success")
    return finished(figure, axes)


def bars(given: Sequence[tuple[str, Sequence[tuple[str, Estimate | None]]]], label: str) -> Figure:
    """A group of bars for each (title, rows), a bar for each (name, estimate) in it, with its interval."""
    figure, [axis] = panels(1)
    names = list(dict.fromkeys(name for _, rows in given for name, _ in rows))
    width = 0.8 / len(names)
    for g, (_, rows) in enumerate(given):
        for k, (name, found) in enumerate(rows):
            if found is not None:
                at = g + width * (k - (len(rows) - 1) / 2)
                span = torch.tensor([[found.mean - found.low], [found.high - found.mean]]).nan_to_num().tolist()
                axis.bar(at, found.mean, width, yerr=span, label=name, color=CYCLE[names.index(name)], capsize=2)
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(range(len(given)), [title for title, _ in given], fontsize=8)
    axis.set_ylabel(label)
    return finished(figure, [axis])


def matrices(given: Sequence[tuple[str, Tensor]], rows: list[str], columns: list[str], label: str) -> Figure:
    """Coloured tables side by side, each (title, values [rows, columns]); what is nan is empty."""
    figure, axes = panels(len(given), 1.2 + 0.36 * len(rows), layout="constrained")
    for axis, (title, values) in zip(axes, given, strict=True):
        image = axis.imshow(values.numpy(), cmap="RdBu", vmin=-0.7, vmax=0.7, aspect="auto")
        for r, c in torch.nonzero(~values.isnan()).tolist():
            dark = abs(values[r, c]) > 0.45
            axis.text(c, r, f"{values[r, c]:+.2f}", ha="center", va="center", color="w" if dark else "k", fontsize=9)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_xlabel("tested on")
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("trained on")
    figure.colorbar(image, ax=axes, label=label, fraction=0.03)
    return figure


def over_steps(given: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]]) -> Figure:
    """A panel for each (title, rows), a line for each (name, values [seeds, steps]) in it: the mean over seeds, and a
    band of one standard deviation."""
    figure, axes = panels(len(given))
    for axis, (title, rows) in zip(axes, given, strict=True):
        for k, (name, values) in enumerate(rows):
            mean, steps = values.nanmean(dim=0), torch.arange(1, values.shape[1] + 1)  # [steps], [steps]
            axis.plot(steps, mean, color=CYCLE[k], label=name, marker="" if len(steps) > 1 else "o")
            if len(values) > 1:
                spread = values.std(dim=0)
                axis.fill_between(steps, mean - spread, mean + spread, color=CYCLE[k], alpha=0.15, lw=0)
        axis.set(xlabel="training step", ylim=(-0.03, 1.03))
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("share")
    return finished(figure, axes)
