"""Models from a folder, the hub or a GGUF file, and LoRA adapters on them."""

import logging
import platform
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
)
from transformers.pytorch_utils import Conv1D

from engine.errors import BadInput, first_line
from engine.settings import REPO

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and on a CPU it then complains
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402

STUDENT = "default"  # peft's name for the adapter that is trained


@dataclass(frozen=True)
class Lora:
    """A fresh LoRA adapter. `targets`: all linear layers but the output head, or their names, separated by commas."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"


def load_model(
    model: str,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    gguf_file: str = "",
    load_in_4bit: bool = False,
):
    """(model, tokenizer) from a folder or a hub name. Raises BadInput in one line if that is not possible.

    dtype auto is as the weights are stored; but float16 becomes bfloat16, as gradients are too small for it, and that
    becomes float32 where a CPU has no instructions for it (it would take many times as long). `gguf_file` names a GGUF
    file in it, whose weights are unpacked (to bfloat16, if dtype is auto). `load_in_4bit` stores the linear layers as
    NF4 with doubly quantised scales and computes in bfloat16.
    """
    if not Path(model).exists() and (REPO / model).exists():  # the embedded policy, from any working directory
        model = str(REPO / model)
    options = {"dtype": "bfloat16" if dtype == "auto" and (gguf_file or load_in_4bit) else dtype}
    source = {"gguf_file": gguf_file} if gguf_file else {}
    if gguf_file:  # else some versions of transformers leave the weights packed, where no gradient passes
        options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        if load_in_4bit:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        tokenizer = AutoTokenizer.from_pretrained(model, **source)
        options |= {"device_map": {"": device}, "output_loading_info": True}
        loaded, info = AutoModelForCausalLM.from_pretrained(model, **options, **source)
    except Exception as error:  # readers of weights and tokenizers raise errors of many kinds
        raise BadInput(f"model={model!r}: cannot be loaded ({first_line(error)})") from error
    if missing := sorted(info["missing_keys"]):
        raise BadInput(f"model={model!r}: {len(missing)} of its weights are not in its files ({missing[0]} for one)")
    if dtype == "auto" and not load_in_4bit and loaded.dtype != torch.float32 and slow_bfloat16(device):
        print("weights in float32, as this CPU has no instructions for bfloat16 (--dtype bfloat16: half of the memory)")
        loaded.float()
    elif dtype == "auto" and loaded.dtype == torch.float16:
        return load_model(model, "bfloat16", device, gguf_file, load_in_4bit)
    if gguf_file and isinstance(end := loaded.config.get_text_config().eos_token_id, int):
        # some versions of transformers give the tokenizer the token that begins texts as the one that ends them
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    without_dropout(loaded)
    for module in loaded.modules():
        # on a CPU, bitsandbytes would pack 4-bit weights for inference the first time that the model is sampled from,
        # and from then on no gradient would pass through them
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded, tokenizer


def slow_bfloat16(device: str | torch.device) -> bool:
    """Whether it is a CPU of the x86 family without instructions for bfloat16."""
    if torch.device(device).type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def n_weights(parameter: torch.Tensor) -> int:
    """Number of its weights; those in 4 bits are stored in pairs."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def is_large(model) -> bool:
    """Above 100 million weights."""
    return sum(map(n_weights, model.parameters())) > 1e8


def checkpoint_activations(model, setting: str) -> None:
    """Have activations computed again in the backward pass, if `setting` is on, or auto and the model is large."""
    if setting == "on" or setting == "auto" and is_large(model):
        if not model.supports_gradient_checkpointing:
            print(f"{type(model).__name__} cannot compute activations again: training goes on without (more memory)")
            return
        # transformers has renamed it, and warns where the old name is used
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def without_dropout(model) -> None:
    """Switch a base model's own dropout off: sampling does without, and training has to agree with it."""

    def quiet(owner) -> None:
        for name, value in vars(owner).items():
            if isinstance(value, float) and "drop" in name:
                setattr(owner, name, 0.0)

    for module in model.modules():
        quiet(module)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    quiet(model.config)  # some layers look there
    quiet(model.config.get_text_config())


def text_decoder(model):
    """The part that turns tokens into hidden states, without a vision or audio tower, and without the output head."""
    decoder = model.get_decoder()
    if decoder is model or decoder is model.get_output_embeddings():  # some have other names for it
        return getattr(model, "model", model.base_model)
    return decoder


# ---------------------------------------------------------------------------------------------------------
# LoRA


def adaptable(model) -> dict[str, torch.nn.Module]:
    """The linear layers of the text decoder by name that an adapter can take part in, the output head left out: those
    that are called, give what a linear layer gives, and get a gradient, as a short pass shows. So the layers of a
    vision or audio tower, of an attention to an encoder that is not there, or of a choice without gradient get none,
    nor do routers that return several things. Which experts a pass meets is chance: they all count. The projection out
    of a Mamba layer does not, as its kernels take its matrix only."""
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    outputs: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(module, inputs, output) -> None:
        size = module.nf if isinstance(module, Conv1D) else module.out_features
        if isinstance(output, torch.Tensor) and output.shape == (*inputs[0].shape[:-1], size) and output.requires_grad:
            outputs[module] = output

    hooks = [module.register_forward_hook(keep) for module in linear.values()]
    try:
        with torch.enable_grad():
            ids = torch.arange(12, device=model.device)[None]  # [1, 12]
            hidden = text_decoder(model.eval())(input_ids=ids, use_cache=False).last_hidden_state  # [1, 12, d]
            gradients = torch.autograd.grad(hidden.sum(), list(outputs.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(outputs, gradients, strict=True)
    reached = {module for module, gradient in pairs if gradient is not None and (gradient != 0).any()}
    head, found = model.get_output_embeddings(), {}
    for name, module in linear.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        out_of_mamba = name.endswith(".out_proj") and hasattr(parent, "A_log") and hasattr(parent, "D")
        if (module in reached or ".experts." in name) and module is not head and not out_of_mamba:
            found[name] = module
    return found


def target_modules(model, targets: str) -> str | list[str]:
    """What peft is to adapt. Raises BadInput for names that match nothing."""
    linear = adaptable(model)
    everything = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    head = next((n for n, m in model.named_modules() if m is model.get_output_embeddings()), "")
    if targets == "all-linear":
        # said in these words where that is all, peft finds the experts that newer transformers fuse, too
        return targets if linear.keys() == everything - {head} else sorted(linear)
    names = [name.strip() for name in targets.split(",") if name.strip()]
    matches = {name: [n for n, _ in model.named_modules() if f".{n}".endswith(f".{name}")] for name in names}
    decoder = set(text_decoder(model).modules())
    inside = {n for n, m in model.named_modules() if m in decoder} | {head}
    for name in names:
        if not inside & set(matches[name]):
            choice = ", ".join(sorted({n.rpartition(".")[2] for n in [*linear, head]} - {""}))
            raise BadInput(f"lora_targets={targets!r}: {name!r} matches no layer of the text decoder; it has {choice}")
    if not names:
        raise BadInput(f"lora_targets={targets!r}: names no layer; all-linear, or names separated by commas")
    matched = {n for found in matches.values() for n in found}
    return names if matched <= inside else sorted(matched & inside)


def add_adapter(model, lora: Lora = Lora(), folder: Path | None = None) -> PeftModel:
    """The model with a trainable adapter: a fresh one from the global random state, or the one saved in `folder`."""
    with warnings.catch_warnings():  # about a property that peft reads and transformers renames
        warnings.simplefilter("ignore", FutureWarning)
        if folder is not None:
            try:
                config = LoraConfig.from_pretrained(folder)
                config.inference_mode = False
                adapted = get_peft_model(model, config)
            except Exception as error:  # whatever a damaged adapter_config.json makes peft raise
                raise BadInput(f"{folder}: this adapter cannot be read ({first_line(error)})") from error
            read_adapter(adapted, folder)
        else:
            options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
            targets = target_modules(model, lora.targets)
            try:
                adapted = get_peft_model(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **options))
            except ValueError as error:
                raise BadInput(f"lora_targets={lora.targets!r}: {first_line(error)}") from error
    for module in adapted.modules():
        # inputs are not to be cast to the adapter's float32; `Weights.precision` casts its weights instead
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    return adapted


@torch.no_grad()
def read_adapter(model: PeftModel, folder: Path, adapter: str = STUDENT) -> None:
    """Give the model's adapter of that name the weights saved in `folder`. Raises BadInput if these cannot be read, or
    belong to another model."""
    try:
        if not (folder / "adapter_model.safetensors").exists():  # else peft would look for it on the hub
            raise FileNotFoundError("it has no adapter_model.safetensors")
        saved = {name: value for name, value in load_peft_weights(str(folder), device="cpu").items() if "lora_" in name}
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise BadInput(f"{folder}: this adapter cannot be read ({first_line(error)})") from error
    # the parameters themselves, by those names
    own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    own = {name: value for name, value in own.items() if "lora_" in name}
    missing, unknown = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    other = sorted(name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape)
    if missing or unknown or other:
        raise BadInput(
            f"{folder}: this adapter does not fit the model: {len(missing)} of its weights are missing, {len(unknown)} "
            f"belong nowhere, {len(other)} have other shapes ({[*missing, *unknown, *other][0]} for one)"
        )
    for name, value in own.items():
        value.copy_(saved[name])


def adapted_weights(model) -> list[tuple[LoraLayer, torch.nn.Module, str]]:
    """Every adapted matrix: the layer of peft, the module that holds the matrix, and its name there."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [(layer, layer.get_base_layer(), getattr(layer, "parameter_name", "weight")) for layer in layers]


def tied_weights(model) -> set[int]:
    """ids of the parameters that several modules share, as embedding and output head often do."""
    counts = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {key for key, count in counts.items() if count > 1}


@torch.no_grad()
def merge_adapter(adapted: list[tuple[LoraLayer, torch.nn.Module, str]]) -> None:
    """Merge an adapter into copies of its matrices, made from the frozen ones.

    They are rounded up or down at random: an adapter that has learnt little changes a weight by less than half the
    distance between two bfloat16 numbers, and would vanish if all were rounded to the nearest.
    """
    for number, (layer, module, name) in enumerate(adapted):
        [adapter] = layer.active_adapters
        parameter = getattr(module, name)
        dtype = parameter.dtype
        parameter.data = parameter.data.float()  # fused experts get their difference in the precision of the matrix
        merged = parameter.data + layer.get_delta_weight(adapter)  # [out, in], in single precision
        if not merged.sum().isfinite():
            raise BadInput("the adapter cannot be merged: it is not finite")
        parameter.data = dithered(merged, dtype, number)
        layer.merged_adapters.append(adapter)


def merged_model(model: PeftModel):
    """The model without peft, its adapter merged in for good. Raises BadInput if transformers could not load it so."""
    base, tied = model.get_base_model(), tied_weights(model)
    if type(base.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(f"{type(base).__name__}: transformers does not load such a model by itself, so it is not merged")
    embedding = base.get_input_embeddings().weight
    for _, module, name in adapted_weights(model):
        weight = getattr(module, name)
        if id(weight) in tied and weight is not embedding:
            raise BadInput(f"{type(base).__name__}: layers with adapters of their own share a matrix; it is not merged")
        if id(weight) in tied:  # embedding and output head; what the other one does must stay as it was
            setattr(module, name, torch.nn.Parameter(weight.data.clone()))
            for config in (base.config, base.config.get_text_config()):
                config.tie_word_embeddings = False
    merge_adapter(adapted_weights(model))
    return model.unload()


def dithered(values: torch.Tensor, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Single-precision values in `dtype`; to bfloat16 each is rounded up with a probability of how far it is on its way
    up, so that in the mean nothing is lost. What bfloat16 can hold stays as it is. The same seed, the same rounding."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    generator = torch.Generator(values.device).manual_seed(seed)
    bits = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits.add_(values.view(torch.int32)).bitwise_and_(-1 << 16)  # bfloat16 is the upper half of single precision
    return bits.view(torch.float32).to(dtype)


def describe_adapter(model: PeftModel) -> str:
    """What is adapted and which other matrices of the text decoder stay frozen, by their names."""
    adapted = {id(getattr(module, name)) for _, module, name in adapted_weights(model)}
    embedding = model.get_base_model().get_input_embeddings().weight
    named: dict[bool, Counter] = {True: Counter(), False: Counter()}
    for name, parameter in text_decoder(model.get_base_model()).named_parameters():
        if parameter.dim() > 1 and "lora_" not in name and parameter is not embedding:
            path = [part for part in name.split(".") if part not in ("base_layer", "weight")]
            named[id(parameter) in adapted][path[-1]] += 1
    words = {k: " ".join(f"{name} x{n}" for name, n in counter.items()) or "nothing" for k, counter in named.items()}
    return f"adapter on {words[True]}; frozen: {words[False]}"
