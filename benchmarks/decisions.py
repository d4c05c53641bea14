"""What a policy that imitate.py has taught does in FrozenLake-Obscure, decision by decision.

    python benchmarks/decisions.py --policy FOLDER_OR_RUN --packs 64 --pack-size 3 --max-reply-tokens 96

Success says whether a policy plays well, this says where it does not: whether it uses what it knows ("Go up: ...") or
tries something ("Try one: ..."), and whether its hints say what it has seen. Something counts as known if the scripted
player that it imitated would know it, from the hint and from the moves of the task at hand.
"""

import contextlib
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine.command_line import command_line, parse_flags
from engine.policy import Policy
from engine.settings import flag
from environments.frozenlake.players import Planner, best_ways, read_lake
from environments.frozenlake.task import MOVES
from envs import make_pack, parse_answer
from evaluation.policies import load_policy
from evaluation.settings import EvalConfig
from rollout import Episode, Rollout, play, run

ENTRY = re.compile(rf"^- ({'|'.join(MOVES)}): (Direction [1-4]|unknown)$", re.MULTILINE)


@dataclass(frozen=True)
class Settings:  # of eval.py, which has their bounds and all others; level tiny stays: only there moves are named
    policy: str = flag("embedded-policy", "a run folder, a model folder or hub name")
    packs: int = flag(64, "number of packs")
    pack_size: int = flag(4, "tasks in a pack")
    max_reply_tokens: int = flag(256, "cap on the length of one reply")


def turns(episode: Episode) -> Counter:
    """Counts of (whether an action along a shortest path was known, what happened) over the turns of a task."""
    counts: Counter = Counter()
    for at, message in enumerate(episode.messages):
        if message["role"] == "assistant":
            view = read_lake(episode.messages[:at])
            known, ways = Planner(0).known(episode.messages[:at], view), best_ways(view.lake)
            when = "known" if any(way in known for way in ways) else "unknown"
            action = re.fullmatch("Direction ([1-4])", parse_answer(message["content"]) or "")
            counts[when, "turns"] += 1
            counts[when, "goes"] += bool(re.search("^Go ", message["content"], re.MULTILINE))
            counts[when, "good step"] += action is not None and episode.task.mapping[int(action[1]) - 1] in ways
            counts[when, "broken"] += action is None
    return counts


def entries(episode: Episode, mapping: tuple[str, ...]) -> Counter:
    """Counts of (whether a direction's action was known, rightly, what the hint says) over the directions of a hint."""
    asked = episode.messages[:2]
    known = Planner(0).known(asked, read_lake(asked))
    written = dict(ENTRY.findall(episode.context))
    counts: Counter = Counter()
    for way in MOVES:
        entry = written.get(way, "missing")
        right = f"Direction {mapping.index(way) + 1}"
        kind = entry if entry in ("unknown", "missing") else "right" if entry == right else "wrong"
        counts["known" if known.get(way) == right else "unknown", kind] += 1
    return counts


def report(rollouts: list[Rollout]) -> str:
    played, hints = Counter(), Counter()
    for rollout in rollouts:
        mapping = rollout.episodes[0].task.mapping
        played.update(sum((turns(e) for e in rollout.of("solve")), Counter()))
        hints.update(sum((entries(e, mapping) for e in rollout.of("update")), Counter()))
    lines = [
        "| an action along a shortest path is | turns | Go ... | good steps | broken replies |",
        "|---|---|---|---|---|",
    ]
    for when in ("known", "unknown"):
        shares = (
            f"{played[when, what] / max(1, played[when, 'turns']):.2f}" for what in ("goes", "good step", "broken")
        )
        lines.append(f"| {when} | {played[when, 'turns']} | {' | '.join(shares)} |")
    kinds = ("right", "wrong", "unknown", "missing")
    lines += ["", f"| the action of a direction is | entries | {' | '.join(kinds)} |", "|---|---|---|---|---|---|"]
    for when in ("known", "unknown"):
        total = sum(hints[when, kind] for kind in kinds)
        lines.append(
            f"| {when} | {total} | {' | '.join(f'{hints[when, kind] / max(1, total):.2f}' for kind in kinds)} |"
        )
    return "\n".join(lines)


def main() -> None:
    settings = parse_flags(Settings)
    config = EvalConfig(**{**asdict(settings), "policy": [settings.policy]})
    config.validate()
    policy = load_policy(settings.policy, config)
    packs = [make_pack(config.env, seed, config.pack_size, config.level) for seed in range(config.packs)]
    with policy.sampling() if isinstance(policy, Policy) else contextlib.nullcontext():
        rollouts = run([play(pack) for pack in packs], policy, "decisions", progress="packs")
    success = [sum(r.of("solve")[j].outcome for r in rollouts) / len(rollouts) for j in range(config.pack_size)]
    print(f"{settings.policy}, {config.packs} packs: success " + " ".join(f"{x:.2f}" for x in success))
    print(report(rollouts))


if __name__ == "__main__":
    command_line(main)
