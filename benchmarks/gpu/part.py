"""What run.py starts: one part of the GPU benchmark, in this process.

    python benchmarks/gpu/part.py smoke FOLDER SECONDS

Each part writes its figures into FOLDER/figures.jsonl as soon as it has them. SECONDS matter to the last part alone,
which trains until they are over. With REHEARSAL=1 everything is tiny.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.common import CUDA, REHEARSAL, Figures
from benchmarks.gpu.learning import learning
from benchmarks.gpu.memory import memory_peaks
from benchmarks.gpu.smoke import smoke
from benchmarks.gpu.speed import against_continuous, against_naive, limits_of_device
from engine.command_line import command_line
from engine.errors import BadInput

PARTS: dict[str, Callable[[Figures, Path, float], None]] = {
    "smoke": smoke,
    "limits": limits_of_device,
    "rollouts": against_naive,
    "continuous batching": against_continuous,
    "memory": memory_peaks,
    "learning": learning,
}


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] not in PARTS:
        raise BadInput(f"usage: python benchmarks/gpu/part.py PART FOLDER SECONDS; PART is one of {', '.join(PARTS)}")
    name, folder, seconds = sys.argv[1:]
    folder = Path(folder)
    print(f"----- {name}")
    if not CUDA and not REHEARSAL:
        raise BadInput("there is no NVIDIA GPU here")
    PARTS[name](Figures(name, folder / "figures.jsonl"), folder, float(seconds))


if __name__ == "__main__":
    command_line(main)
