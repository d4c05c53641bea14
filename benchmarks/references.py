"""The reference lines of every environment and level: what the scripted players reach by position, as a table.

Success with half the width of its bootstrap 95 % interval over packs; the last column is the mean reward, that is with
the length penalty taken off.

    python benchmarks/references.py                         400 packs of 4 tasks each, a line for each player
    python benchmarks/references.py --env frozenlake --level hard
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from envs import ENVS, make_pack, players, task_class  # noqa: E402
from eval import command_line, evaluate, flag, parse_flags  # noqa: E402
from rollout import Penalties  # noqa: E402


@dataclass(frozen=True)
class ReferenceConfig:
    env: str = flag("", "environment; empty: all")
    level: str = flag("", "level; empty: all")
    packs: int = flag(400, "number of packs")
    pack_size: int = flag(4, "tasks in a pack")


def main() -> None:
    config = parse_flags(ReferenceConfig)
    positions = [f"position {j}" for j in range(config.pack_size)]
    print(" | ".join(["| environment", "player", *positions, "gap", "rewards |"]))
    print("|---" * (4 + config.pack_size) + "|")
    for env in [config.env] if config.env else ENVS:
        make_pack(env, 0, config.pack_size, config.level or task_class(env).levels[0])  # unknown names end here
        for level in [config.level] if config.level else task_class(env).levels:
            packs = [make_pack(env, seed, config.pack_size, level) for seed in range(config.packs)]
            for name, player in players(env).items():
                record = evaluate(player, name, packs, Penalties())
                half = [
                    (high - low) / 2 for low, high in zip(record["success_low"], record["success_high"], strict=True)
                ]
                means = [f"{mean:.2f} ± {h:.2f}" for mean, h in zip(record["success"], half, strict=True)]
                gap = f"{record['gap'][0]:+.2f} [{record['gap_low'][0]:+.2f}, {record['gap_high'][0]:+.2f}]"
                rewards = " ".join(f"{mean:.2f}" for mean in record["reward"])
                print(" | ".join([f"| {env}/{level}", name, *means, gap, f"{rewards} |"]))


if __name__ == "__main__":
    command_line(main)
