"""What a policy does with what it knows, decision by decision: what evaluation/skills.py counts.

    python benchmarks/decisions.py --policy FOLDER_OR_RUN [--env alchemy] --packs 64 --pack-size 3

On levels that somebody demonstrates (imitate.py): all of FrozenLake, the tiny ones of Alchemy and Terminal.
"""

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine.command_line import command_line, parse_flags
from engine.policy import Policy
from engine.settings import flag
from envs import demonstrator, make_pack
from evaluation.policies import load_policy
from evaluation.settings import EvalConfig
from evaluation.skills import skills
from evaluation.statistics import game, summarise
from rollout import play, run

SAID = {
    "use": "of the known values that a reply needs, stated and given",
    "explore": "of the values given for keys that are not known, still possible",
    "write": "of the known keys, with their value in the hint",
    "wrong": "of all keys, with a wrong value in the hint",
}


@dataclass(frozen=True)
class Settings:  # of eval.py, which has their bounds and all others
    policy: str = flag("embedded-policy", "a run folder, a model folder or hub name, a scripted player")
    env: str = flag("frozenlake", "environment")
    level: str = flag("tiny", "level of the environment")
    packs: int = flag(64, "number of packs")
    pack_size: int = flag(4, "tasks in a pack")
    max_reply_tokens: int = flag(256, "cap on the length of one reply")


def main() -> None:
    settings = parse_flags(Settings)
    config = EvalConfig(**{**asdict(settings), "policy": [settings.policy]})
    config.validate()
    demonstrator(config.env, config.level)  # levels without one end here
    policy = load_policy(settings.policy, config)
    packs = [make_pack(config.env, seed, config.pack_size, config.level) for seed in range(config.packs)]
    with policy.sampling() if isinstance(policy, Policy) else contextlib.nullcontext():
        rollouts = run([play(pack) for pack in packs], policy, "decisions", progress="packs")
    record = summarise(settings.policy, [game(rollout) for rollout in rollouts])
    print(f"{settings.policy}, {config.packs} packs: success {' '.join(f'{x:.2f}' for x in record['success'])}")
    print(f"| share | |\n|---|---|\n| broken: of all episodes | {record['broken_format']:.2f} |")
    for name, share in skills(rollouts).items():
        print(f"| {name}: {SAID[name]} | {share:.2f} |")


if __name__ == "__main__":
    command_line(main)
