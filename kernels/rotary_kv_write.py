"""Rotary positions on queries and keys, and keys and values into the paged cache.

A pair (a, b) of a head at position p becomes (a + ib) x exp(i p f), with f the pair's frequency.
Source: Su et al. 2021, arXiv:2104.09864.

The two numbers of a pair lie side by side (Hugging Face stores them half a head apart; the loader
permutes the weights), so that one complex multiplication turns all heads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """How one row of the fused projection divides into heads: queries, keys, values."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def num_rotated(self) -> int:
        """Queries and keys."""
        return self.num_heads + self.num_kv_heads

    @property
    def num_all(self) -> int:
        """Queries, keys and values."""
        return self.num_heads + 2 * self.num_kv_heads


def turns_of(table: Tensor, positions: Tensor, layout: HeadLayout) -> Tensor:
    """The factor of every pair of a fused row, once a pass for all layers; 1 for values.

    Args:
        table: [positions, head_dim / 2] complex64.
        positions: [T] int64.
        layout: of the rows.

    Returns:
        [T, queries + keys + values, head_dim / 2] complex64.
    """
    turns = torch.ones(len(positions), layout.num_all, layout.head_dim // 2, dtype=table.dtype)
    turns[:, : layout.num_rotated] = table.index_select(0, positions).unsqueeze(1)
    return turns


@dataclass(frozen=True, slots=True)
class KvSlots:
    """Where one layer's new keys and values go."""

    keys: Tensor  # [slots, num_kv_heads, head_dim] float32
    values: Tensor  # the same
    slot_mapping: Tensor  # [T] int64


def rotary_kv_write_reference(
    qkv: Tensor, turns: Tensor, layout: HeadLayout, slots: KvSlots
) -> Tensor:
    """Turn queries and keys and write keys and values. `qkv` is used up.

    Args:
        qkv: [T, (queries + keys + values) x head_dim] float32, contiguous.
        turns: what `turns_of` made for these rows.
        layout: of the rows.
        slots: the layer's cache and a slot a row.

    Returns:
        [T, num_heads, head_dim] float32, a view of `qkv`.
    """
    heads = qkv.view(-1, layout.num_all, layout.head_dim)
    torch.view_as_complex(qkv.view(-1, layout.num_all, layout.head_dim // 2, 2)).mul_(turns)
    num_kv_heads = layout.num_kv_heads
    keys = heads.narrow(1, layout.num_heads, num_kv_heads)
    slots.keys.index_copy_(0, slots.slot_mapping, keys)
    values = heads.narrow(1, layout.num_rotated, num_kv_heads)
    slots.values.index_copy_(0, slots.slot_mapping, values)
    return heads.narrow(1, 0, layout.num_heads)
