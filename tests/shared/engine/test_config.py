"""Model configurations from Hugging Face directories."""

import json
from pathlib import Path
from typing import Any

import pytest

from kernels.head_layout import HeadLayout
from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.rope import RopeConfig
from tests.checkpoints import CONFIGS

MINIMAL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}


def load(directory: Path, generation: dict[str, Any] | None = None, **values: Any) -> ModelConfig:  # noqa: ANN401  # JSON
    """What MINIMAL, changed by `values`, means."""
    (directory / "config.json").write_text(json.dumps(MINIMAL | values))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_directory(directory)


def test_a_minimal_file_gets_the_familys_defaults(tmp_path: Path) -> None:
    """As old checkpoints were written."""
    assert load(tmp_path) == ModelConfig(
        model_type="llama",
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=100,
        max_model_len=256,
        rms_norm_eps=1e-6,
        rope=RopeConfig(),
        windows=(None, None, None),
        eos_token_ids=(),
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
        is_embedding_tied=False,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_can_be_read(name: str, tmp_path: Path) -> None:
    """Every tested kind, with its switches."""
    source: Any = CONFIGS[name]
    source.save_pretrained(tmp_path)
    config = ModelConfig.from_directory(tmp_path)
    assert config.model_type == name.split("-", maxsplit=1)[0]
    assert config.layout == HeadLayout(6, source.num_key_value_heads, config.head_dim)
    assert config.eos_token_ids == (2,)
    assert config.is_embedding_tied == source.tie_word_embeddings
    assert config.has_qk_norm == (config.model_type == "qwen3")
    assert config.has_qkv_bias == ("biased" in name or config.model_type == "qwen2")
    assert config.has_output_bias == ("biased" in name)
    assert config.has_mlp_bias == (name == "llama-yarn-biased")


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        ({"model_type": "llama", "sliding_window": 8}, (None, None, None)),
        ({"model_type": "mistral"}, (4096, 4096, 4096)),
        ({"model_type": "mistral", "sliding_window": None}, (None, None, None)),
        ({"model_type": "mistral", "sliding_window": 8}, (8, 8, 8)),
        ({"model_type": "qwen2", "sliding_window": 8}, (None, None, None)),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
            (None, None, None),
        ),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
            },
            (None, 8, 8),
        ),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 0,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, None, 8),
        ),
    ],
    ids=lambda value: None if isinstance(value, tuple) else "-".join(map(str, value)),
)
def test_each_layer_has_its_window(
    values: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path
) -> None:
    """Mistral everywhere, Qwen where it says so, Llama never."""
    assert load(tmp_path, **values).windows == windows


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 3, 2], None, (2, 3)),
        (2, {"eos_token_id": [5, 6]}, (5, 6)),
        (2, {"eos_token_id": None}, (2,)),
        (None, {}, ()),
    ],
)
def test_end_tokens_come_from_the_generation_settings_first(
    own: object, generation: dict[str, Any] | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    """A chat model's end-of-turn token is only there."""
    assert load(tmp_path, generation, eos_token_id=own).eos_token_ids == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; allowed: llama, mistral, qwen2, qwen3"),
        ({"architectures": ["LlamaModel"]}, r"architectures is .*allowed: \['LlamaForCausalLM'\]"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; allowed: silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None; allowed: a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; allowed: a divisor of 4"),
        ({"head_dim": 7}, "head_dim is 7; allowed: an even number"),
        ({"eos_token_id": 100}, "eos_token_id is 100; allowed: token ids from 0 to 99"),
        ({"eos_token_id": ["end"]}, "eos_token_id"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is 'dynamic'"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": -1},
            "max_window_layers is -1",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types is .*allowed: 3 of full_attention, sliding_attention",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": [[], 1, 2]},
            "layer_types",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_is_not_supported_is_named(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """File, key, value and what is allowed, instead of a model that runs and is wrong."""
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, **values)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_directory_must_hold_a_model(tmp_path: Path) -> None:
    """No directory, no file."""
    with pytest.raises(ConfigError, match="no such directory"):
        ModelConfig.from_directory(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        ModelConfig.from_directory(tmp_path)
