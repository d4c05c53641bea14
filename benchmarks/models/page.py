"""What has been found about types, as a line each and as docs/models.md."""

import peft
import torch
import transformers

from benchmarks.models.examine import TOLERANCE
from benchmarks.models.shapes import SHAPES
from benchmarks.models.tiny import CAUSAL

INTRODUCTION = """# Which models train here

Written by `python benchmarks/architectures.py` with transformers {transformers}, peft {peft} and torch {torch}, in
single precision on a CPU: every causal-LM type of that transformers version as a tiny random model, and the shapes of
published models cut to a few layers. Each goes the way of a training (adapter on all linear layers, sampler,
self-check); then conversations of 17 to 490 tokens and up to four turns are sampled in one batch, most of them longer
than every window (16 tokens) and than the length from which on rotary embeddings change (256).

- **sampler**: `fast`, or `generate` and why.
- **adapted**: the names of the layers with an adapter, and how much of the weights between embedding and output head
  they hold.
- **gap**: between the log-probabilities of the sampler and of the trainer, in nats per token, largest and mean, with a
  fresh and with a random adapter (the larger one). Above {tolerance:g} a type counts as wrong, also where the model's
  own forward pass on one conversation is as far from the sampler.
- **again**: how far log-probabilities are off after the adapter was saved and read into a fresh model; **merged**:
  after it was merged into a model that transformers loads by itself.

| | types of {n_types} | shapes of {n_shapes} |
|---|---|---|
{counts}
"""
TITLES = {
    "trains": "Trains",
    "wrong": "Accepted, and wrong",
    "error": "Ends in a traceback",
    "refused": "Refused, with the reason",
    "not built": "Not tried",
}


def summary(found: dict) -> str:
    if found["outcome"] == "trains":
        return (
            f"{found['sampler']}, {found['adapted']}, gap {found['largest']:.1e} at most, {found['mean']:.1e} in the "
            f"mean, read again {shown(found['reload'])}, merged {shown(found['merged'])}, {found['seconds']} s"
        )
    place = f" @ {found['place']}" if "place" in found else ""
    return f"[{found.get('stage', '')}] {found['reason']}{place}"


def shown(difference: float | str) -> str:
    """How far predictions are off, or why there are none."""
    return difference if isinstance(difference, str) else f"{difference:.0e}"


def report(found: dict[str, dict]) -> str:
    """docs/models.md"""
    found = {name: found[name] for name in [*SHAPES, *sorted(CAUSAL)] if name in found}
    groups = {title: [f for f in found.values() if f["outcome"] == outcome] for outcome, title in TITLES.items()}
    counts = [
        f"| {title.lower()} | {len(group) - n_shapes} | {n_shapes} |"
        for title, group in groups.items()
        for n_shapes in [sum(f["type"] in SHAPES for f in group)]
        if group
    ]
    n_shapes = sum(name in SHAPES for name in found)
    lines = [
        INTRODUCTION.format(
            transformers=transformers.__version__, peft=peft.__version__, torch=torch.__version__.split("+")[0],
            tolerance=TOLERANCE, n_types=len(found) - n_shapes, n_shapes=n_shapes, counts="\n".join(counts),
        )
    ]  # fmt: skip
    for title, group in groups.items():
        if not group:
            continue
        lines.append(f"## {title}\n")
        if title == "Trains":
            lines += ["| type | sampler | adapted | gap, largest | mean | again | merged |", "|" + "---|" * 7]
        else:
            lines += ["| type | |", "|---|---|"]
        lines += map(row, group)
        lines.append("")
    return "\n".join(lines)


def row(found: dict) -> str:
    name = found["type"] + (f" ({SHAPES[found['type']][0]})" if found["type"] in SHAPES else "")
    if found["outcome"] == "trains":
        why, *notes = found["why"].removeprefix("sampler ").split("; ")  # of the fast one the notes are enough
        sampler = "; ".join(["fast" if found["sampler"] == "fast" else why, *notes])
        gaps = f"{found['largest']:.0e} | {found['mean']:.0e}"
        cells = [name, sampler, found["adapted"], gaps, shown(found["reload"]), shown(found["merged"])]
    else:
        cells = [name, found["reason"].replace("|", "\\|") + (f" ({found['place']})" if "place" in found else "")]
    return f"| {' | '.join(cells)} |"
