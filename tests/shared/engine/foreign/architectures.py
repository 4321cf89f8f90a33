"""Tiny configurations of architectures that our own decoder does not compute."""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from tests.checkpoints import SIZES

BY_TYPE: Any = CONFIG_MAPPING  # transformers' own annotations are not strict
WINDOW = 16
MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

# What each is here for: soft caps and windows; a rotation a kind of layer; fused projections;
# partial rotations; norms after the blocks; layers without positions; keys wider than values;
# learned positions; experts.
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 0.05,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {"head_dim": 16, "sliding_window": WINDOW, "layer_types": MIXED_LAYERS},
    "phi3": {"pad_token_id": 0, "sliding_window": WINDOW},
    "gpt_neox": {"rotary_pct": 0.5},
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "olmo2": {},
    "cohere2": {"sliding_window": WINDOW, "layer_types": MIXED_LAYERS},
    "deepseek_v3": {
        "num_key_value_heads": 6,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "gpt2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 48},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": MIXED_LAYERS,
    },
}


def foreign(model_type: str, **options: object) -> PreTrainedConfig:
    """One of OPTIONS, changed."""
    config: PreTrainedConfig = BY_TYPE[model_type](**SIZES | OPTIONS.get(model_type, {}) | options)
    return config
