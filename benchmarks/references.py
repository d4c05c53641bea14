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

from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.settings import check_bounds, flag
from envs import ENVS, make_pack, players, task_class
from eval import evaluate
from rollout import Penalties


@dataclass(frozen=True)
class ReferenceConfig:
    env: str = flag("", "environment; empty: all")
    level: str = flag("", "level; empty: all")
    packs: int = flag(400, "number of packs", at_least=1)
    pack_size: int = flag(4, "tasks in a pack", at_least=1)


def row(env: str, level: str, name: str, record: dict) -> str:
    """A player's line of the table."""
    half = [(high - low) / 2 for low, high in zip(record["success_low"], record["success_high"], strict=True)]
    means = [f"{mean:.2f} ± {h:.2f}" for mean, h in zip(record["success"], half, strict=True)]
    gap = f"{record['gap'][0]:+.2f} [{record['gap_low'][0]:+.2f}, {record['gap_high'][0]:+.2f}]"
    rewards = " ".join(f"{mean:.2f}" for mean in record["reward"])
    return " | ".join([f"| {env}/{level}", name, *means, gap, f"{rewards} |"])


def main() -> None:
    config = parse_flags(ReferenceConfig)
    check_bounds(config)
    if config.env and config.env not in ENVS:
        raise BadInput(f"env={config.env!r}: unknown environment; choose from {', '.join(ENVS)}")
    positions = [f"position {j}" for j in range(config.pack_size)]
    print(" | ".join(["| environment", "player", *positions, "gap", "rewards |"]))
    print("|---" * (4 + config.pack_size) + "|")
    for env in [config.env] if config.env else ENVS:
        for level in [config.level] if config.level else task_class(env).levels:
            packs = [make_pack(env, seed, config.pack_size, level) for seed in range(config.packs)]
            for name, player in players(env).items():
                print(row(env, level, name, evaluate(player, name, packs, Penalties())))


if __name__ == "__main__":
    command_line(main)
