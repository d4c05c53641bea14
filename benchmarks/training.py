"""Training sequences against one sample per turn: tokens and seconds on the same rollouts, in the same run.

    python benchmarks/training.py                                      the embedded policy, level tiny
    python benchmarks/training.py --model FOLDER_OR_HUB_NAME --level train

Here an episode is one sequence, all its turns in it. The reference trains every turn as a sample of its own, with the
history before it repeated. Micro-batches hold sequences of similar length, padded; the alternative is to pack them one
after the other. All compute the same log-probabilities; the gradients are compared at the end. The replies
are a scripted player's, so that any model will do.
"""

import copy
import itertools
import time
from collections.abc import Iterator

import torch
from shared import Settings, wait_for

from environments.frozenlake_players import Planner
from eval import command_line, parse_flags
from imitate import Teacher
from policy import Policy, batches_by_length, pad_batch
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


def padded(policy: Policy, episodes: list[Episode], budget: int) -> Iterator[torch.Tensor]:
    """Log-likelihoods of micro-batches of sequences of similar length, as train.py makes them."""
    for batch in batches_by_length({e: len(e.ids) for e in episodes}, budget):
        ids, mask, _ = pad_batch(batch, policy.device)  # [B, T] each
        yield policy.logprobs(ids, mask)[0].sum()


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
        yield policy._head_logprobs(hidden.last_hidden_state[0, at - 1], targets)[0].sum()


def gradient(policy: Policy, likelihoods: Iterator[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Gradient of the log-likelihood of all sampled tokens, and the seconds it took."""
    policy.model.train()
    policy.model.zero_grad()
    started = time.perf_counter()
    for likelihood in likelihoods:
        likelihood.backward()
    wait_for(policy)
    seconds = time.perf_counter() - started
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]), seconds


def main() -> None:
    settings = parse_flags(Settings)
    policy = settings.policy()
    teacher = Teacher(Planner(0), policy.chat)
    episodes = [e for rollout in run(map(play, settings.packs()), teacher) for e in rollout.episodes]
    turns = [sample for episode in episodes for sample in turns_of(episode)]
    ways = {
        "a sample for each turn": (padded, turns),
        "a sequence for each episode": (padded, episodes),
        "the same, packed without padding": (packed, episodes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {}
    for _ in range(settings.repeats):
        for name, (batches, samples) in ways.items():
            budget = settings.tokens_per_microbatch
            gradients[name], taken = gradient(policy, batches(policy, samples, budget))
            seconds[name].append(taken)
            print(f"{name}: {len(samples)} sequences, {sum(len(e.ids) for e in samples)} tokens, {taken:.1f} s")
    batches = batches_by_length({e: len(e.ids) for e in episodes}, settings.tokens_per_microbatch)
    tokens = sum(len(e.ids) for e in episodes)
    padding = sum(len(batch) * max(len(e.ids) for e in batch) for batch in batches) / tokens - 1
    print(f"{policy.device}, {settings.rollouts} rollouts: {sum(len(e.ids) for e in turns) / tokens:.2f} times fewer "
          f"tokens by one sequence for each episode; padding adds {padding:.1%} to them")  # fmt: skip
    first = next(iter(ways))
    for name, times in seconds.items():
        cosine = torch.cosine_similarity(gradients[first], gradients[name], dim=0)
        print(f"  {min(seconds[first]) / min(times):.2f} times as fast, cosine of the gradients {cosine:.5f}: {name}")


if __name__ == "__main__":
    command_line(main)
