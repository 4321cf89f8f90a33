"""Rotary positions on queries and keys, and keys and values into the paged cache.

A pair (a, b) of a head at position p becomes (a + ib) x exp(i p f), with f the pair's frequency.
Source: Su et al. 2021, arXiv:2104.09864.

The two numbers of a pair lie side by side (Hugging Face stores them half a head apart; the loader
permutes the weights), so that one complex multiplication turns all heads.
"""

import torch
from torch import Tensor

from kernels.head_layout import HeadLayout, LayerCache


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


def rotary_kv_write_reference(
    qkv: Tensor, turns: Tensor, layout: HeadLayout, cache: LayerCache, slot_mapping: Tensor
) -> None:
    """Turn queries and keys where they are and write keys and values.

    Args:
        qkv: [T, (queries + keys + values) x head_dim] float32, contiguous; changed in place.
        turns: what `turns_of` made for these rows.
        layout: of the rows.
        cache: where keys and values go.
        slot_mapping: [T] int64, a slot a row.
    """
    torch.view_as_complex(qkv.view(-1, layout.num_all, layout.head_dim // 2, 2)).mul_(turns)
    heads = qkv.view(-1, layout.num_all, layout.head_dim)
    keys = heads.narrow(1, layout.num_heads, layout.num_kv_heads)
    cache.keys.index_copy_(0, slot_mapping, keys)
    values = heads.narrow(1, layout.num_rotated, layout.num_kv_heads)
    cache.values.index_copy_(0, slot_mapping, values)
