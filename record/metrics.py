"""The metrics of a training step: what its rollouts look like, as numbers and as text."""

import torch

from engine import processes
from engine.settings import Config
from rollout import Episode, Rollout


def by_position(groups: list[list[Rollout]], size: int) -> dict[str, list[list[float]]]:
    """name -> position -> what is to be averaged, of groups [packs][G]."""
    values: dict[str, list[list[float]]] = {"success": [], "reward": [], "zero_variance": []}
    for position in range(size):
        at = [[rollout.of("solve")[position] for rollout in group] for group in groups]  # [packs][G]
        values["success"].append([episode.outcome for group in at for episode in group])
        values["reward"].append([episode.reward for group in at for episode in group])
        values["zero_variance"].append([len({episode.reward for episode in group}) == 1 for group in at])
    return values


def over_all(tasks: list[Episode], updates: list[Episode]) -> dict[str, list[float]]:
    """name -> what is to be averaged, of solved tasks and hint updates."""
    episodes = tasks + updates
    return {
        "broken_format": [e.broken_format for e in tasks],
        "broken_hint": [e.broken_format for e in updates],
        "truncated": [reply.truncated for e in episodes for reply in e.replies],
        "turns": [len(e.replies) for e in tasks],
        "reply_tokens": [reply.n_tokens for e in tasks for reply in e.replies],
        "hint_tokens": [e.n_sampled for e in updates],
        "episode_tokens": [len(e.ids) for e in episodes],
        "tokens_sampled": [e.n_sampled for e in episodes],
    }


def rollout_metrics(groups: list[list[Rollout]], config: Config) -> dict[str, float | list[float]]:
    """Means over the rollouts [packs][G] of all processes, some by position; and how many tokens were sampled."""
    listed = by_position(groups, config.pack_size)
    if len(config.env_levels) > 1:
        for env in map("/".join, config.env_levels):
            of_env = by_position([group for group in groups if group[0].env == env], config.pack_size)
            listed |= {f"{name}/{env}": values for name, values in of_env.items()}
    rollouts = [rollout for group in groups for rollout in group]
    tasks, updates = ([e for rollout in rollouts for e in rollout.of(kind)] for kind in ("solve", "update"))
    single = over_all(tasks, updates)
    flat = [*single.values(), *(at for values in listed.values() for at in values)]
    sums = processes.total([x for values in flat for x in (sum(values), len(values))], torch.float64)
    totals = dict(zip(single, sums[::2], strict=False))
    means = iter([total / max(1, n) for total, n in zip(sums[::2], sums[1::2], strict=True)])
    alone = {name: next(means) for name in single}
    metrics: dict[str, float | list[float]] = {name: [next(means) for _ in values] for name, values in listed.items()}
    return metrics | alone | {"tokens_sampled": int(totals["tokens_sampled"])}


def step_line(step: int, config: Config, metrics: dict) -> str:
    success = " ".join(f"{x:.2f}" for x in metrics["success"])
    return (
        f"step {step:>{len(str(config.steps))}}/{config.steps} | success {success} | turns {metrics['turns']:.1f} | "
        f"bad format {metrics['broken_format']:.1%} hints {metrics['broken_hint']:.1%} | "
        f"entropy {metrics['entropy']:.2f} | grad {metrics['grad_norm']:.2f} | lr {metrics['lr']:.1e} | "
        f"kl {metrics['kl']:.3f} | {metrics['time_rollout']:.1f}+{metrics['time_train']:.1f} s"
    )


def as_text(rollout: Rollout) -> str:
    """A rollout for reading: every episode's messages, with its rewards and its advantage."""
    parts = [f"pack {rollout.pack_seed}"]
    for e in rollout.episodes:
        parts.append(
            f"===== position {e.position}, {e.kind}: reward {e.reward:.3f}, advantage {e.advantage:+.3f} ====="
        )
        parts += [f"[{message['role']}]\n{message['content']}" for message in e.messages]
    return "\n\n".join(parts) + "\n"
