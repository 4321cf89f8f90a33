"""Files: Hugging Face directories of the finished models, and the weights of stages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from models.recipe.network import NORM_EPS, ROPE_THETA, Llama
from models.recipe.vocabulary import END_ID, save_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from models.recipe.sizes import LlamaSize

STORED_DTYPE = torch.float16


def rounded(model: Llama) -> Llama:
    """The model as stored: a float32 copy whose weights went through STORED_DTYPE."""
    return model.as_dtype(STORED_DTYPE).as_dtype(torch.float32)


def averaged(first: Llama, second: Llama, share: float) -> Llama:
    """The weights of `first` moved by `share` of the way to those of `second`, float32."""
    mean = first.as_dtype(torch.float32)
    other = second.state_dict()
    mean.load_state_dict(
        {name: weight.lerp(other[name], share) for name, weight in first.state_dict().items()}
    )
    return mean


def save_weights(model: Llama, path: Path, dtype: torch.dtype) -> None:
    """Write parameters under their Hugging Face names."""
    weights = {
        f"model.{name}": weight.to(dtype).cpu() for name, weight in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata={"format": "pt"})


def load_weights(model: Llama, path: Path) -> None:
    """Read what `save_weights` wrote."""
    weights = load_file(path)
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})


def config_of(size: LlamaSize) -> dict[str, object]:
    """config.json for transformers."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "dtype": str(STORED_DTYPE).removeprefix("torch."),
        "head_dim": size.head_dim,
        "hidden_act": "silu",
        "hidden_size": size.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": size.intermediate_size,
        "max_position_embeddings": size.max_positions,
        "mlp_bias": False,
        "num_attention_heads": size.num_heads,
        "num_hidden_layers": size.num_layers,
        "num_key_value_heads": size.num_kv_heads,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": size.vocab_size,
    }


def save_directory(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything that transformers needs to load and serve the model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors", STORED_DTYPE)
    save_tokenizer(tokenizer, folder, model.size.max_positions)
    generation = {
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
        "do_sample": True,
        "temperature": 0.7,
    }
    for name, content in (
        ("config.json", config_of(model.size)),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
