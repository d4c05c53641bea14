"""Training sequences against one sample per turn: tokens and seconds on the same rollouts, in the same run.

    python benchmarks/training.py                                      the embedded policy, level tiny
    python benchmarks/training.py --model FOLDER_OR_HUB_NAME --level train

Here an episode is one sequence, all its turns in it, and what sequences have in common at the beginning is read once
(engine/batches.py). The reference trains every turn as a sample of its own, with the history before it repeated.
Micro-batches hold sequences of similar length, padded; the alternative is to pack them one after the other. All compute
the same log-probabilities; the gradients are compared at the end. The replies are a scripted player's that takes its
chances, so that any model will do and the rollouts of a group differ.
"""

import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import Settings, wait_for
from engine.batches import Batch, batch_of, batches_by_length, training_batches
from engine.command_line import command_line, parse_flags
from engine.policy import Policy
from engine.settings import check_bounds
from environments.frozenlake.players import Planner
from imitate import knobs
from imitation.teaching import Teacher
from rollout import Episode, play, run


def turns_of(episode: Episode) -> list[Episode]:
    """The episode once for each reply, cut behind it, with that reply alone to be trained."""
    samples, end = [], 0
    for sampled, tokens in itertools.groupby(episode.mask):
        start, end = end, end + len(list(tokens))
        if sampled:
            sample = copy.copy(episode)
            sample.ids, sample.logps = episode.ids[:end], episode.logps[:end]
            sample.mask = [False] * start + [True] * (end - start)
            samples.append(sample)
    return samples


def whole(episodes: list[Episode], budget: int, policy: Policy) -> list[Batch]:
    """Batches of sequences of similar length, every one of them read from its first token on."""
    lengths = {episode: len(episode.ids) for episode in episodes}
    return [batch_of(rows, 0, policy.device) for rows in batches_by_length(lengths, budget)]


def padded(policy: Policy, batches: list[Batch]) -> Iterator[torch.Tensor]:
    """Log-likelihoods of batches."""
    for batch in batches:
        yield policy.logprobs_of(batch)[0].sum()


def packed(policy: Policy, episodes: list[Episode], budget: int) -> Iterator[torch.Tensor]:
    """The same without padding: sequences one after the other, under a mask that lets each see itself only."""
    rows: list[list[Episode]] = [[]]
    for episode in episodes:
        if rows[-1] and sum(len(e.ids) for e in rows[-1]) + len(episode.ids) > budget:
            rows.append([])
        rows[-1].append(episode)
    for row in rows:
        ids, mask = (torch.tensor([sum((getattr(e, name) for e in row), [])]) for name in ("ids", "mask"))  # [1, T]
        lengths = torch.tensor([len(e.ids) for e in row])  # [n]
        owner = torch.repeat_interleave(torch.arange(len(row)), lengths)  # [T]
        positions = torch.cat([torch.arange(n) for n in lengths.tolist()])  # [T]
        visible = (owner[:, None] == owner) & (positions[:, None] >= positions)  # [T, T]
        inputs = {"input_ids": ids, "position_ids": positions[None], "attention_mask": visible[None, None]}
        with policy.precision():
            hidden = policy.decoder(**{key: value.to(policy.device) for key, value in inputs.items()}, use_cache=False)
        at = mask[0].nonzero()[:, 0]  # [sampled]
        targets = ids[0, at].to(policy.device)  # [sampled]
        yield policy.head_logprobs(hidden.last_hidden_state[0, at - 1], targets)[0].sum()


def gradient(policy: Policy, likelihoods: Iterator[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Gradient of the log-likelihood of all sampled tokens, and the seconds it took."""
    policy.train_mode()
    policy.model.zero_grad()
    started = time.perf_counter()
    for likelihood in likelihoods:
        likelihood.backward()
    wait_for(policy)
    seconds = time.perf_counter() - started
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]), seconds


def main() -> None:
    settings = parse_flags(Settings)
    check_bounds(settings)
    policy = settings.policy()
    budget = settings.tokens_per_microbatch
    teacher = Teacher(Planner(0, **knobs("frozenlake", "mediocre")), policy.chat)
    episodes = [e for rollout in run(map(play, settings.packs()), teacher) for e in rollout.episodes]
    turns = [sample for episode in episodes for sample in turns_of(episode)]
    batches = {
        "a sample for each turn": whole(turns, budget, policy),
        "a sequence for each episode": whole(episodes, budget, policy),
        "the same, common beginnings read once": training_batches(episodes, budget, policy),
    }
    ways: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
        name: functools.partial(padded, policy, group) for name, group in batches.items()
    }
    ways["a sequence for each episode, packed without padding"] = functools.partial(packed, policy, episodes, budget)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {}
    for _ in range(settings.repeats):
        for name, likelihoods in ways.items():
            gradients[name], taken = gradient(policy, likelihoods())
            seconds[name].append(taken)
            print(f"{name}: {taken:.1f} s")
    print(f"{policy.device}, {settings.rollouts} rollouts")
    first = next(iter(ways))
    total = sum(len(turn.ids) for turn in turns)
    for name, times in seconds.items():
        tokens = sum(batch.n_tokens - batch.prefix * (len(batch.ids) - 1) for batch in batches.get(name, []))
        cosine = torch.cosine_similarity(gradients[first], gradients[name], dim=0)
        fewer = f"{total / tokens:.2f} times fewer tokens ({tokens}), " if tokens else ""
        print(f"  {name}: {fewer}{min(seconds[first]) / min(times):.2f} times as fast, cosine {cosine:.5f}")


if __name__ == "__main__":
    command_line(main)
