"""Checkpoint files: the tensors a model needs, from safetensors alone.

The other formats can run code when opened. Every tensor is expected by name and shape before any is
read.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.fields import Fields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this shape holds, by its Hugging Face name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = {
        "self_attn.q_proj": (q_dim, hidden, config.has_qkv_bias),
        "self_attn.k_proj": (kv_dim, hidden, config.has_qkv_bias),
        "self_attn.v_proj": (kv_dim, hidden, config.has_qkv_bias),
        "self_attn.o_proj": (hidden, q_dim, config.has_output_bias),
        "mlp.gate_proj": (inner, hidden, config.has_mlp_bias),
        "mlp.up_proj": (inner, hidden, config.has_mlp_bias),
        "mlp.down_proj": (hidden, inner, config.has_mlp_bias),
    }
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, (num_out, num_in, has_bias) in projections.items():
        layer[f"{name}.weight"] = (num_out, num_in)
        if has_bias:
            layer[f"{name}.bias"] = (num_out,)
    if config.has_qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (config.head_dim,)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.is_embedding_tied:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def read_tensors(directory: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read exactly the tensors in `shapes`, as float32.

    Raises:
        ConfigError: see `stream_tensors`.
    """
    return {name: tensor.float() for name, tensor in stream_tensors(directory, shapes)}


def stream_tensors(
    directory: Path, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """Exactly the tensors in `shapes`, one after the other, in the dtype of the file.

    A tensor is a view of the file: whoever copies it and lets it go never holds two of them. Names
    and shapes of all files are checked before the first tensor is read.

    Raises:
        ConfigError: no safetensors, an unreadable file, or a tensor that is missing, left over, of
            another shape or not of floating point.
    """
    names_of = {path: _checked_names(path, shapes) for path in _files(directory)}
    missing = sorted(shapes.keys() - set().union(*names_of.values()))
    if missing:
        raise ConfigError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} in all)")
    for path, names in names_of.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in names:
                    yield name, _checked_dtype(path, name, file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error


def _checked_names(path: Path, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What a file has to give, all of it with the right shape."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a mapping, and not iterable
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    names = [name for name in found if not _is_ignored(name, shapes)]
    for name in names:
        _check(path, name, found[name], shapes)
    return names


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: cannot be read as safetensors ({error})")


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if not (directory / INDEX_FILE).is_file():
        others = sorted(path.name for path in directory.glob("*.bin"))
        found = f"; found {others[0]}, which can run code when opened" if others else ""
        raise ConfigError(f"{directory}: no {SINGLE_FILE} or {INDEX_FILE}{found}")
    index = Fields.read(directory / INDEX_FILE)
    names: set[str] = set()
    for name in index.nested("weight_map").values.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"{index.path}: shard {name!r} is not a file name beside the index")
        if not (directory / name).is_file():
            raise ConfigError(f"{index.path}: shard {name} is missing")
        names.add(name)
    return [directory / name for name in sorted(names)]


def _is_ignored(name: str, shapes: dict[str, tuple[int, ...]]) -> bool:
    """What old checkpoints carry along: rotary buffers, and the copy of a tied embedding."""
    is_tied_copy = name == "lm_head.weight" and name not in shapes
    return is_tied_copy or name.endswith(".rotary_emb.inv_freq")


def _check(
    path: Path, name: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> None:
    if name not in shapes:
        raise ConfigError(f"{path}: tensor {name} is not part of this model")
    if shape != shapes[name]:
        raise ConfigError(f"{path}: tensor {name} has shape {shape}; allowed: {shapes[name]}")


def _checked_dtype(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise ConfigError(f"{path}: tensor {name} is {tensor.dtype}; allowed: {allowed}")
    return tensor
