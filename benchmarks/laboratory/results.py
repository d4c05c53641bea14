"""What was found: the lines of results.jsonl, and the numbers in them by variant, seed, setting and context."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.laboratory.claims import Values
from benchmarks.laboratory.jobs import Job, Scale, Variant
from engine.errors import BadInput
from evaluation.results import is_torn, repair, writing
from evaluation.suites import Setting


class Store:
    """results.jsonl of a study's folder, a line for each job, by its key. A line that was broken off counts as none."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "results.jsonl"
        self.lines: dict[str, dict] = {}
        text = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            if is_torn(line):
                continue
            try:
                values = json.loads(line)
                self.lines[values["key"]] = values
            except (ValueError, RecursionError, TypeError, KeyError) as error:
                raise BadInput(f"{self.path}: line {number} cannot be read; remove it to do its job again") from error

    def __contains__(self, job: Job) -> bool:
        return job.key in self.lines

    def add(self, job: Job, result: dict) -> None:
        """Keep what a job has found, unless it was there (a teacher may be trained again, for its weights)."""
        if job in self:
            return
        about = {"key": job.key, "job": job.name, "kind": job.variant.kind, "flags": dict(job.variant.flags)}
        line = about | {"words": job.variant.words, "seed": job.seed} | result
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            repair(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        self.lines[job.key] = line


@dataclass(frozen=True)
class Found:
    """The results that a report is made of; what is not there yet is left out everywhere."""

    scale: Scale
    jobs: dict[tuple[Variant, int], Job]
    store: Store

    def lines(self, variant: Variant) -> dict[int, dict]:
        """seed -> line."""
        jobs = {seed: job for (each, seed), job in self.jobs.items() if each == variant}
        return {seed: self.store.lines[job.key] for seed, job in sorted(jobs.items()) if job in self.store}

    def evaluations(self, variant: Variant, setting: Setting, context: str) -> dict[int, dict]:
        return {seed: line["evaluations"][setting.described()][context] for seed, line in self.lines(variant).items()}

    def success(self, variant: Variant, setting: Setting, context: str = "own") -> dict[int, Tensor]:
        """seed -> success of every pack by position [P, S]; several games of one pack are one mean."""
        found = {}
        for seed, evaluation in self.evaluations(variant, setting, context).items():
            games = torch.tensor([[float(digit) for digit in digits] for digits in evaluation["success"]])  # [S, N]
            found[seed] = games.T.reshape(setting.packs, -1, setting.pack_size).mean(dim=1)
        return found

    def last(self, variant: Variant, setting: Setting, context: str = "own") -> Values:
        """Success at the last position."""
        return {seed: packs[:, -1] for seed, packs in self.success(variant, setting, context).items()}

    def gap(self, variant: Variant, setting: Setting, context: str = "own") -> Values:
        """Success at the last position minus that at the first."""
        return {seed: packs[:, -1] - packs[:, 0] for seed, packs in self.success(variant, setting, context).items()}

    def mean(self, variant: Variant, setting: Setting, context: str = "own") -> Values:
        """Mean success over positions."""
        return {seed: packs.mean(dim=1) for seed, packs in self.success(variant, setting, context).items()}

    def skill(self, variant: Variant, setting: Setting, name: str) -> Values:
        """One of evaluation/skills.py, with own hints, where there were decisions of that kind."""
        shares = {seed: each["skills"][name] for seed, each in self.evaluations(variant, setting, "own").items()}
        return {seed: torch.tensor([share]) for seed, share in shares.items() if share is not None}

    def steps(self, variant: Variant, name: str) -> dict[int, list]:
        """A metric of the training steps."""
        return {seed: line["steps"][name] for seed, line in self.lines(variant).items()}

    def worst(self, variant: Variant, name: str) -> Values:
        """The largest value of a metric in any step of training."""
        largest = {s: max(x for x in values if x is not None) for s, values in self.steps(variant, name).items()}
        return {seed: torch.tensor([float(value)]) for seed, value in largest.items()}
