"""Peak memory of training and of rollouts, with random weights in the shapes of Qwen3.

    python benchmarks/memory.py                            four shapes, LoRA and QLoRA (without a GPU 10 minutes)
    python benchmarks/memory.py configs/gpu-24gb.yaml      a settings file of train.py; its flags can follow
    python benchmarks/memory.py --model Qwen/Qwen3-4B --lora-rank 32 --kv-tokens 65536 --episode-tokens 2048
    python benchmarks/memory.py --model Qwen3-1.7B --on-cpu True       real tensors on the CPU, slowly

With a GPU the peaks are measured (`torch.cuda.max_memory_allocated`). Without one (or with CUDA_VISIBLE_DEVICES empty)
they are computed: the same code runs on tensors that have a shape but no data, and the sizes of those that are alive at
the same time are added up, with attention as PyTorch does it on GPUs from Ampere on. Neither contains the CUDA context
(about 0.5 GiB) and what the allocator loses by fragmentation. What is computed also lacks the workspaces of matrix
products, and takes 8-bit optimisers for plain AdamW.

With `--on-cpu` it is what the whole process had in memory at most since it began, everything included: a measured bound
for a machine that has no GPU but the memory.
"""

import contextlib
import dataclasses
import gc
import itertools
import resource
import sys
import weakref
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1]))

import engine.build
from benchmarks.shared import SHAPES, random_model
from engine.command_line import command_line, parse_flags
from engine.errors import BadInput
from engine.policy import Policy
from engine.processes import bitsandbytes
from engine.settings import Config, check_bounds, flag
from rollout import Episode
from train import update

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Settings(Config):
    episode_tokens: int = flag(4096, "tokens of every episode", at_least=256)
    on_cpu: bool = flag(False, "without a GPU: run on real tensors, and measure the process")


# ---------------------------------------------------------------------------------------------------------
# The model and the two phases


def train_phase(policy: Policy, optimizer, config: Settings) -> None:
    """A short update, which gives the optimiser its state, then one of a full micro-batch, all tokens trained, with
    gradients there already as if another one had gone before."""
    n = max(1, config.tokens_per_microbatch // config.episode_tokens)
    for step, lengths in enumerate(([16], [config.episode_tokens] * n)):
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        episodes = [Episode("solve", 0, [], "", advantage=1.0) for _ in lengths * config.updates_per_batch]
        for episode in episodes:
            episode.add([0] * lengths[0], [0.0] * lengths[0])
        update(policy, optimizer, episodes, config, step)


def rollout_phase(policy: Policy, optimizer, config: Settings) -> None:
    """Conversations that are given a prompt of half their tokens, one that nearly fills them, and a short one.

    It is lengths that take memory, so replies are cut to three tokens; to two in every fourth conversation, so that the
    others are sampled without it at the end. Those that `kv_tokens` has no room for wait, as always.
    """
    total, reply = config.episode_tokens, 3
    episodes = [Episode("solve", 0, [], "", rng_key=str(k)) for k in range(config.rollouts_at_once)]
    prompts = {episode: [total // 2, total - total // 2 - 64 - 3 * reply, 64] for episode in episodes}
    limits = {episode: reply if k % 4 else reply - 1 for k, episode in enumerate(episodes)}
    policy.sampler.kv_tokens = config.kv_tokens or total * len(episodes)
    policy.chat.open_turn = lambda episode: episode.add([int(episode.rng_key)] * prompts[episode].pop(0))  # none alike
    policy.chat.text, policy.chat.stop_ids, policy.max_new_tokens = lambda ids: "", set(), limits.get
    with policy.sampling():
        asking, to_come = episodes, 3 * len(episodes)  # replies
        while to_come:
            answered = [episode for episode, _ in policy.reply(asking)]
            to_come -= len(answered)
            asking = [episode for episode in answered if prompts[episode]]


# ---------------------------------------------------------------------------------------------------------
# Without a GPU


class Simulation(TorchDispatchMode):
    """Adds up the storages that are alive. What is asked of a value is answered with 1: gradients are finite, and
    masks true everywhere."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            return 1
        if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            tensor, [mask] = args
            out = tensor.new_empty(mask.numel(), *tensor.shape[mask.dim() :])
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.alive:
                size = -(-storage.nbytes() // 512) * 512  # as the CUDA allocator rounds
                self.alive.add(storage._cdata)
                self.now += size
                weakref.finalize(storage, self.free, storage._cdata, size)
        self.peak = max(self.peak, self.now + scratch(func.name(), args))
        return out

    def free(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size


def scratch(name: str, args: tuple) -> int:
    """Bytes that a CUDA kernel allocates for its own use."""
    if name == "bitsandbytes::gemm_4bit":  # large batches: the weight is unpacked
        return args[2][0] * args[2][1] * args[0].element_size()
    if name == "aten::_scaled_dot_product_flash_attention_backward":
        queries, keys = args[1:3]
        expanded = 2 * queries.nbytes if queries.shape[1] != keys.shape[1] else 0  # keys and values of every query head
        return 4 * queries.numel() + expanded  # the queries' gradient is summed in single precision
    return 0


def cuda_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """scaled_dot_product_attention on CUDA, in half precision: flash without a mask, memory-efficient with one."""
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, float("-inf"))
    if padding := -bias.shape[-1] % 8:
        bias = F.pad(bias, (0, padding))[..., :-padding]
    bias = bias.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, bias, query.requires_grad, scale=scale)[0]


@contextlib.contextmanager
def simulation():
    """Tensors made inside have no data; yields what adds them up."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(F, "scaled_dot_product_attention", cuda_attention),
        # transformers would take it for tracing and make masks that it can do without
        mock.patch("transformers.masking_utils.is_tracing", return_value=False),
        # modules convert such parameters by swapping, which fails where something refers to them weakly
        mock.patch("torch.utils.swap_tensors", lambda old, new: setattr(old, "data", new.data)),
        # tables that bitsandbytes keeps would have no data afterwards either
        mock.patch.dict(bitsandbytes.functional.name2qmap) if bitsandbytes else contextlib.nullcontext(),
        Simulation() as counter,
    ):
        yield counter


# ---------------------------------------------------------------------------------------------------------
# The table


def peaks(config: Settings) -> list[float]:
    """GiB of training and of rollouts."""
    if config.model.split("/")[-1] not in SHAPES or config.dtype == "float32":
        raise BadInput(f"model={config.model!r}: only {', '.join(SHAPES)}, in bfloat16 or 4 bits")
    cuda, found = torch.cuda.is_available(), []
    gc.collect()  # what is left of another model
    if cuda:
        torch.cuda.empty_cache()
        print(f"before: {torch.cuda.memory_allocated() / 2**30:.2f} GiB", file=sys.stderr)
    accelerator = Accelerator(cpu=not cuda)
    with contextlib.nullcontext() if cuda or config.on_cpu else simulation() as counter:
        loaded = random_model(config.model, config.load_in_4bit, accelerator.device)
        kind = "adamw" if counter else config.optimizer
        with mock.patch.object(engine.build, "load_model", return_value=loaded), contextlib.redirect_stdout(sys.stderr):
            policy, optimizer = engine.build.build(dataclasses.replace(config, optimizer=kind), accelerator)
        if counter:
            optimizer.param_groups[0]["foreach"] = True  # what AdamW does on a GPU
        for phase in (train_phase, rollout_phase):
            gc.collect()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            elif counter:
                counter.peak = counter.now
            phase(policy, optimizer, config)
            if cuda:
                found.append(torch.cuda.max_memory_allocated() / 2**30)
            elif counter:
                found.append(counter.peak / 2**30)
            else:
                found.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
            kept = f" ({torch.cuda.max_memory_reserved() / 2**30:.2f} with what the allocator keeps)" if cuda else ""
            print(f"{phase.__name__}: {found[-1]:.2f} GiB{kept}", file=sys.stderr)
    return found


def table() -> list[Settings]:
    """The published shapes in bfloat16 and, with bitsandbytes, in 4 bits."""
    bits = (False, True) if bitsandbytes else (False,)
    rows = itertools.product([name for name in SHAPES if name != "tiny"], bits, (2048, 4096))
    return [
        Settings(model=name, load_in_4bit=in_4bit, lora_rank=32, rollouts_at_once=16, episode_tokens=tokens)
        for name, in_4bit, tokens in rows
    ]


def main() -> None:
    configs = [parse_flags(Settings)]
    if len(sys.argv) == 1:
        configs = table()
    for config in configs:
        check_bounds(config)
    if torch.cuda.is_available():
        print(f"measured on {torch.cuda.get_device_name()}")
    elif configs[0].on_cpu:
        print("measured on the CPU: the whole process")
    else:
        print("computed, not measured: there is no GPU here")
    line = "{:10}  {:>8}  {:>4}  {:>14}  {:>11}  {:>12}  {:>13}  {:>11}".format
    print(line(*"model weights rank episode_tokens micro-batch training_GiB conversations rollout_GiB".split()))
    for c in configs:
        at_once = min(c.rollouts_at_once, max(1, c.kv_tokens // c.episode_tokens) if c.kv_tokens else 1 << 62)
        settings = (c.model.split("/")[-1], "NF4" if c.load_in_4bit else "bfloat16", c.lora_rank, c.episode_tokens)
        try:
            training, rollout = (f"{peak:.1f}" for peak in peaks(c))
        except torch.OutOfMemoryError:
            training = rollout = "too much"
        print(line(*settings, c.tokens_per_microbatch, training, at_once, rollout))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    command_line(main)
