"""Loading a checkpoint: safetensors in, fused and permuted float32 weights out.

Nothing but safetensors is opened: the other formats can run code. Every tensor is expected by name
and shape before anything is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kernels.linear import PackedLinear, pack_linear
from kernels.rms_norm import RmsNorm, pack_rms_norm
from shared.common.errors import ConfigError
from shared.engine.config import ModelConfig
from shared.engine.fields import Fields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Heads and pairs are in the order of `kernels`, see `_Permutation`."""

    attention_norm: RmsNorm
    qkv: PackedLinear  # queries, keys, values
    qk_norm: RmsNorm | None  # [query and key heads, head_dim]
    output: PackedLinear
    mlp_norm: RmsNorm
    gate_up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A whole model."""

    embedding: Tensor  # [V, hidden] float32
    layers: tuple[LayerWeights, ...]
    final_norm: RmsNorm
    lm_head: PackedLinear


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


@dataclass(frozen=True, slots=True)
class _Permutation:
    """From Hugging Face's order of heads and pairs to the kernels'.

    Query head k x G + g becomes g x num_kv_heads + k, so that the queries of one key head are
    further rows without a copy. Within a rotated head, number i and number i + D / 2 become
    neighbours. Scores do not change: queries and keys are permuted alike, and so is what reads the
    heads' output.
    """

    config: ModelConfig

    def queries(self, tensor: Tensor) -> Tensor:
        """[heads x D, ...]."""
        config = self.config
        split = (config.num_kv_heads, config.layout.group_size, 2, config.head_dim // 2)
        heads = tensor.view(*split, *tensor.shape[1:]).transpose(0, 1).transpose(2, 3)
        return heads.reshape(tensor.shape)

    def keys(self, tensor: Tensor) -> Tensor:
        """[key heads x D, ...], or one head's [D]."""
        split = (-1, 2, self.config.head_dim // 2)
        return tensor.view(*split, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    def output(self, tensor: Tensor) -> Tensor:
        """[hidden, heads x D]."""
        config = self.config
        split = (-1, config.num_kv_heads, config.layout.group_size, config.head_dim)
        return tensor.view(split).transpose(1, 2).reshape(tensor.shape)


def load_weights(directory: Path, config: ModelConfig) -> ModelWeights:
    """Read, fuse and pack the weights of a Hugging Face directory.

    Raises:
        ConfigError: the checkpoint does not hold exactly what `config` calls for.
    """
    tensors = read_tensors(directory, expected_shapes(config))
    embedding = tensors["model.embed_tokens.weight"]
    return ModelWeights(
        embedding=embedding,
        layers=tuple(_layers(tensors, config)),
        final_norm=pack_rms_norm(tensors["model.norm.weight"], config.rms_norm_eps),
        lm_head=pack_linear(tensors.get("lm_head.weight", embedding)),
    )


def _layers(tensors: dict[str, Tensor], config: ModelConfig) -> Iterator[LayerWeights]:
    order, eps = _Permutation(config), config.rms_norm_eps
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        queries_keys_values = {
            kind: torch.cat(
                [
                    order.queries(own[f"self_attn.q_proj.{kind}"]),
                    order.keys(own[f"self_attn.k_proj.{kind}"]),
                    own[f"self_attn.v_proj.{kind}"],
                ]
            )
            for kind in ("weight", "bias")
            if f"self_attn.q_proj.{kind}" in own
        }
        gate_up = {
            kind: torch.cat([own[f"mlp.gate_proj.{kind}"], own[f"mlp.up_proj.{kind}"]])
            for kind in ("weight", "bias")
            if f"mlp.gate_proj.{kind}" in own
        }
        yield LayerWeights(
            attention_norm=pack_rms_norm(own["input_layernorm.weight"], eps),
            qkv=pack_linear(**queries_keys_values),
            qk_norm=_qk_norm(own, order) if config.has_qk_norm else None,
            output=pack_linear(
                order.output(own["self_attn.o_proj.weight"]), own.get("self_attn.o_proj.bias")
            ),
            mlp_norm=pack_rms_norm(own["post_attention_layernorm.weight"], eps),
            gate_up=pack_linear(**gate_up),
            down=pack_linear(own["mlp.down_proj.weight"], own.get("mlp.down_proj.bias")),
        )


def _qk_norm(own: dict[str, Tensor], order: _Permutation) -> RmsNorm:
    config = order.config
    queries = order.keys(own["self_attn.q_norm.weight"]).expand(config.num_heads, -1)
    keys = order.keys(own["self_attn.k_norm.weight"]).expand(config.num_kv_heads, -1)
    return pack_rms_norm(torch.cat([queries, keys]), config.rms_norm_eps)
