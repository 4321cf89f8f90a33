"""Checkpoint files: the tensors a model needs, from safetensors alone.

The other formats can run code when opened. Every tensor is expected by name and shape before any is
read.
"""

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
        ConfigError: no safetensors, an unreadable file, or a tensor that is missing, left over, of
            another shape or not of floating point.
    """
    tensors: dict[str, Tensor] = {}
    for path in _files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a mapping, and not iterable
                    if _is_ignored(name, shapes):
                        continue
                    _check(path, name, tuple(file.get_slice(name).get_shape()), shapes)
                    tensors[name] = _as_float32(path, name, file.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: cannot be read as safetensors ({error})") from error
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise ConfigError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} in all)")
    return tensors


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


def _as_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise ConfigError(f"{path}: tensor {name} is {tensor.dtype}; allowed: {allowed}")
    return tensor.float()
