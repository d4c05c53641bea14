"""Evaluations as a table and as a picture."""

from pathlib import Path

import matplotlib
import torch

from engine.settings import Config
from envs import name_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (after the choice of backend)
from matplotlib.ticker import MaxNLocator  # noqa: E402

plt.style.use("petroff10")  # a colour cycle for the colour-blind, too

MARKERS = "osD^vP*X"  # of successive lines
# label -> (colour, line); the others take the colour cycle
STYLES = {"random": ("0.7", ":"), "informed": ("0.5", "-."), "learner": ("0.3", "--")}


def table(records: list[dict], name: str = "success") -> str:
    """Records as text: a line each, mean [low, high] by position, and the gap from the first to the last of several."""
    width = max(len(record["label"]) for record in records)
    size = len(records[0][name])

    def cells(record: dict, key: str) -> list[str]:
        numbers = zip(record[key], record[f"{key}_low"], record[f"{key}_high"], strict=True)
        return [f"{mean:5.2f} [{low:5.2f},{high:5.2f}]" for mean, low, high in numbers]

    columns = [f"{text:^19}" for text in (*(f"position {j}" for j in range(size)), "gap")]
    lines = ["  ".join([" " * width, *columns[: size + (size > 1)]])]
    for record in records:
        gap = cells(record, "gap") if size > 1 else []
        lines.append("  ".join([record["label"].ljust(width), *cells(record, name), *gap]))
    return "\n".join(line.rstrip() for line in lines)


def gap_closed(records: list[dict]) -> str:
    """A line for each record that is no reference: how much of the gap from the random player to the learner it closes,
    by position: (success - random) / (learner - random). Empty without these two, and for packs of one task, in which
    nothing can be learnt."""
    at = {record["label"]: record["success"] for record in records}
    if not {"random", "learner"} <= at.keys() or len(at["random"]) == 1:
        return ""
    lines = []
    for label in at.keys() - STYLES.keys():
        shares = [
            f"{(x - low) / (high - low):.0%}" if high > low else "-"
            for x, low, high in zip(at[label], at["random"], at["learner"], strict=True)
        ]
        lines.append(f"{label}: closes {' '.join(shares)} of the gap from random to learner, by position")
    return "\n".join(sorted(lines))


def drawable(text: str) -> str:
    """Text as a picture takes it: names of files in UTF-8 whatever the locale is, and dollars that begin no formula."""
    return text.encode(errors="surrogateescape").decode(errors="replace").replace("$", r"\$")


def draw_positions(axis, records: list[dict]) -> None:
    """Success by position, one line a record, their points side by side."""
    for number, record in enumerate(records):
        mean, low, high = (torch.tensor(record[key]) for key in ("success", "success_low", "success_high"))
        colour, line = STYLES.get(record["label"], (None, "-"))
        aside = 0.04 * (number - (len(records) - 1) / 2)
        at = [position + aside for position in range(len(mean))]
        bars = torch.stack([mean - low, high - mean]).clamp(min=0)  # [2, S]
        options = {"label": drawable(record["label"]), "color": colour, "linestyle": line}
        axis.errorbar(at, mean, bars, **options, marker=MARKERS[number % len(MARKERS)], capsize=3)
    size = len(records[0]["success"])
    axis.set(xlabel="position in the pack", ylabel="success", ylim=(-0.03, 1.03), xlim=(-0.4, size - 0.6))
    axis.set_xticks(range(size))


def draw_training(axis, history: list[dict]) -> None:
    """Success of training rollouts by position over training steps, with the shares of replies and hints that could
    not be read."""
    steps, size = [h["step"] for h in history], len(history[0]["success"])
    marker = "o" if len(steps) == 1 else ""  # a single step makes no line
    for j in range(size):
        shade = plt.cm.viridis(0.85 * (1 - j / max(1, size - 1)))
        axis.plot(steps, [h["success"][j] for h in history], marker=marker, color=shade, label=f"position {j}")
    for name, line in (("broken_format", "--"), ("broken_hint", ":")):
        if name == "broken_format" or size > 1:  # without hints none can be broken
            axis.plot(
                steps, [h[name] for h in history], line, marker=marker, color="tab:red", label=name.replace("_", " ")
            )
    axis.set(xlabel="training step", ylabel="success; share of broken replies", ylim=(-0.03, 1.03))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_title("training rollouts")


def draw(records: list[dict], path: Path, title: str, history: list[dict] | None = None) -> None:
    """Success by position; with `history` (metrics of training steps) also over training."""
    figure, axes = plt.subplots(1, 2 if history else 1, figsize=(10 if history else 5.5, 4.6), squeeze=False)
    draw_positions(axes[0, 0], records)
    axes[0, 0].set_title(drawable(title), fontsize=10)
    if history:
        draw_training(axes[0, 1], history)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(folder: Path, config: Config, lines: list[dict]) -> None:
    """For every environment of a run print the table of the evaluations on the test packs and draw them, curves.png."""
    for env, level in config.env_levels:
        where = f"{name_of(env)}/{level}"
        records = [line["eval"] for line in lines if "eval" in line and line["eval"]["env"] == where]
        records = [record for record in records if record["label"] != "validation"]
        key = f"success/{where}" if len(config.env_levels) > 1 else "success"
        history = [{**line, "success": line[key]} for line in lines if "eval" not in line]
        picture = folder / (f"curves-{env}-{level}.png" if config.envs else "curves.png")
        title = f"{name_of(env)}, level {level}, {config.test_packs} packs"
        draw(records, picture, f"{title}\n{Path(config.model).name}, seed {config.seed}", history)
        print(f"\n{where}: success on {config.test_packs} fresh packs, mean and 95 % interval")
        print(*filter(None, [table(records), gap_closed(records)]), sep="\n")
        print(f"written: {picture}")
    print(f"written: {folder / 'adapter'}")
