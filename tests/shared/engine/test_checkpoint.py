"""Checkpoint files: what is read, and everything that is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.common.errors import ConfigError
from shared.engine.checkpoint import expected_shapes, read_tensors, stream_tensors
from shared.engine.config import ModelConfig
from tests.checkpoints import CONFIGS, save_checkpoint

Tensors = dict[str, Tensor]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A good checkpoint."""
    save_checkpoint(tmp_path, CONFIGS["llama"])
    return tmp_path


def load(directory: Path) -> None:
    """Read what the configuration calls for."""
    read_tensors(directory, expected_shapes(ModelConfig.from_directory(directory)))


def rewrite(directory: Path, change: Callable[[Tensors], None]) -> None:
    """Change the tensors of a single-file checkpoint."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_expected_tensors_are_those_transformers_saves(name: str, tmp_path: Path) -> None:
    """Names and shapes of every kind, none more and none less."""
    save_checkpoint(tmp_path, CONFIGS[name])
    saved = load_file(tmp_path / "model.safetensors")
    expected = expected_shapes(ModelConfig.from_directory(tmp_path))
    assert {key: tuple(tensor.shape) for key, tensor in saved.items()} == expected


def test_shards_are_read_as_one(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An index over several files gives the same tensors as one file."""
    sharded = tmp_path_factory.mktemp("sharded")
    save_checkpoint(sharded, CONFIGS["llama"], max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    shapes = expected_shapes(ModelConfig.from_directory(directory))
    one, many = read_tensors(directory, shapes), read_tensors(sharded, shapes)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_tensors_come_one_by_one_as_they_are_stored(tmp_path: Path) -> None:
    """Each of them once, in the dtype of the file."""
    save_checkpoint(tmp_path, CONFIGS["llama"], dtype=torch.float16, max_shard_size="20KB")
    shapes = expected_shapes(ModelConfig.from_directory(tmp_path))
    names = []
    for name, tensor in stream_tensors(tmp_path, shapes):
        assert tensor.dtype == torch.float16
        assert tuple(tensor.shape) == shapes[name]
        names.append(name)
    assert sorted(names) == sorted(shapes)


def test_a_missing_tensor_is_found_before_any_is_read(directory: Path) -> None:
    """Nobody waits for gigabytes to hear it."""
    rewrite(directory, drop_norm)
    shapes = expected_shapes(ModelConfig.from_directory(directory))
    with pytest.raises(ConfigError, match="is missing"):
        next(stream_tensors(directory, shapes))


def test_what_old_checkpoints_carry_along_is_ignored(tmp_path: Path) -> None:
    """Rotary buffers and the copy of a tied embedding."""
    save_checkpoint(tmp_path, CONFIGS["llama-llama3-tied"])

    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(tmp_path, change)
    load(tmp_path)


def drop_norm(tensors: Tensors) -> None:
    """Remove one."""
    del tensors["model.norm.weight"]


def add_bias(tensors: Tensors) -> None:
    """Add one that this configuration does not have."""
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)


def narrow_head(tensors: Tensors) -> None:
    """Take a row away."""
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].contiguous()


def quantise(tensors: Tensors) -> None:
    """Make one an integer."""
    tensors["model.norm.weight"] = torch.ones(48, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_norm, r"tensor model\.norm\.weight is missing \(1 in all\)"),
        (add_bias, r"tensor model\.layers\.0\.self_attn\.q_proj\.bias is not part of this model"),
        (narrow_head, r"lm_head\.weight has shape \(96, 48\); allowed: \(97, 48\)"),
        (quantise, r"model\.norm\.weight is torch\.int8; allowed: float32, float16"),
    ],
)
def test_a_wrong_tensor_is_named(
    change: Callable[[Tensors], None], message: str, directory: Path
) -> None:
    """Missing, left over, of another shape or type."""
    rewrite(directory, change)
    with pytest.raises(ConfigError, match=message):
        load(directory)


def test_a_damaged_file_is_named(directory: Path) -> None:
    """Bytes that are no safetensors."""
    (directory / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read as safetensors"):
        load(directory)


def test_pickled_weights_are_refused(directory: Path) -> None:
    """A .bin file is named and not opened."""
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"not even looked at")
    with pytest.raises(ConfigError, match=r"found pytorch_model\.bin, which can run code"):
        load(directory)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"model.norm.weight": "../model.safetensors"}, "is not a file name beside the index"),
        ({"model.norm.weight": 3}, "shard 3 is not a file name"),
        ({"model.norm.weight": []}, r"shard \[\] is not a file name"),
        ({"model.norm.weight": "absent.safetensors"}, r"shard absent\.safetensors is missing"),
        ([], r"weight_map is \[\]; allowed: an object"),
        ({}, "is missing"),
    ],
)
def test_a_wrong_index_is_named(weight_map: object, message: str, directory: Path) -> None:
    """Shards must be files of the same directory."""
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=message):
        load(directory)
