"""The configuration of a tiny model of any causal-LM type of the installed transformers.

It is made from the type's default configuration by general rules over the names of its settings: small sizes, few
layers of which each kind is there, windows that a short conversation outgrows. `EXCEPTIONS` holds what the rules do not
know, `SHAPES` the shapes of published models.
"""

import re

from transformers import CONFIG_MAPPING, PreTrainedConfig

from benchmarks.models.rules import EXCEPTIONS, LAYER_NUMBERS, PAD, POSITIONS, SCALES, SIZES
from benchmarks.models.shapes import SHAPES

MOST_LAYERS = 6


def tiny_config(name: str, vocab: int) -> PreTrainedConfig:
    """The configuration of a tiny model of this type or shape."""
    kind, own = SHAPES.get(name, (name, {}))
    make = CONFIG_MAPPING[kind]
    values = tiny_values(make(), vocab) | EXCEPTIONS.get(kind, {})
    for setting, value in own.items():
        if isinstance(values.get(setting), PreTrainedConfig):  # of a part
            part = values[setting]
            default = type(part)()
            value = type(part)(**complete(tiny_values(default, vocab) | EXCEPTIONS.get(part.model_type, {}), value))
        values = complete(values, {setting: value})
    return make(**values)


def complete(values: dict, own: dict) -> dict:
    """These settings instead of tiny ones; how many layers there are follows from the list of their kinds."""
    values = values | own
    kinds = own.get("layer_types", own.get("layers_block_type"))
    if kinds:
        values["num_hidden_layers"] = len(kinds)
    return values


def tiny_values(default: PreTrainedConfig, vocab: int) -> dict:
    """The settings that make a configuration tiny, its parts (text_config and so on) included."""
    settings = default.to_dict()
    values = {}
    for name, value in settings.items():
        part = getattr(default, name, None) if isinstance(value, dict) else None
        if isinstance(part, PreTrainedConfig):
            own = EXCEPTIONS.get(part.model_type, {}) | EXCEPTIONS.get(f"{default.model_type}.{name}", {})
            values[name] = type(part)(**tiny_values(part, vocab) | own)
        elif isinstance(value, int) and not isinstance(value, bool):
            small = next((small for pattern, small in SIZES if pattern.fullmatch(name)), value)
            if small is None:
                values[name] = vocab
            elif value > small or small == POSITIONS:
                values[name] = small
            elif re.fullmatch(r"\w+_token_(id|index)|(pad|bos|eos|unk|mask)_index", name) and value >= vocab:
                values[name] = vocab - 1
    for name, value in {"head_dim": 16, "num_key_value_heads": 2, "n_routed_experts": 4,
                        "n_shared_experts": 1, "num_experts_per_tok": 2}.items():  # fmt: skip
        if name in settings and settings[name] is None:
            values[name] = value
    keep_proportions(settings, values)
    values |= tiny_layers(settings, values)
    if settings.get("pad_token_id") is not None:
        values["pad_token_id"] = PAD
    values |= {name: value for name, value in SCALES.items() if settings.get(name) == 1.0}
    if settings.get("is_decoder") is False:  # a type of encoders that can be decoders
        values["is_decoder"] = True
    return values


def keep_proportions(settings: dict, values: dict) -> None:
    """As many heads of one kind as of the other where it is so in the default."""
    for few, many in (("num_key_value_heads", "num_attention_heads"), ("num_kv_heads", "num_attention_heads"),
                      ("linear_num_key_heads", "linear_num_value_heads"), ("swa_num_key_value_heads",
                      "swa_num_attention_heads"), ("num_key_value_heads", "n_head")):  # fmt: skip
        if few in values and settings[few] and settings.get(many) == settings[few]:
            values[few] = values.get(many, settings[many])
    rope, head = settings.get("qk_rope_head_dim"), settings.get("head_dim")
    if rope and head:  # in some types head_dim is the part of a head that is rotated
        values["head_dim"] = values.get("qk_rope_head_dim", rope) * head // rope
    nope = settings.get("qk_nope_head_dim")
    if nope and "qk_head_dim" in settings:
        values["qk_head_dim"] = values.get("qk_nope_head_dim", nope) + values.get("qk_rope_head_dim", rope)


def tiny_layers(settings: dict, values: dict) -> dict:
    """A few layers, so that every kind is there: the settings that say how many there are and which."""
    counts = [name for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if settings.get(name)]
    if not counts:
        return {}
    n_layers = settings[counts[0]]
    lists = {name: value for name, value in settings.items() if isinstance(value, list) and len(value) == n_layers
             and name not in LAYER_NUMBERS and n_layers > 1}  # fmt: skip
    numbers = {name: settings[name] for name in LAYER_NUMBERS if isinstance(settings.get(name), list)}
    special = settings.get("per_layer_config") or {}
    kinds: dict[str, int] = {}  # kind -> the first layer of that kind
    for layer in range(n_layers):
        kind = [value[layer] for value in lists.values()] + [layer in value for value in numbers.values()]
        kinds.setdefault(repr((kind, special.get(f"{layer:02d}"))), layer)
    layers = list(kinds.values())[:MOST_LAYERS]
    if len(layers) == 1 and n_layers > 1:
        layers.append(layers[0] + 1)
    out = {name: len(layers) for name in counts}
    out |= {name: [value[layer] for layer in layers] for name, value in lists.items()}
    out |= {name: [new for new, layer in enumerate(layers) if layer in value] for name, value in numbers.items()}
    if special:
        sizes = {f"{new:02d}": dict(special[f"{layer:02d}"]) for new, layer in enumerate(layers)
                 if f"{layer:02d}" in special}  # fmt: skip
        for own in sizes.values():
            for name in own:
                own[name] = own[name] * values[name] // settings[name] if name in values else own[name]
        out["per_layer_config"] = sizes
    return out
