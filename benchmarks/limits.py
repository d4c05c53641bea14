"""How far decoding and training are from what the device can do, both measured in the same run.

    python benchmarks/limits.py --model FOLDER_OR_HUB_NAME
    python benchmarks/limits.py --shape Qwen3-1.7B --cuda-graphs True        random weights in that shape

A decoding step cannot be faster than reading the weights and the KV cache once at the measured memory bandwidth.
Training cannot be faster than its matrix products at the measured rate of large ones. Of a frozen layer with an adapter
those are two, forward and the gradient of the inputs; computing activations again (gradient checkpointing) is not
counted as work done, nor is attention.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from shared import Settings, wait_for

from engine.draft import Draft
from engine.policy import Policy
from eval import command_line, flag, parse_flags
from models import checkpoint_activations, n_weights
from rollout import Episode


@dataclass(frozen=True)
class LimitSettings(Settings):
    rows: int = flag(64, "conversations that are decoded at once")
    length: int = flag(1024, "tokens of each in the KV cache")
    episode_tokens: int = flag(1024, "tokens of the sequences that are trained on, an eighth of them sampled")
    gradient_checkpointing: bool = flag(False, "compute activations again in the backward pass")
    compile: bool = flag(False, "measure training through compiled layers, too")


def best_time(work: Callable[[], object], policy: Policy, repeats: int) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        wait_for(policy)
        started = time.perf_counter()
        work()
        wait_for(policy)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def bandwidth(policy: Policy, repeats: int) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(1 << 28, dtype=torch.uint8, device=policy.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_time(lambda: target.copy_(source), policy, repeats)


def matmul_rate(policy: Policy, repeats: int) -> float:
    """Floating-point operations per second of a large product in the model's precision."""
    n = 8192 if policy.device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=policy.device, dtype=policy.model.dtype) for _ in range(2))
    return 2 * n**3 / best_time(lambda: a @ b, policy, repeats)


def linear_weights(policy: Policy) -> list[torch.Tensor]:
    """Those that every token goes through: the decoder's matrices, adapters left out, and the output head."""
    matrices = [p for name, p in policy.decoder.named_parameters() if p.dim() == 2 and "lora_" not in name]
    embedding = policy.decoder.get_input_embeddings().weight
    return [p for p in matrices if p is not embedding] + [policy.head.weight]


def decoding(policy: Policy, settings: LimitSettings) -> None:
    rows, length = settings.rows, settings.length
    policy.model.eval()  # in training, checkpointed layers would not use the cache
    with torch.no_grad(), policy.sampling():
        conversations = [Episode("solve", 0, [], "", noise=str(row)) for row in range(rows)]
        for episode in conversations:
            episode.add([1])
        room, tokens = length + 64 * (settings.repeats + 2), 16
        policy.sampler._open([Draft(episode, room, set(), random.Random(0)) for episode in conversations])
        policy.sampler.cached = [length] * rows  # what is read there is nothing, but takes as long
        steps = tokens // policy.sampler.block
        seconds = best_time(lambda: [policy.sampler._decode() for _ in range(steps)], policy, settings.repeats)
        stored = policy.sampler.bytes_per_token() * rows * length
    step, read = seconds / tokens, sum(weight.nbytes for weight in linear_weights(policy)) + stored
    rate = bandwidth(policy, settings.repeats)
    print(
        f"decoding {rows} conversations of {length} tokens: {1e3 * step:.1f} ms a step, {rows / step:.0f} tokens/s; "
        f"{read / 2**30:.2f} GiB at {rate / 1e9:.0f} GB/s take {1e3 * read / rate:.1f} ms: "
        f"{step * rate / read:.1f} times the limit"
    )


def training(policy: Policy, settings: LimitSettings) -> None:
    batch = max(1, settings.tokens_per_microbatch // settings.episode_tokens)
    ids = torch.randint(1, 100, (batch, settings.episode_tokens), device=policy.device)  # [B, T]
    mask = torch.zeros_like(ids, dtype=torch.bool)  # [B, T]
    mask[:, -settings.episode_tokens // 8 :] = True
    policy.model.train()
    seconds = best_time(lambda: policy.logprobs(ids, mask)[0].sum().backward(), policy, settings.repeats)
    *matrices, head = map(n_weights, linear_weights(policy))
    work = 4 * (sum(matrices) * ids.numel() + head * mask.sum().item())
    rate = matmul_rate(policy, settings.repeats)
    print(
        f"training on {batch} x {settings.episode_tokens} tokens: {ids.numel() / seconds:.0f} tokens/s, "
        f"{work / seconds / 1e12:.2f} TFLOP/s, {work / seconds / rate:.0%} of the measured {rate / 1e12:.2f} TFLOP/s"
    )


def main() -> None:
    settings = parse_flags(LimitSettings)
    policy = settings.policy()
    if settings.gradient_checkpointing:
        checkpoint_activations(policy.model.get_base_model(), "on")
    training(policy, settings)
    if settings.compile:
        policy.compile()
        print("compiled: ", end="")
        training(policy, settings)
    decoding(policy, settings)


if __name__ == "__main__":
    command_line(main)
