"""How small each setting of a tiny model is: by its name, and by type what names do not tell."""

import re

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

# types that are no language model by themselves, and why
APART = {
    "reformer": "draws the hashes of its attention at random, so that no two passes agree",
    "gemma4_assistant": "drafts for another model, whose keys and values it reads",
    "gemma4_unified_assistant": "drafts for another model, whose keys and values it reads",
    "musicgen": "writes several streams of codes for sound at a time, not text",
    "musicgen_melody": "writes several streams of codes for sound at a time, not text",
}
