"""Rollouts as the page shows them (see record/page.py): conversations with their tokens, rewards and advantages."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path

import torch

from engine.batches import training_batches
from engine.errors import first_line
from engine.policy import Policy
from engine.settings import Config
from envs import name_of
from record.files import write_text
from record.page import write_page
from rollout import Episode, Rollout

PAGE_BYTES = 8 << 20  # at most so much of a page are conversations: the newest ones


def episodes_of(rollout: Rollout, policy=None, credit: dict | None = None, after: dict | None = None) -> list[dict]:
    """A rollout's episodes for the page. With a model's policy the sampled tokens are there, too. `credit` gives an
    episode's return and baseline, `after` its tokens' log-probabilities [T] after the update."""
    found = []
    for e in rollout.episodes:
        pieces = sampled_pieces(e, policy, (after or {}).get(e)) if isinstance(policy, Policy) else []
        ret, baseline = (credit or {}).get(e, (None, None))
        messages = []
        spans = iter(pieces)
        for message in e.messages:
            tokens = next(spans, None) if message["role"] == "assistant" else None
            messages.append({"role": message["role"], "text": message["content"], "tokens": tokens})
        found.append(
            {
                "kind": e.kind,
                "position": e.position,
                "reward": e.reward,
                "outcome": e.outcome,
                "return": ret,
                "baseline": baseline,
                "advantage": None if ret is None else ret - baseline,
                "weighted": None if ret is None else e.advantage,
                "before": before(e, rollout),
                "after": e.context if e.kind == "update" else None,
                "broken_format": e.broken_format,
                "messages": messages,
            }
        )
    return found


def before(episode: Episode, rollout: Rollout) -> str:
    """The hint that a conversation was given. An update has the one of the task before it."""
    return rollout.of("solve")[episode.position].context


def sampled_pieces(episode: Episode, policy: Policy, after: list[float] | None) -> list[list]:
    """For every reply its tokens: [text, log-probability, its change by the update or None]."""
    replies, inside = [], False
    for t, sampled in enumerate(episode.mask):
        if sampled and not inside:
            replies.append([])
        if sampled:
            logp = episode.logps[t]
            piece = policy.chat.tokenizer.decode([episode.ids[t]])
            replies[-1].append([piece, round(logp, 4), None if after is None else round(after[t] - logp, 4)])
        inside = sampled
    return replies


@torch.no_grad()
def logps_now(episodes: list[Episode], policy: Policy, budget: int) -> dict[Episode, list[float]]:
    """Log-probabilities of the sampled tokens with the weights of now."""
    policy.model.eval()
    found = {}
    for episode in episodes:
        if episode.n_sampled:
            [batch] = training_batches([episode], budget, policy)
            found[episode] = policy.logprobs_of(batch)[0][0].tolist()
    return found


def write_sample(file: Path, title: str, groups: list[list[Rollout]], policy: Policy, budget: int) -> None:
    """The rollouts of some packs of a training step, with what the update has changed."""
    packs = []
    for group in groups:
        episodes = [episode for rollout in group for episode in rollout.episodes]
        same: dict[tuple, list[float]] = {}
        for e in episodes:
            same.setdefault((e.kind, e.position), []).append(e.ret)
        credit = {e: (e.ret, statistics.mean(same[e.kind, e.position])) for e in episodes}
        after = logps_now(episodes, policy, budget)
        rollouts = [
            {"title": f"rollout {g}", "episodes": episodes_of(rollout, policy, credit, after)}
            for g, rollout in enumerate(group)
        ]
        packs.append({"title": f"{title}, pack {group[0].pack_seed}, {group[0].env}", "rollouts": rollouts})
    write_text(file, json.dumps(packs) + "\n")


def read_sample(file: Path) -> list[dict]:
    """What `write_sample` has written. Raises ValueError or RecursionError if it is something else."""
    packs = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(packs, list) or not all(
        isinstance(pack, dict) and isinstance(pack.get("rollouts"), list) for pack in packs
    ):
        raise ValueError("it holds no rollouts of packs")
    return packs


def write_run_page(folder: Path, config: Config, lines: list[dict]) -> None:
    """report.html of a run: its evaluations, its training, and the newest rollouts that it kept."""
    evaluations = []
    for env in (f"{name_of(env)}/{level}" for env, level in config.env_levels):
        records = [line["eval"] for line in lines if "eval" in line and line["eval"]["env"] == env]
        records = [record for record in records if record["label"] != "validation"]
        evaluations.append({"title": f"{env}, packs of {config.pack_size}", "records": records})
    training = [line for line in lines if "eval" not in line]
    packs, size = [], 0
    for file in sorted((folder / "samples").glob("step_*.json"), reverse=True):
        size += file.stat().st_size
        if size > PAGE_BYTES and packs:
            break
        try:
            packs = read_sample(file) + packs
        except (ValueError, RecursionError) as error:  # the run itself is worth more than these
            print(f"{file}: cannot be read and is left out of report.html ({first_line(error)})")
    title = f"{folder.name}: {Path(config.model).name}, seed {config.seed}"
    page = {
        "title": title,
        "settings": asdict(config),
        "evaluations": evaluations,
        "training": training,
        "packs": packs,
    }
    write_page(page, folder / "report.html")
    print(f"written: {folder / 'report.html'}")
