"""Rotary frequencies against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shared.common.errors import ConfigError
from shared.engine.fields import Fields
from shared.engine.rope import RopeConfig, inverse_frequencies, rope_config, rope_table

PATH = Path("config.json")
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-all-keys": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "yarn-attention-factor": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.25,
    },
}


def read(values: dict[str, Any]) -> RopeConfig:
    """What `values` in a config.json would give."""
    return rope_config(Fields(PATH, {"max_position_embeddings": 1024, **values}))


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_those_of_transformers(name: str) -> None:
    """Every kind, and the factor on cosines and sines."""
    scaling = {**SCALINGS[name], "rope_theta": 50_000.0}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters=dict(scaling),
    )
    init: Any = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    expected, factor = init(config, "cpu")
    own = read({"rope_parameters": scaling})
    torch.testing.assert_close(inverse_frequencies(own, 64), expected, atol=0, rtol=1e-6)
    assert own.attention_factor == pytest.approx(factor)


def test_the_old_form_reads_like_the_new_one() -> None:
    """`rope_theta` beside `rope_scaling`, whose kind was once called `type`."""
    new = read({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}})
    assert read({"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}) == new
    assert read({"rope_theta": 5e5, "rope_scaling": None}) == RopeConfig(theta=5e5)
    assert read({}) == RopeConfig(theta=10_000.0)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "longrope"}, "rope_scaling.rope_type is 'longrope'; allowed: default"),
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling.type is 'dynamic'"),
        ({"rope_type": "linear"}, "rope_scaling.factor is None; allowed: a number above 0"),
        ({"rope_type": "linear", "factor": -1}, "rope_scaling.factor is -1"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor is 1.0"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("fast", "rope_scaling is 'fast'; allowed: an object or null"),
    ],
)
def test_what_is_not_supported_is_named(scaling: object, message: str) -> None:
    """The error leads with the file and the key."""
    with pytest.raises(ConfigError, match=message) as caught:
        read({"rope_scaling": scaling})
    assert str(caught.value).startswith("config.json: ")


def test_a_table_row_is_a_position() -> None:
    """exp(i p f), times the attention factor."""
    table = rope_table(RopeConfig(theta=100.0, attention_factor=2.0), head_dim=4, num_positions=5)
    expected = 2.0 * torch.exp(1j * 3 * torch.tensor([1.0, 0.1]))
    torch.testing.assert_close(table[3], expected)
    assert table.shape == (5, 2)
