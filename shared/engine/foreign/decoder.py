"""transformers' modules on the CPU in the place of our decoder: the same batches, the same cache.

Queries, keys and values of a layer become fused rows in the order of `HeadLayout`, as our own
decoder has them; from there on attention is the same code.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernels.attention_plan import AttentionGroup
from kernels.head_layout import HeadLayout, LayerCache
from kernels.paged_attention import paged_attention_reference
from shared.engine.cache import PagedCache
from shared.engine.decoder import Batch, Layers
from shared.engine.foreign.config import ForeignConfig
from shared.engine.foreign.interface import AttentionCall, attending, logits_of


class ForeignDecoder(Layers):
    """A model's layers, bound to its cache."""

    def __init__(self, config: ForeignConfig, model: Any, cache: PagedCache) -> None:  # noqa: ANN401  # transformers' own
        self._config = config
        self._model = model
        self._cache = cache.layers

    def forward(self, batch: Batch) -> Tensor:
        """See Layers."""

        def attend(call: AttentionCall) -> Tensor:
            return self._attend(call, batch)

        with attending(attend):
            return logits_of(self._model, batch.token_ids, batch.positions, batch.logit_rows)

    def _attend(self, call: AttentionCall, batch: Batch) -> Tensor:
        layer, layout = self._config.layers[call.layer], self._config.layout
        cache = self._cache[call.layer]
        qkv = fused_rows(call, layout, torch.float32)
        heads = qkv.view(-1, layout.num_all, layout.head_dim)
        keys = heads.narrow(1, layout.num_heads, layout.num_kv_heads)
        cache.keys.index_copy_(0, batch.slot_mapping, keys)
        values = heads.narrow(1, layout.num_rotated, layout.num_kv_heads)
        cache.values.index_copy_(0, batch.slot_mapping, values)
        # Attention scales by what fits the width of a row.
        heads.narrow(1, 0, layout.num_heads).mul_(layer.scale * math.sqrt(layout.head_dim))
        if layer.soft_cap is None:
            out = paged_attention_reference(qkv, cache, batch.plan, layer.window)
        else:
            out = capped_attention(qkv, cache, batch.plan, layer.window, soft_cap=layer.soft_cap)
        return unpacked_heads(out, layout, layer.value_dim)


def fused_rows(call: AttentionCall, layout: HeadLayout, dtype: torch.dtype) -> Tensor:
    """Queries, keys and values of T tokens as [T, num_all x D], what they have less of D zeros.

    transformers' query head k x G + g reads key head k; in a row it is head g x num_kv_heads + k.
    """
    _, num_tokens, key_dim = call.queries.shape
    is_narrow = min(key_dim, call.values.shape[2]) < layout.head_dim
    new = torch.zeros if is_narrow else torch.empty
    rows = new(
        (num_tokens, layout.group_size + 2, layout.num_kv_heads, layout.head_dim),
        dtype=dtype,
        device=call.queries.device,
    )
    grouped = (layout.num_kv_heads, layout.group_size, num_tokens, key_dim)
    rows[:, :-2, :, :key_dim] = call.queries.reshape(grouped).permute(2, 1, 0, 3)
    rows[:, -2, :, :key_dim] = call.keys.transpose(0, 1)
    rows[:, -1, :, : call.values.shape[2]] = call.values.transpose(0, 1)
    return rows.flatten(1)


def unpacked_heads(out: Tensor, layout: HeadLayout, value_dim: int) -> Tensor:
    """The rows of attention, [T, num_heads x D], as transformers has them: [T, H, value_dim]."""
    heads = out.view(len(out), layout.group_size, layout.num_kv_heads, layout.head_dim)
    return heads[..., :value_dim].transpose(1, 2).flatten(1, 2)


def capped_attention(
    qkv: Tensor,
    cache: LayerCache,
    plan: list[AttentionGroup],
    window: int | None,
    *,
    soft_cap: float,
) -> Tensor:
    """What `paged_attention_reference` does, with softmax(c tanh(q K^T / (c sqrt(D)))) V.

    Source: Gemma 2, arXiv:2408.00118. PyTorch's fused attention knows no cap.
    """
    layout = plan[0].layout
    out = qkv.new_empty(len(qkv), layout.num_heads * layout.head_dim)
    for group in plan:
        keys, values = (
            tensor.as_strided(group.shape, group.strides, group.offset)
            for tensor in (
                (cache.keys, cache.values)
                if group.block_ids is None
                else (cache.key_blocks[group.block_ids], cache.value_blocks[group.block_ids])
            )
        )
        num_packed = group.num_rows * layout.group_size
        packed = (group.num_sequences, num_packed, layout.num_kv_heads, layout.head_dim)
        own = qkv[group.rows, : layout.num_heads * layout.head_dim].reshape(packed)
        scores = own.transpose(1, 2) @ keys.transpose(2, 3)  # [B, num_kv_heads, P, C]
        scores = torch.tanh(scores / (soft_cap * math.sqrt(layout.head_dim))) * soft_cap
        mask = group.masks[window]
        if mask is not None:
            scores += mask[:, :, :num_packed]
        mixed = scores.softmax(dim=-1) @ values
        out[group.rows] = mixed.transpose(1, 2).reshape(-1, out.shape[1])
    return out
