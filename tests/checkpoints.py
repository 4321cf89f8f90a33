"""Tiny random checkpoints of every supported kind, and transformers' own model of each."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

AUTO_MODEL: Any = AutoModelForCausalLM  # transformers' own annotations are not strict
LOGGING: Any = logging

VOCAB_SIZE = 97
MAX_LEN = 128

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-llama3-tied": LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama-yarn-biased": LlamaConfig(
        **SIZES, rope_parameters=YARN, attention_bias=True, mlp_bias=True
    ),
    "llama-linear-wide-heads": LlamaConfig(**SIZES, rope_parameters=LINEAR, head_dim=16),
    "llama-no-groups": LlamaConfig(**SIZES | {"num_key_value_heads": 6}),
    "llama-one-kv-head": LlamaConfig(**SIZES | {"num_key_value_heads": 1}),
    "mistral-sliding": MistralConfig(**SIZES, sliding_window=16),
    "mistral-full": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-half-sliding": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "qwen3-biased": Qwen3Config(**SIZES, attention_bias=True),
}


def save_checkpoint(
    directory: Path,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
) -> nn.Module:
    """Write a random model and read it back with transformers, in float32.

    It attends by the formula: other attentions of some versions leave out caps on logits.
    """
    LOGGING.disable_progress_bar()
    torch.manual_seed(7)
    # A copy: saving a model writes its type into the configuration.
    model = AUTO_MODEL.from_config(copy.deepcopy(config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: they start as 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    loaded: nn.Module = AUTO_MODEL.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return loaded.eval()


@torch.inference_mode()
def expected_logits(model: nn.Module, token_ids: list[int]) -> Tensor:
    """Every row of one sequence: [T, V]."""
    logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


def random_tokens(num_tokens: int, *, seed: int = 3) -> list[int]:
    """The same ids on every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_SIZE, (num_tokens,), generator=generator).tolist()
