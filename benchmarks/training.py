"""Training sequences against one sample per turn: tokens and seconds on the same rollouts, in the same run.

    python benchmarks/training.py                                      the embedded policy, level tiny
    python benchmarks/training.py --model FOLDER_OR_HUB_NAME --level train

Here an episode is one sequence, all its turns in it. The reference trains every turn as a sample of its own, with the
history before it repeated. Both compute the same log-probabilities; the gradients are compared at the end. The replies
are a scripted player's, so that any model will do.
"""

import copy
import itertools
import time

import torch
from shared import Settings, wait_for

from eval import command_line, parse_flags
from imitate import Teacher
from players import Planner
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


def gradient(policy: Policy, episodes: list[Episode], budget: int) -> tuple[torch.Tensor, float]:
    """Gradient of the log-likelihood of all sampled tokens, and the seconds it took."""
    policy.model.train()
    policy.model.zero_grad()
    started = time.perf_counter()
    for batch in batches_by_length({e: len(e.ids) for e in episodes}, budget):
        ids, mask, _ = pad_batch(batch, policy.device)  # [B, T] each
        policy.logprobs(ids, mask)[0].sum().backward()
    wait_for(policy)
    seconds = time.perf_counter() - started
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]), seconds


def main() -> None:
    settings = parse_flags(Settings)
    policy = settings.policy()
    teacher = Teacher(Planner(0), policy.chat)
    episodes = [e for rollout in run(map(play, settings.packs()), teacher) for e in rollout.episodes]
    kinds = {"one sample per turn": [s for e in episodes for s in turns_of(e)], "one per episode": episodes}
    tokens = {name: sum(len(e.ids) for e in samples) for name, samples in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    gradients = {}
    for _ in range(settings.repeats):
        for name, samples in kinds.items():
            gradients[name], taken = gradient(policy, samples, settings.tokens_per_microbatch)
            seconds[name].append(taken)
            print(f"{name}: {len(samples)} sequences, {tokens[name]} tokens, {taken:.1f} s")
    slow, fast = kinds
    similarity = torch.cosine_similarity(gradients[slow], gradients[fast], dim=0)
    ratio = min(seconds[slow]) / min(seconds[fast])
    print(f"{policy.device}, {settings.rollouts} rollouts: {tokens[slow] / tokens[fast]:.2f} times fewer tokens, "
          f"{ratio:.2f} times faster; cosine of the two gradients {similarity:.5f}")  # fmt: skip


if __name__ == "__main__":
    command_line(main)
