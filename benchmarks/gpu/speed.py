"""Parts 2 and 3: how far from what the device can do, and rollouts against other ways to sample them."""

import functools
import gc
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from benchmarks import limits
from benchmarks import rollout as rollouts
from benchmarks.gpu.common import CUDA, REHEARSAL, SHAPE, Figures
from benchmarks.gpu.run import read_figures
from benchmarks.shared import counted_replays
from engine.models import checkpoint_activations
from engine.policy import Policy

# ---------------------------------------------------------------------------------------------------------
# How far from what the device can do?


def limits_of_device(figure: Figures, _folder: Path, _seconds: float) -> None:
    tiny = {"rows": 4, "length": 64, "episode_tokens": 32, "tokens_per_microbatch": 64, "repeats": 1, "matrix": 256}
    settings = limits.LimitSettings(shape=SHAPE, **(tiny if REHEARSAL else {"repeats": 3}))
    policy = settings.policy()

    def training(name: str) -> None:
        began = time.monotonic()
        gc.collect()  # the model before this one
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        with figure.in_memory(f"training over the matrix rate, {name}"):
            done, rate = limits.training(policy, settings)
            figure(f"training over the matrix rate, {name}", done / rate, "", ">= 0.35")
            figure(f"matrix rate when that was measured, {name}", rate / 1e12, "TFLOP/s")
            if CUDA:
                figure(f"peak of memory, {name}", torch.cuda.max_memory_allocated() / 2**30, "GiB")
            figure(f"it took, compiling included, {name}", time.monotonic() - began, "s")

    def decoding(policy: Policy, name: str) -> None:
        with figure.in_memory(f"decoding step over its limit, {name}"):
            step, limit = limits.decoding(policy, settings)
            figure(f"decoding step over its limit, {name}", step / limit, "times", "<= 4")
            figure(f"decoding step, {name}", 1e3 * step, "ms")

    checkpoint_activations(policy.model.get_base_model(), "on")  # as train.py does it for models of this size
    training("eager")
    with counted_replays() as replays:
        decoding(policy, "CUDA graphs")
    figure("CUDA graphs replayed", len(replays))
    decoding(Policy(policy.model, policy.chat.tokenizer, replace(settings, cuda_graphs=False)), "plain steps")
    policy = settings.policy()  # one whose activations are kept
    training("eager, activations kept")
    if REHEARSAL:  # all but the compiler itself
        eager = functools.partialmethod(torch.nn.Module.compile, backend="eager")
        mock.patch.object(torch.nn.Module, "compile", eager).start()
        mock.patch("shutil.which", return_value="c++").start()
    policy.compile()
    training("--compile, activations kept")
    checkpoint_activations(policy.model.get_base_model(), "on")
    training("--compile")


# ---------------------------------------------------------------------------------------------------------
# Rollouts against other ways to sample them


def rollout_settings() -> rollouts.RolloutSettings:
    games = {"rollouts": 2, "pack_size": 1} if REHEARSAL else {"rollouts": 64, "pack_size": 2, "spell_out": True}
    return rollouts.RolloutSettings(shape=SHAPE, **games)


def against_naive(figure: Figures, _folder: Path, _seconds: float) -> None:
    settings = rollout_settings()
    policy = settings.policy(rollouts.FixedLengths)
    plain = rollouts.FixedLengths(policy.model, policy.chat.tokenizer, replace(settings, cuda_graphs=False))

    def timed(kind: type, policy: Policy, name: str) -> float:
        seconds, sampled = rollouts.measure(kind, policy, settings, name)
        figure(f"rollouts, {name}", seconds, "s")
        figure(f"rollouts, {name}: speed", sampled / seconds, "tokens/s")
        return seconds

    # what is loaded at first use is not to count
    rollouts.measure(rollouts.Ours, policy, replace(settings, rollouts=2, pack_size=1), "warm-up")
    with counted_replays() as replays:
        ours = timed(rollouts.Ours, policy, "ours")
    figure("CUDA graphs replayed", len(replays))
    figure("naive loop over ours", timed(rollouts.Naive, policy, "naive loop") / ours, "times", ">= 3")
    figure("ours in plain steps over ours", timed(rollouts.Ours, plain, "ours in plain steps") / ours, "times")


def against_continuous(figure: Figures, folder: Path, _seconds: float) -> None:
    settings = rollout_settings()
    if REHEARSAL:  # else its cache takes most of the memory
        few = functools.partial(rollouts.ContinuousBatchingConfig, num_blocks=8, max_batch_tokens=128)
        rollouts.ContinuousBatchingConfig = few
    policy = settings.policy(rollouts.FixedLengths)
    seconds, sampled = rollouts.measure(rollouts.Continuous, policy, settings, "continuous batching")
    figure("rollouts, continuous batching", seconds, "s")
    figure("rollouts, continuous batching: speed", sampled / seconds, "tokens/s")
    if ours := value(folder, "rollouts, ours"):
        figure("continuous batching over ours", seconds / ours, "times")


def value(folder: Path, name: str) -> float | None:
    """A figure that another part has written."""
    found = [f["value"] for f in read_figures(folder / "figures.jsonl") if f["figure"] == name]
    return found[-1] if found else None
