"""A tiny random model of any causal-LM type of the installed transformers: for benchmarks/architectures.py and tests.

`build` makes one from the type's default configuration by general rules over the names of its settings: small sizes,
few layers of which each kind is there, windows that a short conversation outgrows. `EXCEPTIONS` holds what the rules
do not know, `SHAPES` the shapes of published models. The weights are random, but the predictions are far from uniform
and depend on what came before, so that a sampler that computes otherwise than the trainer shows.
"""

import math
import re

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
# the class that a published folder of such a type names, if that has further towers
WHOLE = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
MOST_LAYERS = 6
POSITIONS = 4096
PAD = 255  # stands for a byte that no text here has; some types count positions by what is not this token

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
    ("(sliding|attention)_window(_size)?|window_size|sliding_window_size|local_attention", 16),
    ("attention_chunk_size|floor_scale|(local|lsh)_attn_chunk_length|log_scaling_n_floor|block_size", 16),
    ("index_block_size", 8),
    ("index_topk_blocks", 2),
    ("index_topk|keep_window_size", 2048),  # as published: conversations end before layers choose among the keys
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
     "|mamba_d_ssm|dim_model_base|vision_output_dim|adapter_(in|out)_dim|adapter_input_size|pronunciation_embed_dim"
     "|shape_embed_dim", 64),
]  # fmt: skip
SIZES = [(re.compile(pattern), value) for pattern, value in SIZES]

# factors that are 1 in the defaults, but not in published models
SCALES = {
    "logits_scaling": 8.0,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.25,
    "lm_head_multiplier": 0.5,
}

LAYER_NUMBERS = (
    "hybrid_layer_ids full_attn_idxs moe_layers mlp_only_layers cross_attention_layers local_layer_ids ple_layer_ids"
).split()

# by type (of the model or of a part), or by type and name of the part: what is to be set besides or instead
EXCEPTIONS: dict[str, dict] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
        }
    },
    "dbrx.attn_config": {"rope_theta": 500000.0, "clip_qkv": 8.0},
    "emu3.vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "attn_resolutions": [], "codebook_size": 64},
    "emu3": {"vocabulary_map": {"<image>": 3, "<|extra_200|>": 4, "<|visual token 000000|>": 5}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "intermediate_size": [96] * 4,
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"layer_types": ["full_attention", "sliding_attention"], "num_attention_heads_per_layer": [4, 8]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "llama4.vision_config": {"projector_input_dim": 64, "projector_output_dim": 64, "intermediate_size": 256},
    "mamba2": {"num_heads": 8},
    "mimo_v2_flash": {"head_dim": 24},
    "prophetnet": {"max_position_embeddings": 600},
    "qwen4_exp_text": {
        "eos_token_id": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [16, 48]},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
}


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


LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
GRANITE = {  # of all published Granite 4: logits_scaling is the width / 256, attention_multiplier 1 / head_dim
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "tie_word_embeddings": True,
}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 256, "beta_fast": 32.0, "beta_slow": 1.0}
# The shapes of published models: type, and what their configurations say, cut to a few layers. Which kinds of layers
# there are, numbers of heads, tied or not, kinds of rotary embedding, factors and caps are the published ones; widths,
# windows and experts are in proportion or as small as they go. In the comments: the published sizes.
SHAPES: dict[str, tuple[str, dict]] = {
    # 24 layers, every 4th with full attention: 8 heads of 256, 2 key-value heads; else 16 heads of 128; width 1024
    "Qwen3.5-0.8B": ("qwen3_5", {"tie_word_embeddings": True, "text_config": {
        "layer_types": [LINEAR] * 3 + [FULL], "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
        "linear_num_key_heads": 16, "linear_num_value_heads": 16,
        "tie_word_embeddings": True}}),
    # the text part of the next larger one, width 2048, as a folder of its own
    "Qwen3.5-2B text": ("qwen3_5_text", {
        "layer_types": [LINEAR] * 3 + [FULL], "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8,
        "linear_num_key_heads": 16, "linear_num_value_heads": 16,
        "tie_word_embeddings": True}),
    # 48 layers; 16 heads of 256, 2 key-value heads; linear: 16 and 32 heads of 128; 512 experts, 10 of them, 1 shared
    "Qwen3-Next-80B-A3B": ("qwen3_next", {
        "layer_types": [LINEAR] * 3 + [FULL], "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 8,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "num_experts": 16, "num_experts_per_tok": 4, "tie_word_embeddings": False}),
    # 16 layers, 10 of them short convolutions over 3 tokens; 32 heads of 64, 8 key-value heads; width 2048
    "LFM2.5-1.2B": ("lfm2", {
        "layer_types": ["conv", "conv", FULL, "conv"], "hidden_size": 128, "num_attention_heads": 32,
        "num_key_value_heads": 8, "conv_L_cache": 3, "tie_word_embeddings": True}),
    # 40 layers, 4 with attention and no positions: 32 heads of 64, 8 key-value heads; Mamba: 64 heads of 64
    "Granite-4.0-H-Micro": ("granitemoehybrid", GRANITE | {
        "layer_types": [LINEAR, LINEAR, FULL, LINEAR], "hidden_size": 128, "num_attention_heads": 32,
        "num_key_value_heads": 8, "mamba_n_heads": 64, "mamba_d_head": 4, "mamba_d_state": 16, "num_local_experts": 0,
        "num_experts_per_tok": 0, "shared_intermediate_size": 128, "position_embedding_type": "nope",
        "attention_multiplier": 0.25, "logits_scaling": 8.0}),
    # the same with 64 experts, 6 of them; 12 heads of 128, 4 key-value heads; Mamba: 48 heads of 64; width 1536
    "Granite-4.0-H-Tiny": ("granitemoehybrid", GRANITE | {
        "layer_types": [LINEAR, LINEAR, FULL, LINEAR], "hidden_size": 96, "num_attention_heads": 12,
        "num_key_value_heads": 4, "mamba_n_heads": 48, "mamba_d_head": 4, "mamba_d_state": 16, "num_local_experts": 8,
        "num_experts_per_tok": 3, "intermediate_size": 32, "shared_intermediate_size": 64,
        "position_embedding_type": "nope", "attention_multiplier": 0.125, "logits_scaling": 6.0}),
    # 40 layers, all with attention: 40 heads of 64, 8 key-value heads; width 2560
    "Granite-4.0-Micro": ("granitemoehybrid", GRANITE | {
        "layer_types": [FULL, FULL], "hidden_size": 160, "num_attention_heads": 40, "num_key_value_heads": 8,
        "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 128,
        "position_embedding_type": "rope", "attention_multiplier": 0.25, "logits_scaling": 10.0}),
    # 24 layers, every other with a window of 128; 64 heads of 64, 8 key-value heads; width 2880; 32 experts, 4 of them
    "gpt-oss-20b": ("gpt_oss", {
        "layer_types": [SLIDING, FULL], "hidden_size": 96, "num_attention_heads": 16, "num_key_value_heads": 2,
        "head_dim": 8, "num_local_experts": 8, "num_experts_per_tok": 4, "tie_word_embeddings": False,
        "rope_parameters": YARN | {"rope_theta": 150000.0, "factor": 32.0, "truncate": False}}),
    # 26 layers, every other with a window of 4096; 8 heads of 256, 4 key-value heads; width 2304; caps 50 and 30
    "Gemma-2-2b": ("gemma2", {
        "hidden_size": 72, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
        "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True}),
    # 26 layers, 5 of 6 with a window of 512; 4 heads of 256, 1 key-value head; width 1152
    "Gemma-3-1b": ("gemma3_text", {
        "layer_types": [SLIDING] * 3 + [FULL], "num_hidden_layers": 4, "hidden_size": 72, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}),
    # 34 layers, 5 of 6 with a window of 1024; 8 heads of 256, 4 key-value heads; width 2560; with a vision part
    "Gemma-3-4b": ("gemma3", {"tie_word_embeddings": True, "text_config": {
        "layer_types": [SLIDING] * 3 + [FULL], "num_hidden_layers": 4, "hidden_size": 80, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 8, "query_pre_attn_scalar": 8, "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}}}}),
    # 30 layers, 4 of 5 with a window of 512, the last 10 with the keys and values of earlier ones; 8 heads of 256, 2
    # key-value heads; width 2048; 4 streams (AltUp); the text part
    "Gemma-3n-E2B text": ("gemma3n_text", {
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "hidden_size_per_layer_input": 8,
        "final_logit_softcapping": 30.0, "tie_word_embeddings": True}),
    # 35 layers, 4 of 5 with a window of 512, the last 20 with the keys and values of earlier ones and wider; 8 heads
    # of 256 (512 in full attention), 1 key-value head; width 1536; cap 30
    "Gemma-4-E2B": ("gemma4", {"text_config": {
        "layer_types": [SLIDING, FULL] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8,
        "hidden_size_per_layer_input": 8, "final_logit_softcapping": 30.0, "tie_word_embeddings": True,
        "per_layer_config": {"01": {"head_dim": 16}, "03": {"head_dim": 16}}}}),
    # 30 layers, 5 of 6 with a window of 1024; 16 heads, 8 key-value heads (in full attention 2, values are the keys);
    # a dense part and 128 experts, 8 of them, side by side
    "Gemma-4-26B-A4B": ("gemma4", {"text_config": {
        "layer_types": [SLIDING, FULL], "num_hidden_layers": 2, "enable_moe_block": True, "num_experts": 8,
        "top_k_experts": 2, "moe_intermediate_size": 32, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 8, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True, "per_layer_config": {"01": {"head_dim": 16, "num_key_value_heads": 2}}}}),
    # 48 layers; 32 heads of 128, 4 key-value heads; width 2048; 128 experts, 8 of them
    "Qwen3-30B-A3B": ("qwen3_moe", {
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 4, "num_experts": 16,
        "num_experts_per_tok": 4, "norm_topk_prob": True, "tie_word_embeddings": False}),
    # 32 layers; 32 heads of 128, 8 key-value heads; width 4096; 8 experts, 2 of them
    "Mixtral-8x7B": ("mixtral", {
        "hidden_size": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 4, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False}),
    # 16 layers; 16 heads of 128 and as many key-value heads; width 2048; 64 experts, 8 of them
    "OLMoE-1B-7B": ("olmoe", {
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 16, "num_experts_per_tok": 4,
        "norm_topk_prob": False, "tie_word_embeddings": False}),
    # 27 layers, the first dense; 16 heads of 128 + 64, keys and values from 512, queries in full; 64 experts, 6 of
    # them, and 2 shared
    "DeepSeek-V2-Lite": ("deepseek_v2", {
        "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "n_routed_experts": 16,
        "num_experts_per_tok": 3, "n_shared_experts": 2, "first_k_dense_replace": 1, "topk_method": "greedy",
        "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "rope_parameters": YARN | {"rope_theta": 10000.0, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    # 61 layers, the first 3 dense; 128 heads of 128 + 64; 256 experts in 8 groups, 8 of them from 4 groups, 1 shared
    "DeepSeek-V3": ("deepseek_v3", {
        "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 16, "num_experts_per_tok": 4,
        "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "rope_parameters": YARN | {"rope_theta": 10000.0, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    # 46 layers, the first dense; 96 heads of 128, 8 key-value heads; width 4096; 128 experts, 8 of them, 1 shared
    "GLM-4.5-Air": ("glm4_moe", {
        "num_attention_heads": 24, "num_key_value_heads": 2, "head_dim": 8, "attention_bias": True,
        "use_qk_norm": False, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "tie_word_embeddings": False}),
    # 16 layers; 32 heads of 64, 8 key-value heads; width 2048; tied
    "Llama-3.2-1B": ("llama", {
        "hidden_size": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 4,
        "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 256}}),
    # 48 layers, 3 of 4 in chunks of 8192, the 4th without positions; 40 heads of 128, 8 key-value heads; width 5120;
    # 16 experts, 1 of them, and 1 shared; with a vision part
    "Llama-4-Scout": ("llama4", {"text_config": {
        "num_hidden_layers": 4, "layer_types": ["chunked_attention"] * 3 + [FULL], "no_rope_layers": [1, 1, 1, 0],
        "moe_layers": [0, 1, 2, 3], "hidden_size": 160, "num_attention_heads": 40, "num_key_value_heads": 8,
        "head_dim": 4, "num_local_experts": 4, "num_experts_per_tok": 1, "use_qk_norm": True,
        "attn_temperature_tuning": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 16.0, "low_freq_factor": 1.0,
            "high_freq_factor": 1.0, "original_max_position_embeddings": 256}}}),
    # 32 layers; 24 heads of 128, three quarters of them rotated, 8 key-value heads; width 3072; other rotary factors
    # beyond 4096 tokens; tied
    "Phi-4-mini": ("phi3", {
        "hidden_size": 192, "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
        "sliding_window": 8192, "original_max_position_embeddings": 256, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.0, 1.0], "long_factor": [1.0, 1.5, 8.0],
            "original_max_position_embeddings": 256}}),
    # 36 layers, every 4th without positions; 16 heads of 128, 4 key-value heads; width 2048; tied
    "SmolLM3-3B": ("smollm3", {
        "num_hidden_layers": 4, "layer_types": [FULL] * 4, "no_rope_layers": [1, 1, 1, 0], "num_attention_heads": 16,
        "num_key_value_heads": 4, "tie_word_embeddings": True}),
    # 26 layers; 32 heads of 128, 8 key-value heads; width 3072; queries grow beyond 16384 tokens; tied; the text part
    "Ministral-3-3B text": ("ministral3", {
        "hidden_size": 96, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 4,
        "tie_word_embeddings": True, "rope_parameters": YARN | {
            "rope_theta": 1000000.0, "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1}}),
    # 56 layers: 27 Mamba (128 heads of 80, 8 groups), 25 dense, 4 attention (40 heads of 128, 8 key-value heads)
    "Nemotron-Nano-9B-v2": ("nemotron_h", {
        "layers_block_type": [LINEAR, "mlp", LINEAR, FULL], "num_attention_heads": 40, "num_key_value_heads": 8,
        "head_dim": 4, "mamba_num_heads": 32, "mamba_head_dim": 4, "n_groups": 8, "tie_word_embeddings": False}),
    # 52 layers: Mamba (64 heads of 64, 8 groups), 128 experts (6 of them, 1 shared), attention (32 heads, 2)
    "Nemotron-3-Nano-30B": ("nemotron_h", {
        "layers_block_type": [LINEAR, "moe", FULL, "moe"], "num_attention_heads": 32, "num_key_value_heads": 2,
        "head_dim": 4, "mamba_num_heads": 32, "mamba_head_dim": 4, "n_groups": 8, "n_routed_experts": 16,
        "num_experts_per_tok": 3, "routed_scaling_factor": 2.5, "tie_word_embeddings": False}),
    # as it is published: not a decoder, every token sees all
    "BERT encoder": ("bert", {"is_decoder": False}),
}  # fmt: skip


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


# types that are no language model by themselves, and why
APART = {
    "reformer": "draws the hashes of its attention at random, so that no two passes agree",
    "gemma4_assistant": "drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "drafts for another model, whose keys and values it reads",
    "musicgen": "writes several streams of codes for sound at a time, not text",
    "musicgen_melody": "writes several streams of codes for sound at a time, not text",
}


def build(name: str, vocab: int, seed: int = 0):
    """A tiny random model of this type or shape with `vocab` tokens."""
    torch.manual_seed(seed)
    config = tiny_config(name, vocab)
    kind = SHAPES.get(name, (name,))[0]
    cls = getattr(transformers, WHOLE.get(kind) or CAUSAL[kind])
    if not isinstance(config, cls.config_class):
        config = config.get_text_config(decoder=True)
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
            weight.normal_(std=1 / getattr(model.config.get_text_config(decoder=True), "embedding_multiplier", 1.0))
        else:
            fan = weight.shape[-1] if weight.ndim < 3 else (weight.shape[-1] * weight.shape[-2]) ** 0.5
            weight.normal_(std=fan**-0.5)


@torch.no_grad()
def spread(model, vocab: int) -> None:
    """Scale the logits until the entropy of the predictions is around three quarters of that of a uniform distribution.
    Raises ValueError if that cannot be, or if they do not depend on what came before."""
    ids = torch.randint(vocab, (2, 24), generator=torch.Generator().manual_seed(1))
    head = model.get_output_embeddings()
    for _ in range(20 if head is not None else 1):
        logits = model(input_ids=ids, use_cache=False).logits  # [2, 24, V]
        logp = logits.log_softmax(dim=-1)
        share = -(logp.exp() * logp).sum(dim=-1).mean().item() / math.log(vocab)
        if not 0.85 >= share >= 0.65 and head is not None:
            scaled_by(model, head).mul_(1.25 if share > 0.75 else 0.8)
    if not 0.97 > share > 0.5:
        raise ValueError(f"the entropy of its predictions is {share:.2g} of that of a uniform distribution")
    other = ids.clone()
    other[:, 2] = (other[:, 2] + 1) % vocab
    change = (model(input_ids=other, use_cache=False).logits - logits).abs().amax((0, 2))  # [24]
    if not change[3:].max() > 0.02 * logits.std():
        raise ValueError(f"predictions hardly depend on what came before ({change[3:].max() / logits.std():.1g})")


def scaled_by(model, head) -> torch.Tensor:
    """What to multiply so that the logits grow: the head, or where that is the embedding, too, and multiplied by a
    factor of its own (so that it would drown what the layers add), the last norm."""
    factor = getattr(model.config.get_text_config(decoder=True), "embedding_multiplier", 1.0)
    tied = head.weight is model.get_input_embeddings().weight
    return model.get_decoder().norm.weight if tied and factor > 1 else head.weight
