"""What it costs to draw a pack of 4 tasks: milliseconds, for every environment and level.

python benchmarks/packs.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from envs import ENVS, make_pack  # noqa: E402

for env, kind in ENVS.items():
    for level in kind.levels:
        times = []
        for seed in range(200):
            start = time.perf_counter()
            make_pack(env, seed, 4, level)
            times.append(1000 * (time.perf_counter() - start))
        print(f"{env}/{level}: {statistics.mean(times):.2f} ms in the mean, {max(times):.2f} ms at most")
