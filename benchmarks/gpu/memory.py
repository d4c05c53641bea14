"""Part 4: peaks of memory, those that the files in configs/ name and those of the table of memory.py."""

import re
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from benchmarks import memory
from benchmarks.gpu.common import CUDA, REHEARSAL, Figures
from engine.command_line import parse_flags
from engine.models import REPO
from engine.processes import bitsandbytes


def memory_peaks(figure: Figures, _folder: Path, _seconds: float) -> None:
    transformers.utils.logging.set_verbosity_error()
    unit = "GiB" if CUDA else "GiB, computed"
    todo: list[tuple[str, memory.Settings, list[str]]] = []
    for file in sorted((REPO / "configs").glob("gpu-*.yaml")):
        peaks = re.search(r"([0-9.]+) GiB in training, ([0-9.]+) GiB in rollouts", file.read_text())
        todo.append((file.name, parse_flags(memory.Settings, [str(file)]), [f"<= {peak}" for peak in peaks.groups()]))
    for settings in sorted(memory.table(), key=lambda s: -s.episode_tokens):
        bits = "4 bits" if settings.load_in_4bit else "bfloat16"
        todo.append((f"{settings.model}, {bits}, episodes of {settings.episode_tokens}", settings, ["", ""]))
    if REHEARSAL:
        little = {"model": "tiny", "rollouts_at_once": 4, "kv_tokens": 0}
        little |= {"episode_tokens": 256, "tokens_per_microbatch": 256}
        todo = [(name, replace(s, **little), goals) for name, s, goals in todo[:2]]
    for name, settings, goals in todo:
        if settings.load_in_4bit and bitsandbytes is None:
            figure(f"peak, {name}", "not measured: bitsandbytes is not installed")
            continue
        try:
            found = memory.peaks(settings)
        except torch.OutOfMemoryError as error:
            print(error)
            found = None
        for phase, i in (("training", 0), ("rollouts", 1)):
            figure(f"peak in {phase}, {name}", found[i] if found else "out of memory", unit, goals[i])
