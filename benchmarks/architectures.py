"""Every causal-LM type of the installed transformers, at tiny size: does it train here as it samples?

    python benchmarks/architectures.py                     all of them, and docs/models.md (an hour on one core)
    python benchmarks/architectures.py --types llama,lfm2  some only, as lines
    python benchmarks/architectures.py --jobs 2            two at a time

Each type, and each shape of a published model (models/shapes.py), is examined as models/examine.py says, in a process
of its own with limits of time and memory. What has been found is kept in a file, a JSON line for each type, and a sweep
that was broken off goes on there.
"""

import json
import os
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.models.examine import outcome
from benchmarks.models.page import report, summary
from benchmarks.models.shapes import SHAPES
from benchmarks.models.tiny import CAUSAL, build
from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.models import REPO, add_adapter
from engine.settings import check_bounds, flag


@dataclass(frozen=True)
class Settings:
    types: str = flag("", "names separated by commas; empty: all")
    jobs: int = flag(1, "processes at a time", at_least=1)
    seconds: int = flag(60, "limit of computing time for a type", at_least=1)
    gigabytes: int = flag(16, "limit of address space for a type", at_least=1)
    lines: str = flag("", "file with what has been found; empty: runs/architectures.jsonl of this repository")
    output: str = flag("", "the page to write when all types are examined; empty: docs/models.md of this repository")
    fresh: bool = flag(False, "examine again what is in the file already")


def warm_up() -> None:
    """What every process would do again for itself: the lists that transformers makes when it first saves and loads."""
    with tempfile.TemporaryDirectory() as folder:
        build("llama", 100).save_pretrained(folder)
        add_adapter(AutoModelForCausalLM.from_pretrained(folder))


def start_process(name: str, lines: Path, settings: Settings) -> int:
    """Examine a type in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    resource.setrlimit(resource.RLIMIT_AS, (settings.gigabytes << 30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (settings.seconds,) * 2)
    signal.alarm(10 * settings.seconds)  # of the clock: other processes may take most of it
    try:
        found = outcome(name)
        with lines.open("a") as file:
            file.write(json.dumps(found) + "\n")
        os._exit(0)
    finally:  # an error must not go on in what is the other process's part of the work
        os._exit(1)


def sweep(names: list[str], lines: Path, settings: Settings) -> None:
    """Examine these types, a few at a time."""
    waiting, running = list(names), {}
    while waiting or running:
        while waiting and len(running) < settings.jobs:
            name = waiting.pop(0)
            running[start_process(name, lines, settings)] = name
        process, status = os.wait()
        name = running.pop(process)
        if status:
            timeouts = (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL)
            reason = "took too long" if status & 127 in timeouts else f"its process ended with status {status}"
            with lines.open("a") as file:
                file.write(json.dumps({"type": name, "outcome": "error", "reason": reason}) + "\n")
        found = read(lines)[name]
        print(f"{name}: {found['outcome']}, {summary(found)}", flush=True)


def read(lines: Path) -> dict[str, dict]:
    """Type -> what has been found, the last time counts."""
    if not lines.exists():
        return {}
    return {found["type"]: found for found in map(json.loads, lines.read_text().splitlines())}


def main() -> None:
    settings = parse_flags(Settings)
    check_bounds(settings)
    names = settings.types.split(",") if settings.types else [*CAUSAL, *SHAPES]
    if unknown := [name for name in names if name not in CAUSAL and name not in SHAPES]:
        raise BadInput(f"types={settings.types!r}: {unknown[0]!r} is no causal-LM type of transformers, and no shape")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    lines = Path(settings.lines or REPO / "runs" / "architectures.jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    done = {} if settings.types or settings.fresh else read(lines)
    warm_up()
    sweep([name for name in names if name not in done], lines, settings)
    if not settings.types:
        Path(settings.output or REPO / "docs" / "models.md").write_text(report(read(lines)))


if __name__ == "__main__":
    command_line(main)
