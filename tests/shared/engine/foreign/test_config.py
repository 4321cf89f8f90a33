"""What is refused before transformers reads a byte, and limits."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from shared.common.errors import ConfigError
from shared.engine.fields import Fields
from shared.engine.foreign.config import max_model_len, refuse_unsupported
from tests.shared.engine.foreign.architectures import foreign


def refuse(directory: Path, **values: object) -> None:
    """Check a directory that holds safetensors and such a config.json."""
    (directory / "model.safetensors").touch()
    path = directory / "config.json"
    path.write_text(json.dumps({"model_type": "olmo2"} | values))
    refuse_unsupported(directory, Fields.read(path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "never run"),
        ({"model_type": "x"}, "model_type is 'x'; allowed: a causal language model that"),
        ({"model_type": ["olmo2"]}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"quantization_config": {"bits": 4}}, "must not be quantised"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True; allowed: false"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
    ],
)
def test_what_a_configuration_asks_for_in_vain_is_named(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    """Each key that no path can serve."""
    refuse(tmp_path)
    with pytest.raises(ConfigError, match=message):
        refuse(tmp_path, **values)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """By the name of the file, unopened."""
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "olmo2"}')
    with pytest.raises(ConfigError, match=r"no model.safetensors or model.safetensors.index.json$"):
        refuse_unsupported(tmp_path, Fields.read(path))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"found pytorch_model.bin, which can run code"):
        refuse_unsupported(tmp_path, Fields.read(path))


def test_longrope_is_served_up_to_its_original_length() -> None:
    """Beyond, one long sequence would change the rotation of all others, and of what is cached."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64,
    }
    path = Path("config.json")
    long = foreign("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    assert max_model_len(long, path) == 64
    assert max_model_len(foreign("phi3"), path) == 128
    assert max_model_len(foreign("gemma3_text"), path) == 128


def test_a_model_without_a_limit_is_refused() -> None:
    """The scheduler must know how long a sequence may get."""
    config = AutoConfig.for_model("mamba")
    with pytest.raises(ConfigError, match="max_position_embeddings is None"):
        max_model_len(config, Path("config.json"))
