"""What can be known of a GPU without one: nothing mixes devices, and sampling does not wait for the GPU token by token.

The model lies on the "meta" device, whose tensors have a shape but no data. What a GPU would refuse is found, what it
would be waited for is counted, and what is asked of a value is answered with 1.
"""

import contextlib
import random
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from doubles import new_conversations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import engine.build
from benchmarks import shared
from engine.draft import Draft
from engine.policy import Policy
from engine.settings import Config
from train import training_step

aten = torch.ops.aten
MAY_CROSS = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)  # indices may lie on the CPU


class TwoDevices(TorchDispatchMode):
    """Fails at every operation on tensors of both devices that a GPU would refuse; `waits`: how often the CPU needs a
    value, or a shape that follows from values."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func is aten._local_scalar_dense.default and source.is_meta:
            self.waits += 1
            return 1
        if func is aten._to_copy.default and source.is_meta and kwargs.get("device") == torch.device("cpu"):
            self.waits += 1
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if func in INDEXED:
            assert all(i is None or i.device.type in ("cpu", source.device.type) for i in args[1]), f"{func}: indices"
        if func not in MAY_CROSS:
            tensors = tree_leaves((args[:1] + args[2:], kwargs) if func in INDEXED else (args, kwargs))
            devices = {t.device.type for t in tensors if isinstance(t, torch.Tensor) and t.dim()}
            assert len(devices) < 2, f"{func}: tensors of several devices"
        if func is aten.index.Tensor and source.is_meta and args[1][0] is not None and args[1][0].dtype == torch.bool:
            self.waits += 1
            mask = args[1][0]  # as if all were true
            return source.new_empty(mask.numel(), *source.shape[mask.dim() :])
        return func(*args, **kwargs)


@pytest.fixture
def on_no_device(monkeypatch):
    """A function that builds policy and optimiser with a random model on the device without data."""
    monkeypatch.setitem(shared.SHAPES, "small", (64, 2, 96, 8, True))
    # autocast knows real devices only
    monkeypatch.setattr(Policy, "precision", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))

    def build(config, shape="small"):
        model, tokenizer = shared.random_model(shape, False, "meta")
        with mock.patch.object(engine.build, "load_model", return_value=(model.float(), tokenizer)):
            return engine.build.build(config, Accelerator(cpu=True))

    return build


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_coef": 0.1, "updates_per_batch": 2, "gradient_checkpointing": "on"},
        {"merge_adapter": False, "kv_tokens": 4000, "tokens_per_microbatch": 1000},
    ],
)
def test_a_training_step_stays_on_the_device_of_the_model(changes, on_no_device):
    config = Config(pack_size=2, packs_per_step=4, group_size=2, max_reply_tokens=6, **changes)
    with TwoDevices():
        policy, optimizer = on_no_device(config)
        policy.sampler.block = 4  # as on a GPU
        policy.chat.text = lambda ids: "<answer>Direction 1</answer>"  # so that tasks have several turns
        _, groups = training_step(policy, optimizer, config, 0)
    assert policy.device.type == "meta"
    assert any(len(episode.replies) > 2 for [rollout, _] in groups for episode in rollout.episodes)


def test_sampling_waits_once_for_a_block_of_tokens_and_their_log_probabilities(on_no_device):
    with TwoDevices() as devices, torch.no_grad():
        policy, _ = on_no_device(Config())
        policy.sampler.block = 4  # as on a GPU
        with policy.sampling():
            conversations = new_conversations("one", "another", "a third")
            for episode in conversations:
                policy.chat.open_turn(episode)
            policy.sampler._open([Draft(episode, 9, set(), random.Random(0)) for episode in conversations])
            before = devices.waits
            policy.sampler._decode()
            assert devices.waits == before + 2 and [len(draft.ids) for draft in policy.sampler.drafts] == [5, 5, 5]


def test_mixing_devices_is_found():
    on_cpu, elsewhere = torch.ones(3), torch.ones(3, device="meta")
    with TwoDevices():
        elsewhere[torch.tensor([0, 2])], elsewhere + torch.tensor(1.0), elsewhere.copy_(on_cpu)  # a GPU takes these
        with pytest.raises(AssertionError):
            elsewhere + on_cpu
        with pytest.raises(AssertionError):
            on_cpu[elsewhere.long()] = on_cpu


@pytest.mark.parametrize("shape, lr, checkpointing", [("small", 5e-3, False), ("large", 2e-5, True)])
def test_large_models_get_a_lower_learning_rate_and_gradient_checkpointing(
    shape, lr, checkpointing, on_no_device, monkeypatch
):
    monkeypatch.setitem(shared.SHAPES, "large", (1024, 1, 3072, 16, True))  # the words alone are above 100 million
    with TwoDevices():
        policy, optimizer = on_no_device(Config(), shape)
        _, given = on_no_device(Config(lr=0.1), shape)
    assert (optimizer.defaults["lr"], given.defaults["lr"]) == (lr, 0.1)
    assert policy.decoder.gradient_checkpointing == checkpointing
