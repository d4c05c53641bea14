"""What the benchmarks have in common: settings, the model with an adapter, the packs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from unittest import mock

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3 import modeling_qwen3

from engine.errors import BadInput
from engine.models import REPO, Lora, add_adapter, load_model
from engine.policy import Policy
from engine.processes import bitsandbytes
from engine.settings import Sampling, flag
from envs import Pack, make_pack

COLUMNS = "hidden_size num_hidden_layers intermediate_size num_attention_heads tie_word_embeddings".split()
SHAPES = {  # of the public model cards
    "Qwen3-0.6B": (1024, 28, 3072, 16, True),
    "Qwen3-1.7B": (2048, 28, 6144, 16, True),
    "Qwen3-4B": (2560, 36, 9728, 32, True),
    "Qwen3-8B": (4096, 36, 12288, 32, False),
    "tiny": (64, 2, 192, 4, True),  # of no model: to try the benchmarks out
}
SHARED = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}
TINY = SHARED | {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1024}


@dataclass(frozen=True)
class Settings(Sampling):
    model: str = flag("embedded-policy", "model folder or hub name")
    shape: str = flag("", f"instead of a model, random weights in this shape: {', '.join(SHAPES)}")
    load_in_4bit: bool = flag(False, "linear layers in 4 bits (NF4, bitsandbytes)")
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "weights of a model; auto: as they are stored")
    level: str = flag("tiny", "level of FrozenLake")
    pack_size: int = flag(4, "tasks in a pack", at_least=1)
    rollouts: int = flag(64, "rollouts, eight of each pack", at_least=1)
    tokens_per_microbatch: int = flag(8192, "padded tokens in one forward pass of training", at_least=1)
    repeats: int = flag(2, "times that each way is measured, in turn; the best counts", at_least=1)

    def packs(self) -> list[Pack]:
        return [make_pack("frozenlake", n // 8, self.pack_size, self.level) for n in range(self.rollouts)]

    def policy(self, kind: type[Policy] = Policy) -> Policy:
        """The model with a fresh adapter, which samples by these settings."""
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.shape and self.shape not in SHAPES:
            raise BadInput(f"shape={self.shape!r}: unknown shape; choose from {', '.join(SHAPES)}")
        if self.shape:
            model, tokenizer = random_model(self.shape, self.load_in_4bit, device)
        else:
            model, tokenizer = load_model(self.model, self.dtype, device, load_in_4bit=self.load_in_4bit)
        return kind(add_adapter(model, Lora()), tokenizer, self)


def wait_for(policy: Policy) -> None:
    """Until the GPU has done its work, if there is one."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def counted_replays() -> Iterator[list]:
    """Yields a list that gets an entry for every CUDA graph that is replayed meanwhile: without any, what was meant to
    be captured ran as plain steps."""
    replays, replay = [], torch.cuda.CUDAGraph.replay

    def counted(graph):
        replays.append(None)
        return replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counted):
        yield replays


def random_model(name: str, in_4bit: bool, device: torch.device | str):
    """(random weights in that shape and in bfloat16 (tiny: float32), the embedded policy's tokenizer).

    The weights are made on the device; those in 4 bits layer by layer, so that they never exist whole before.
    """
    if in_4bit and bitsandbytes is None:
        raise BadInput("load_in_4bit=True: needs bitsandbytes; pip install bitsandbytes")

    class QuantisedLayer(modeling_qwen3.Qwen3DecoderLayer):
        def __init__(self, *args):
            super().__init__(*args)
            for module in self.modules():
                if isinstance(module, torch.nn.Linear):
                    quantise(module)

    layer = QuantisedLayer if in_4bit else modeling_qwen3.Qwen3DecoderLayer
    columns = dict(zip(COLUMNS, SHAPES[name.split("/")[-1]], strict=True))
    shape = Qwen3Config(**columns, **(TINY if name == "tiny" else SHARED))
    with torch.device(device), mock.patch.object(modeling_qwen3, "Qwen3DecoderLayer", layer):
        model = Qwen3ForCausalLM._from_config(shape, dtype=torch.float32 if name == "tiny" else torch.bfloat16)
    model.is_loaded_in_4bit = in_4bit  # peft asks
    return model, AutoTokenizer.from_pretrained(REPO / "embedded-policy")


def quantise(linear: torch.nn.Linear) -> None:
    """Make it what `load_model` loads in 4 bits, but for the class of its weight, which needs data."""
    data, state = bitsandbytes.functional.quantize_4bit(linear.weight.data, quant_type="nf4", compress_statistics=True)
    weight = linear.weight = torch.nn.Parameter(data, requires_grad=False)
    weight.quant_state, weight.quant_type, weight.compress_statistics = state, "nf4", True
    weight._is_hf_initialized = True  # transformers is to leave it as it is
    linear.__class__ = bitsandbytes.nn.Linear4bit
    linear.compute_dtype, linear.compute_type_is_set = torch.bfloat16, True
    linear.support_avx512bf16_for_cpu = False
