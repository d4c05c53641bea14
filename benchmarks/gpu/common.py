"""What the parts have in common: figures, scripts that they start, the sizes of a rehearsal."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.run import read_figures
from engine.errors import BadInput
from engine.models import REPO

REHEARSAL = os.environ.get("REHEARSAL", "") not in ("", "0")
CUDA = torch.cuda.is_available()
SHAPE = "tiny" if REHEARSAL else "Qwen3-1.7B"


class Figures:
    """Writes a line for each figure, at once."""

    def __init__(self, part: str, path: Path):
        self.part, self.path = part, path

    def __call__(self, name: str, value: float | str, unit: str = "", goal: str = "") -> None:
        """goal: a comparison that the value should pass, as in ">= 3"."""
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        with self.path.open("a") as file:
            line = {"part": self.part, "figure": name, "value": value, "unit": unit, "goal": goal}
            file.write(json.dumps(line) + "\n")
        print(f"FIGURE {name}: {value} {unit}")

    @contextlib.contextmanager
    def in_memory(self, name: str):
        """If what is measured inside does not fit into the GPU, that is its figure."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            print(error)
            self(name, "out of memory")
            return
        finally:
            if CUDA:
                torch.cuda.empty_cache()


def start(script: str, *arguments: object) -> subprocess.Popen:
    print("+", script, *arguments, flush=True)
    return subprocess.Popen([sys.executable, "-u", str(REPO / script), *map(str, arguments)], cwd=REPO)


def finish(process: subprocess.Popen) -> None:
    if code := process.wait():
        raise BadInput(f"{Path(process.args[2]).name} ended with exit code {code}")


def flags(**settings: object) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def metrics_of(run_folder: Path) -> tuple[list[dict], dict[str, dict]]:
    """(lines of training steps, evaluations by label) of a run, which may be under way."""
    lines = read_figures(run_folder / "metrics.jsonl")  # the same kind of file
    return [line for line in lines if "eval" not in line], {x["eval"]["label"]: x["eval"] for x in lines if "eval" in x}
