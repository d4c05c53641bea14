"""Training sequences against one sample per turn: tokens and seconds on the same rollouts, in the same run.

    python benchmarks/training.py                                      the embedded policy, level tiny
    python benchmarks/training.py --model FOLDER_OR_HUB_NAME --level train

Here an episode is one sequence, all its turns in it. The reference trains every turn as a sample of its own, with the
history before it repeated. Both compute the same log-probabilities; the gradients are compared at the end. The replies
are a scripted player's, so that any model will do.
"""

import copy
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from envs import make_pack  # noqa: E402
from eval import command_line, flag, parse_flags  # noqa: E402
from imitate import Teacher  # noqa: E402
from players import Planner  # noqa: E402
from policy import Lora, Policy, add_adapter, batches_by_length, load_model, pad_batch  # noqa: E402
from rollout import Episode, play, run  # noqa: E402


@dataclass(frozen=True)
class Settings:
    model: str = flag("embedded-policy", "model folder or hub name")
    rollouts: int = flag(64, "rollouts")
    pack_size: int = flag(4, "tasks in a pack")
    level: str = flag("tiny", "level of FrozenLake")
    dtype: str = flag("auto", "weights; auto: as they are stored")
    tokens_per_microbatch: int = flag(8192, "padded tokens in one forward pass")
    repeats: int = flag(2, "times that both are measured, in turn")


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
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]), seconds


def main() -> None:
    settings = parse_flags(Settings)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model, tokenizer = load_model(settings.model, settings.dtype, device)
    policy = Policy(add_adapter(model, Lora()), tokenizer)
    teacher = Teacher(Planner(0), policy.chat)
    packs = [make_pack("frozenlake", n // 8, settings.pack_size, settings.level) for n in range(settings.rollouts)]
    episodes = [e for rollout in run(map(play, packs), teacher) for e in rollout.episodes]
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
    print(f"{device}, {settings.rollouts} rollouts: {tokens[slow] / tokens[fast]:.2f} times fewer tokens, "
          f"{ratio:.2f} times faster; cosine of the two gradients {similarity:.5f}")  # fmt: skip


if __name__ == "__main__":
    command_line(main)
