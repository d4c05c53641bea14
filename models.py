"""Models from a folder, the hub or a GGUF file, and LoRA adapters on them."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from envs import BadInput, first_line

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and on a CPU it then complains
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402

HERE = Path(__file__).parent


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

    dtype auto is as the weights are stored; but float16 becomes bfloat16, as gradients are too small for it.
    `gguf_file` names a GGUF file in it, whose weights are unpacked (to bfloat16, if dtype is auto). `load_in_4bit`
    stores the linear layers as NF4 with doubly quantised scales and computes in bfloat16.
    """
    if not Path(model).exists() and (HERE / model).exists():  # the embedded policy, from any working directory
        model = str(HERE / model)
    options = {"dtype": "bfloat16" if dtype == "auto" and (gguf_file or load_in_4bit) else dtype}
    source = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        if load_in_4bit:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        tokenizer = AutoTokenizer.from_pretrained(model, **source)
        loaded = AutoModelForCausalLM.from_pretrained(model, device_map={"": device}, **options, **source)
    except Exception as error:  # readers of weights and tokenizers raise errors of many kinds
        raise BadInput(f"model={model!r}: cannot be loaded ({first_line(error)})") from error
    if dtype == "auto" and loaded.dtype == torch.float16:
        return load_model(model, "bfloat16", device, gguf_file, load_in_4bit)
    if gguf_file:  # what was read is unpacked, but could not be saved as long as the model says otherwise
        loaded.hf_quantizer, loaded.is_quantized = None, False
        del loaded.config.quantization_config
        # some versions of transformers give the tokenizer the token that begins texts as the one that ends them
        if isinstance(end := loaded.config.get_text_config().eos_token_id, int):
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    for module in loaded.modules():
        # on a CPU, bitsandbytes would pack 4-bit weights for inference the first time that the model is sampled from,
        # and from then on no gradient would pass through them
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded, tokenizer


def n_weights(parameter: torch.Tensor) -> int:
    """Number of its weights; those in 4 bits are stored in pairs."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def is_large(model) -> bool:
    """Above 100 million weights."""
    return sum(map(n_weights, model.parameters())) > 1e8


def checkpoint_activations(model, setting: str) -> None:
    """Have activations computed again in the backward pass, if `setting` is on, or auto and the model is large."""
    if setting == "on" or setting == "auto" and is_large(model):
        # transformers has renamed it, and warns where the old name is used
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def add_adapter(model, lora: Lora = Lora(), folder: Path | None = None) -> PeftModel:
    """The model with a trainable adapter: a fresh one from the global random state, or the one saved in `folder`."""
    options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    targets = lora.targets if lora.targets == "all-linear" else lora.targets.split(",")
    with warnings.catch_warnings():  # about a property that peft reads and transformers renames
        warnings.simplefilter("ignore", FutureWarning)
        if folder is not None:
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
        else:
            try:
                adapted = get_peft_model(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **options))
            except ValueError as error:
                raise BadInput(f"lora_targets={lora.targets!r}: {first_line(error)}") from error
    for module in adapted.modules():
        # inputs are not to be cast to the adapter's float32; `Policy.precision` casts its weights instead
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    return adapted


def read_adapter(model: PeftModel, folder: Path) -> None:
    """Give the model's adapter the weights saved in `folder`."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
