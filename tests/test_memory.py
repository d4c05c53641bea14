"""benchmarks/memory.py: the computed peaks against those that a real run has on a CPU, as the profiler saw them."""

import gc
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile
from training import assert_one_line, run_here

import engine.build
from benchmarks import memory, shared


@pytest.fixture(autouse=True)
def small_shape(monkeypatch):
    """Long enough episodes and few enough words that the layers, the cache and the attention make the peaks."""
    small = {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1024}
    monkeypatch.setattr(shared, "SHARED", shared.SHARED | small)
    monkeypatch.setitem(shared.SHAPES, "small", (256, 2, 768, 4, True))


def settings(**changes) -> memory.Settings:
    few = {"episode_tokens": 512, "tokens_per_microbatch": 1024, "rollouts_at_once": 12}
    return memory.Settings(model="small", **(few | changes))


def profiled(config: memory.Settings) -> list[float]:
    """Bytes that training and rollouts take beyond what there is before, on real tensors."""
    accelerator = Accelerator(cpu=True)
    loaded = shared.random_model(config.model, config.load_in_4bit, accelerator.device)
    with mock.patch.object(engine.build, "load_model", return_value=loaded):
        policy, optimizer = engine.build.build(config, accelerator)
    peaks = []
    for phase in (memory.train_phase, memory.rollout_phase):
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            phase(policy, optimizer, config)
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
        peaks.append(peak)
    return peaks


def computed(config: memory.Settings) -> list[float]:
    """The same as the benchmark computes it, with the CPU's attention and optimiser instead of the GPU's."""
    starts = []

    def spy(phase):
        def run(policy, optimizer, config):
            optimizer.param_groups[0]["foreach"] = False
            starts.append(counters[-1].now)
            phase(policy, optimizer, config)

        return run

    counters = []
    init = memory.Simulation.__init__
    with (
        mock.patch.object(memory, "cuda_attention", torch.nn.functional.scaled_dot_product_attention),
        mock.patch.object(memory, "scratch", lambda *_: 0),  # (a Mock would keep every tensor it is called with)
        mock.patch.object(memory.Simulation, "__init__", lambda self: (init(self), counters.append(self))[0]),
        mock.patch.object(memory, "train_phase", spy(memory.train_phase)),
        mock.patch.object(memory, "rollout_phase", spy(memory.rollout_phase)),
    ):
        peaks = memory.peaks(config)
    return [peak * 2**30 - start for peak, start in zip(peaks, starts, strict=True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is nothing to compute with a GPU")
@pytest.mark.parametrize(
    "load_in_4bit, gradient_checkpointing", [(False, "off"), (True, "on")], ids=["bfloat16", "NF4"]
)
def test_computed_peaks_are_those_of_a_real_run(load_in_4bit, gradient_checkpointing):
    config = settings(load_in_4bit=load_in_4bit, gradient_checkpointing=gradient_checkpointing)
    # within 2 % but on CPUs with AMX, whose kernels take scratch space of their own
    assert computed(config) == pytest.approx(profiled(config), rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is nothing to compute with a GPU")
def test_what_takes_memory():
    config = settings()
    training, rollout = memory.peaks(config)
    # weights in 4 bits are smaller, and never merged
    assert memory.peaks(settings(load_in_4bit=True))[1] < rollout
    # a larger micro-batch, and a larger cache
    larger = memory.peaks(settings(tokens_per_microbatch=4096, rollouts_at_once=24))
    assert larger[0] > 1.5 * training and larger[1] > rollout
    # conversations beyond `kv_tokens` wait
    assert memory.peaks(settings(rollouts_at_once=24, kv_tokens=4 * 512))[1] < rollout


def test_a_shape_that_is_not_known_ends_in_one_line():
    message = run_here(["--model", "elsewhere/Other-7B"], memory.main)
    assert_one_line(message, "model='elsewhere/Other-7B': only")
