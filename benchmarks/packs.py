"""What it costs to draw a pack: milliseconds, for every environment and level.

python benchmarks/packs.py
"""

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine.command_line import command_line, parse_flags
from engine.settings import check_bounds, flag
from envs import ENVS, make_pack


@dataclass(frozen=True)
class PackSettings:
    packs: int = flag(200, "packs that are drawn of each", at_least=1)
    pack_size: int = flag(4, "tasks in a pack", at_least=1)


def main() -> None:
    settings = parse_flags(PackSettings)
    check_bounds(settings)
    for env, kind in ENVS.items():
        for level in kind.levels:
            times = []
            for seed in range(settings.packs):
                start = time.perf_counter()
                make_pack(env, seed, settings.pack_size, level)
                times.append(1000 * (time.perf_counter() - start))
            print(f"{env}/{level}: {statistics.mean(times):.2f} ms in the mean, {max(times):.2f} ms at most")


if __name__ == "__main__":
    command_line(main)
