"""A checkpoint's tensors, fused, permuted and packed the way the kernels want them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.linear import PackedLinear, pack_linear
from kernels.rms_norm import RmsNorm, pack_rms_norm
from shared.engine.checkpoint import expected_shapes, read_tensors
from shared.engine.config import ModelConfig
from shared.engine.head_order import HeadOrder


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Heads and pairs are in the order of `kernels`, see `HeadOrder`."""

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
    order, eps = HeadOrder(config.layout), config.rms_norm_eps
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        output = order.output(own["self_attn.o_proj.weight"])
        yield LayerWeights(
            attention_norm=pack_rms_norm(own["input_layernorm.weight"], eps),
            qkv=pack_linear(**_fused_qkv(own, order)),
            qk_norm=_qk_norm(own, order, config) if config.has_qk_norm else None,
            output=pack_linear(output, own.get("self_attn.o_proj.bias")),
            mlp_norm=pack_rms_norm(own["post_attention_layernorm.weight"], eps),
            gate_up=pack_linear(**_fused_gate_up(own)),
            down=pack_linear(own["mlp.down_proj.weight"], own.get("mlp.down_proj.bias")),
        )


def _fused_qkv(own: dict[str, Tensor], order: HeadOrder) -> dict[str, Tensor]:
    """`weight`, and `bias` where there is one."""
    return {
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


def _fused_gate_up(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weight`, and `bias` where there is one."""
    return {
        kind: torch.cat([own[f"mlp.gate_proj.{kind}"], own[f"mlp.up_proj.{kind}"]])
        for kind in ("weight", "bias")
        if f"mlp.gate_proj.{kind}" in own
    }


def _qk_norm(own: dict[str, Tensor], order: HeadOrder, config: ModelConfig) -> RmsNorm:
    queries = order.keys(own["self_attn.q_norm.weight"]).expand(config.num_heads, -1)
    keys = order.keys(own["self_attn.k_norm.weight"]).expand(config.num_kv_heads, -1)
    return pack_rms_norm(torch.cat([queries, keys]), config.rms_norm_eps)
