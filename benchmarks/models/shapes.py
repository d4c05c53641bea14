"""The shapes of published models: type, and what their configurations say, cut to a few layers.

Which kinds of layers there are, numbers of heads, tied or not, kinds of rotary embedding, factors and caps are the
published ones; widths, windows and experts are in proportion or as small as they go. In the comments: the published
sizes.
"""

LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
GRANITE = {  # of all published Granite 4: logits_scaling is the width / 256, attention_multiplier 1 / head_dim
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "tie_word_embeddings": True,
}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 256, "beta_fast": 32.0, "beta_slow": 1.0}
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
