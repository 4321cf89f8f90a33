"""A small ModelConfig without a directory."""

from shared.engine.config import ModelConfig
from shared.engine.rope import RopeConfig


def make_config(*, num_layers: int = 1) -> ModelConfig:
    """Llama: 4 query heads and 2 key heads of 8."""
    return ModelConfig(
        model_type="llama",
        hidden_size=32,
        intermediate_size=48,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=97,
        max_model_len=64,
        rms_norm_eps=1e-6,
        rope=RopeConfig(),
        windows=(None,) * num_layers,
        eos_token_ids=(2,),
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
        is_embedding_tied=False,
    )
