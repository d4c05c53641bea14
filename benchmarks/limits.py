"""How far decoding and training are from what the device can do, both measured in the same run.

    python benchmarks/limits.py --model FOLDER_OR_HUB_NAME
    python benchmarks/limits.py --shape Qwen3-1.7B        random weights in that shape

A decoding step cannot be faster than reading the weights and the KV cache once at the measured memory bandwidth.
Training cannot be faster than its matrix products at the measured rate of large ones. Of a frozen layer with an adapter
those are two, forward and the gradient of the inputs; computing activations again (gradient checkpointing) is not
counted as work done, nor is attention.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shared import Settings, wait_for
from engine.command_line import command_line, parse_flags
from engine.models import checkpoint_activations, n_weights
from engine.policy import Policy
from engine.settings import check_bounds, flag
from rollout import Episode


@dataclass(frozen=True)
class LimitSettings(Settings):
    rows: int = flag(64, "conversations that are decoded at once", at_least=1)
    length: int = flag(1024, "tokens of each in the KV cache", at_least=1)
    episode_tokens: int = flag(
        1024, "tokens of the sequences that are trained on, an eighth of them sampled", at_least=8
    )
    gradient_checkpointing: bool = flag(False, "compute activations again in the backward pass")
    matrix: int = flag(0, "rows and columns of the large matrices; 0: 8192 on a GPU, 2048 on a CPU", at_least=0)
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


def matmul_rate(policy: Policy, n: int, repeats: int) -> float:
    """Floating-point operations per second of a large product in the model's precision."""
    n = n or (8192 if policy.device.type == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=policy.device, dtype=policy.model.dtype) for _ in range(2))
    return 2 * n**3 / best_time(lambda: a @ b, policy, repeats)


def linear_weights(policy: Policy) -> list[torch.Tensor]:
    """Those that every token goes through: the decoder's matrices, adapters left out, and the output head."""
    matrices = [p for name, p in policy.decoder.named_parameters() if p.dim() == 2 and "lora_" not in name]
    embedding = policy.decoder.get_input_embeddings().weight
    return [p for p in matrices if p is not embedding] + [policy.head.weight]


def bytes_per_token(policy: Policy) -> int:
    """Size of a token in the KV cache, all layers together."""
    config = policy.model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * policy.model.dtype.itemsize


def decoding(policy: Policy, settings: LimitSettings) -> tuple[float, float]:
    """Seconds of a decoding step, and what its memory traffic takes at the measured bandwidth.

    All conversations begin alike, so their beginning is read once and copied; what it takes is in the time of a short
    reply and in that of a long one, and the difference is decoding alone.
    """
    rows, length, short, more = settings.rows, settings.length, 5, 64
    policy.model.eval()  # in training, checkpointed layers would not use the cache
    policy.chat.open_turn, policy.chat.stop_ids = lambda episode: episode.add([1] * length), set()

    def replies(tokens: int) -> None:
        policy.settings = replace(policy.settings, max_reply_tokens=tokens)
        asking = [Episode("solve", 0, [], "", rng_key=str(row)) for row in range(rows)]
        answered = 0
        while answered < rows:
            answered += len(policy.reply(asking))
            asking = []

    with policy.sampling():
        replies(short + more)  # the cache grows here, and steps are captured
        seconds = [best_time(lambda n=n: replies(n), policy, settings.repeats) for n in (short + more, short)]
    step = (seconds[0] - seconds[1]) / more
    read = sum(weight.nbytes for weight in linear_weights(policy)) + bytes_per_token(policy) * rows * length
    rate = bandwidth(policy, settings.repeats)
    print(
        f"decoding {rows} conversations of {length} tokens: {1e3 * step:.1f} ms a step, {rows / step:.0f} tokens/s; "
        f"{read / 2**30:.2f} GiB at {rate / 1e9:.0f} GB/s take {1e3 * read / rate:.1f} ms: "
        f"{step * rate / read:.1f} times the limit"
    )
    return step, read / rate


def training(policy: Policy, settings: LimitSettings) -> tuple[float, float]:
    """Operations per second that the matrix products of training amount to, and those of a large product."""
    batch = max(1, settings.tokens_per_microbatch // settings.episode_tokens)
    ids = torch.randint(1, 100, (batch, settings.episode_tokens), device=policy.device)  # [B, T]
    mask = torch.zeros_like(ids, dtype=torch.bool)  # [B, T]
    mask[:, -settings.episode_tokens // 8 :] = True
    policy.train_mode()
    seconds = best_time(lambda: policy.logprobs(ids, mask)[0].sum().backward(), policy, settings.repeats)
    *matrices, head = map(n_weights, linear_weights(policy))
    work = 4 * (sum(matrices) * ids.numel() + head * mask.sum().item())
    rate = matmul_rate(policy, settings.matrix, settings.repeats)
    print(
        f"training on {batch} x {settings.episode_tokens} tokens: {ids.numel() / seconds:.0f} tokens/s, "
        f"{work / seconds / 1e12:.2f} TFLOP/s, {work / seconds / rate:.0%} of the measured {rate / 1e12:.2f} TFLOP/s"
    )
    return work / seconds, rate


def main() -> None:
    settings = parse_flags(LimitSettings)
    check_bounds(settings)
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
