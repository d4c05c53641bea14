"""A tiny random model of any causal-LM type of the installed transformers: for benchmarks/architectures.py and tests.

`build` makes one from the type's default configuration by general rules over the names of its settings: small sizes,
few layers of which each kind is there, windows that a short conversation outgrows. `EXCEPTIONS` holds what the rules
do not know, `SHAPES` the shapes of published models. The weights are random, but the predictions are far from uniform
and depend on what came before, so that a sampler that computes otherwise than the trainer shows.
"""

import re

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
# the class that a published folder of such a type names, if that has further towers
WHOLE = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
MOST_LAYERS = 6
POSITIONS = 4096

# (names of settings, tiny value); the first pattern that matches the whole name counts. Settings that are None, 0 or
# smaller already stay as they are.
SIZES = [
    ("(decoder_|unpadded_)?vocab_size(_per_layer_input)?", None),  # of the tokenizer
    ("max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|max_target_positions|context_length"
     "|max_source_positions", POSITIONS),
    ("original_max_position_embeddings", 256),
    ("num_hidden_layers|n_layers?|num_layers|(num_)?(decoder|encoder)_layers|num_blocks|depth|num_global_layers", 2),
    ("num_layers_per_stack", 1),
    # heads
    ("(num_|decoder_|encoder_|swa_num_|num_decoder_|num_encoder_|conf_num_)?attention_heads|n_heads?|num_heads", 4),
    ("num_query_groups|linear_num_heads|linear_num_value_heads", 4),
    ("(swa_)?num_key_value_heads|num_kv_heads|linear_num_key_heads|index_n_heads", 2),
    ("qk_rope_head_dim|rotary_dim", 8),
    ("(swa_)?head_dim|kv_channels|d_head|dim_head|attention_head_size|d_kv|linear_(key_|value_)?head_dim"
     "|index_head_dim|qk_nope_head_dim|v_head_dim|codebook_dim|d_rel", 16),
    ("kv_lora_rank|q_lora_rank|o_lora_rank|laurel_rank|hc_lowrank|gated_norm_rank|adapter_rank|router_hidden_size"
     "|moe_latent_size", 16),
    # mixtures of experts
    ("(n_routed|num|num_local|moe_num)_experts", 4),
    ("num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|zero_expert_num|n_group|num_expert_group|o_groups", 2),
    ("topk_group", 1),
    ("(first_k_dense_replace|num_dense_layers|moe_layer_start_index)", 1),
    ("moe_layer_end_index", 3),
    # recurrent layers
    ("(mamba_d_|ssm_)?state(_size)?", 8),
    ("time_step_rank|mamba_dt_rank", 4),
    ("mamba_(n|num)_heads|n_mamba_heads", 8),
    ("mamba_(d_)?head_?dim", 16),
    ("n_groups|mamba_n_?groups", 2),
    ("(mamba_)?chunk_size|rel_extent", 16),
    # how far a layer looks
    ("(sliding|attention)_window(_size)?|window_size|sliding_window_size|local_attention|keep_window_size", 16),
    ("attention_chunk_size|floor_scale|(local|lsh)_attn_chunk_length|index_topk|log_scaling_n_floor|block_size", 16),
    ("index_block_size", 8),
    ("index_topk_blocks", 2),
    # towers for images and sound
    ("image_size", 32),
    ("patch_size", 16),
    ("num_mel_bins|feature_size|input_size", 16),
    # inner and outer widths
    ("intermediate_size(_mlp)?|(decoder_|encoder_)?ffn_dim|d_inner|n_inner|dim_ff|dff|d_ff|ffn_hidden_size|mlp_dim"
     "|(prefix_)?dense_intermediate_size|feed_forward_size", 96),
    ("(\\w*expert\\w*|moe|shared|moe_shared_expert)_(intermediate|ffn_hidden)_size", 32),
    ("hidden_size_per_layer_input|ple_embed_dim", 16),
    ("hidden_size(_global)?|d_model|n_embd|dim_model|emb(ed|edding)?_dim|embedding_size|(in|out)put_embedding_size"
     "|attention_hidden_size|backbone_hidden_size|lru_width|out_hidden_size|word_embed_proj_dim|projection_dim"
     "|mamba_d_ssm|dim_model_base|vision_output_dim|adapter_(in|out)_dim|pronunciation_embed_dim|shape_embed_dim", 64),
]  # fmt: skip
SIZES = [(re.compile(pattern), value) for pattern, value in SIZES]

LAYER_NUMBERS = (
    "hybrid_layer_ids full_attn_idxs moe_layers mlp_only_layers cross_attention_layers local_layer_ids ple_layer_ids"
).split()

# by type, or type and name of the part: what is to be set besides or instead
EXCEPTIONS: dict[str, dict] = {
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_hidden_layers": 4},
    "mamba2": {"num_heads": 8},
    "reformer": {"axial_pos_embds_dim": [16, 48]},
}


def tiny_values(default: PreTrainedConfig, vocab: int, path: str = "") -> dict:
    """The settings that make a configuration tiny, its parts (text_config and so on) included."""
    settings = default.to_dict()
    values = {}
    for name, value in settings.items():
        part = getattr(default, name, None) if isinstance(value, dict) else None
        if isinstance(part, PreTrainedConfig):
            values[name] = type(part)(**tiny_values(part, vocab, part.model_type) | EXCEPTIONS.get(part.model_type, {}))
        elif isinstance(value, int) and not isinstance(value, bool):
            small = next((small for pattern, small in SIZES if pattern.fullmatch(name)), value)
            if small is None:
                values[name] = vocab
            elif value > small or small == POSITIONS:
                values[name] = small
            elif re.fullmatch(r"\w+_token_(id|index)|(pad|bos|eos|unk|mask)_index", name) and value >= vocab:
                values[name] = vocab - 1
    for name, value in {"head_dim": 16, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts": 4}.items():
        if name in settings and settings[name] is None:
            values[name] = value
    keep_proportions(settings, values)
    values |= tiny_layers(settings, values)
    if "eos_token_id" in settings and not path:
        values |= {"eos_token_id": None, "bos_token_id": None}
        if settings["pad_token_id"] is not None:
            values["pad_token_id"] = min(settings["pad_token_id"], vocab - 1)
    if settings.get("is_decoder") is False:  # a type of encoders that can be decoders
        values["is_decoder"] = True
    return values


def keep_proportions(settings: dict, values: dict) -> None:
    """As many heads of one kind as of the other where it is so in the default."""
    for few, many in (("num_key_value_heads", "num_attention_heads"), ("num_kv_heads", "num_attention_heads"),
                      ("linear_num_key_heads", "linear_num_value_heads"), ("swa_num_key_value_heads",
                      "swa_num_attention_heads"), ("num_key_value_heads", "n_head")):  # fmt: skip
        if few in values and settings.get(many) == settings[few]:
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


SHAPES: dict[str, dict] = {}


def tiny_config(kind: str, vocab: int) -> PreTrainedConfig:
    """The configuration of a tiny model of this type."""
    make = CONFIG_MAPPING[kind]
    return make(**tiny_values(make(**DEFAULTS.get(kind, {})), vocab, kind) | EXCEPTIONS.get(kind, {}))


DEFAULTS: dict[str, dict] = {}  # types whose configuration has no defaults


def model_class(kind: str, config: PreTrainedConfig):
    """The class that writes a folder of this type."""
    import transformers

    return getattr(transformers, WHOLE.get(kind) or CAUSAL[kind])


def build(kind: str, vocab: int, seed: int = 0):
    """A tiny random model of this type with `vocab` tokens."""
    torch.manual_seed(seed)
    config = tiny_config(kind, vocab)
    cls = model_class(kind, config)
    if not isinstance(config, cls.config_class):
        config = config.get_text_config()
    # memory that is never written to holds nan in this mode, and so is found below
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = cls._from_config(config)
    finally:
        torch.use_deterministic_algorithms(False)
    model = model.to(torch.float32).eval()
    randomise(model)
    spread(model, vocab)
    return model


KEEP = re.compile(r"A_log|A|D|dt_bias|time_\w+|dt\w*|lambda\w*|freqs\w*|inv_\w+")  # own distributions, which matter


@torch.no_grad()
def randomise(model) -> None:
    """Matrices that keep the scale of what goes through them, and noise on everything else that is trained."""
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        last = name.split(".")[-1]
        if not weight.is_floating_point():
            continue
        if not weight.isfinite().all() and (isinstance(weight, torch.nn.Parameter) or last.endswith("bias")):
            weight.normal_(std=0.1)
        if not isinstance(weight, torch.nn.Parameter) or not weight.requires_grad:
            continue
        if weight.ndim < 2 or KEEP.fullmatch(last):
            weight.add_(0.1 * torch.randn_like(weight))
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.Embedding):
            weight.normal_()
        else:
            fan = weight.shape[-1] if weight.ndim < 3 else (weight.shape[-1] * weight.shape[-2]) ** 0.5
            weight.normal_(std=fan**-0.5)


@torch.no_grad()
def spread(model, vocab: int, deviation: float = 1.5) -> None:
    """Scale the output head so that the logits have this deviation. Raises ValueError if the predictions are not
    finite, do not differ, or do not depend on what came before."""
    ids = torch.randint(vocab, (2, 24), generator=torch.Generator().manual_seed(1))
    head = model.get_output_embeddings()
    for _ in range(6):
        now = model(input_ids=ids, use_cache=False).logits.std()
        if head is None or 0.8 < now / deviation < 1.25 or not now > 0:
            break
        head.weight.mul_((deviation / now).clamp(0.05, 20))
    if not 0.3 < now < 5:
        raise ValueError(f"logits have a deviation of {now:.2g}")
    logits = model(input_ids=ids, use_cache=False).logits
    other = ids.clone()
    other[:, 2] = (other[:, 2] + 1) % vocab
    change = (model(input_ids=other, use_cache=False).logits - logits).abs().amax((0, 2))
    if not change[3:].max() > 1e-3:
        raise ValueError(f"predictions do not depend on what came before ({change[3:].max():.1g})")
    if change[:2].max() > 1e-4:
        raise ValueError("predictions depend on what comes later")
