"""A checkpoint's tensors on a device: fused, in the order of `kernels`, as `linear` takes them.

Memory on the device is set aside first and filled tensor by tensor, so that the host holds about
one tensor and a checkpoint may be larger than its memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.engine.checkpoint import expected_shapes, stream_tensors
from shared.engine.config import ModelConfig
from shared.engine.head_order import HeadOrder

Progress = Callable[[int, int], None]  # bytes on the device, of how many


@dataclass(frozen=True, slots=True)
class GpuLayerWeights:
    """One decoder layer, all tensors of one dtype. Heads and pairs: see `HeadOrder`."""

    attention_norm: Tensor  # [hidden]; ones where it is part of `qkv` (`folds_norms`)
    qkv: Tensor  # [(heads + 2 x key heads) x D, hidden]: queries, keys, values
    qkv_bias: Tensor | None  # [(heads + 2 x key heads) x D]
    qk_norm: Tensor | None  # [2, D]: of queries, of keys
    output: Tensor  # [hidden, heads x D]
    output_bias: Tensor | None  # [hidden]
    mlp_norm: Tensor  # [hidden]; as above, for `gate_up`
    gate_up: Tensor  # [2 x inner, hidden]
    gate_up_bias: Tensor | None  # [2 x inner]
    down: Tensor  # [hidden, inner]
    down_bias: Tensor | None  # [hidden]


@dataclass(frozen=True, slots=True)
class GpuWeights:
    """A whole model."""

    embedding: Tensor  # [V, hidden]
    layers: tuple[GpuLayerWeights, ...]
    final_norm: Tensor  # [hidden]
    lm_head: Tensor  # [V, hidden]; the embedding itself where the two are tied


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor of the checkpoint goes, and how its heads are put in order before."""

    destination: Tensor
    order: Callable[[Tensor], Tensor] | None = None

    def fill(self, tensor: Tensor) -> None:
        """Copy, converting to the destination's dtype. Orders on the device, where it is quick."""
        if self.order is not None:
            tensor = self.order(tensor.to(self.destination.device))
        self.destination.copy_(tensor)


def load_gpu_weights(
    directory: Path,
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> GpuWeights:
    """Read the weights of a Hugging Face directory straight to `device`.

    Args:
        directory: its shards are read one after the other.
        config: of the same directory.
        device: any; numbers are the same on all of them.
        dtype: of all tensors: bfloat16, float16 or float32. Stored ones are rounded to it.
        progress: called after each tensor.

    Raises:
        ConfigError: the checkpoint does not hold exactly what `config` calls for.
    """
    weights = allocate_gpu_weights(config, device=device, dtype=dtype)
    places = dict(_places(weights, config))
    total = sum(place.destination.nbytes for place in places.values())
    done = 0
    for name, tensor in stream_tensors(directory, expected_shapes(config)):
        places[name].fill(tensor)
        done += places[name].destination.nbytes
        progress(done, total)
    if folds_norms(dtype):
        for layer in weights.layers:
            _fold(layer.attention_norm, layer.qkv)
            _fold(layer.mlp_norm, layer.gate_up)
    return weights


def folds_norms(dtype: torch.dtype) -> bool:
    """Whether a norm's weight is multiplied into the matrix behind it, where it costs nothing.

    In float16 a product of two small numbers may round to nothing.
    """
    return dtype != torch.float16


def _fold(norm: Tensor, matrix: Tensor) -> None:
    """Multiply the columns of a matrix where it is; of the norm's weight ones remain."""
    matrix.mul_(norm)
    norm.fill_(1.0)


def allocate_gpu_weights(
    config: ModelConfig, *, device: torch.device, dtype: torch.dtype
) -> GpuWeights:
    """Tensors of the right shapes with nothing in them yet."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    layout, hidden = config.layout, config.hidden_size
    num_qkv, num_gate_up = layout.num_all * layout.head_dim, 2 * config.intermediate_size
    layers = tuple(
        GpuLayerWeights(
            attention_norm=empty(hidden),
            qkv=empty(num_qkv, hidden),
            qkv_bias=empty(num_qkv) if config.has_qkv_bias else None,
            qk_norm=empty(2, layout.head_dim) if config.has_qk_norm else None,
            output=empty(hidden, layout.num_heads * layout.head_dim),
            output_bias=empty(hidden) if config.has_output_bias else None,
            mlp_norm=empty(hidden),
            gate_up=empty(num_gate_up, hidden),
            gate_up_bias=empty(num_gate_up) if config.has_mlp_bias else None,
            down=empty(hidden, config.intermediate_size),
            down_bias=empty(hidden) if config.has_mlp_bias else None,
        )
        for _ in range(config.num_layers)
    )
    embedding = empty(config.vocab_size, hidden)
    return GpuWeights(
        embedding=embedding,
        layers=layers,
        final_norm=empty(hidden),
        lm_head=embedding if config.is_embedding_tied else empty(config.vocab_size, hidden),
    )


def _places(weights: GpuWeights, config: ModelConfig) -> Iterator[tuple[str, _Place]]:
    """Every tensor of the checkpoint by its Hugging Face name."""
    yield "model.embed_tokens.weight", _Place(weights.embedding)
    yield "model.norm.weight", _Place(weights.final_norm)
    if not config.is_embedding_tied:
        yield "lm_head.weight", _Place(weights.lm_head)
    order = HeadOrder(config.layout)
    for index, layer in enumerate(weights.layers):
        for name, place in _layer_places(layer, order):
            yield f"model.layers.{index}.{name}", place


def _layer_places(layer: GpuLayerWeights, order: HeadOrder) -> Iterator[tuple[str, _Place]]:
    yield "input_layernorm.weight", _Place(layer.attention_norm)
    yield "post_attention_layernorm.weight", _Place(layer.mlp_norm)
    if layer.qk_norm is not None:
        for which, norm in zip("qk", layer.qk_norm, strict=True):
            yield f"self_attn.{which}_norm.weight", _Place(norm, order.keys)
    layout = order.layout
    keys_at, values_at = layout.num_heads * layout.head_dim, layout.num_rotated * layout.head_dim
    for kind, qkv, output, gate_up, down in (
        ("weight", layer.qkv, layer.output, layer.gate_up, layer.down),
        ("bias", layer.qkv_bias, layer.output_bias, layer.gate_up_bias, layer.down_bias),
    ):
        if qkv is not None:
            yield f"self_attn.q_proj.{kind}", _Place(qkv[:keys_at], order.queries)
            yield f"self_attn.k_proj.{kind}", _Place(qkv[keys_at:values_at], order.keys)
            yield f"self_attn.v_proj.{kind}", _Place(qkv[values_at:])
        if output is not None:  # a bias of the output is behind the heads
            is_weight = kind == "weight"
            yield f"self_attn.o_proj.{kind}", _Place(output, order.output if is_weight else None)
        if gate_up is not None:
            gate, up = gate_up.chunk(2)
            yield f"mlp.gate_proj.{kind}", _Place(gate)
            yield f"mlp.up_proj.{kind}", _Place(up)
        if down is not None:
            yield f"mlp.down_proj.{kind}", _Place(down)
