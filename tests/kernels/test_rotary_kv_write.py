"""Rotation of queries and keys, and the write into the cache."""

import pytest
import torch

from kernels.head_layout import HeadLayout, LayerCache
from kernels.rotary_kv_write import rotary_kv_write_reference, turns_of

LAYOUT = HeadLayout(num_heads=6, num_kv_heads=2, head_dim=8)


@pytest.mark.parametrize("num_rows", [1, 5, 63])
def test_pairs_turn_and_reach_their_slots(num_rows: int) -> None:
    """Queries and keys turn pair by pair, values do not, and no other slot is touched."""
    angles = torch.rand(100, 4) * 6
    table = torch.polar(torch.ones_like(angles), angles)
    positions = torch.randint(100, (num_rows,))
    slot_mapping = torch.randperm(128)[:num_rows]
    qkv = torch.randn(num_rows, 10 * 8)
    pairs = qkv.view(num_rows, 10, 4, 2).clone()
    cache = LayerCache.allocate(32, 4, LAYOUT)
    for part in (cache.keys, cache.values):
        part.fill_(float("nan"))

    turns = turns_of(table, positions, LAYOUT)
    rotary_kv_write_reference(qkv, turns, LAYOUT, cache, slot_mapping)

    cos, sin = angles[positions].cos().unsqueeze(1), angles[positions].sin().unsqueeze(1)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    torch.testing.assert_close(qkv.view(num_rows, 10, 8)[:, :6], turned[:, :6])
    torch.testing.assert_close(cache.keys[slot_mapping], turned[:, 6:8])
    assert torch.equal(cache.values[slot_mapping], pairs[:, 8:].flatten(-2))
    assert cache.keys.isnan().all(dim=-1).sum() == (128 - num_rows) * 2
    assert cache.values.isnan().all(dim=-1).sum() == (128 - num_rows) * 2


def test_slots_and_blocks_are_the_same_memory() -> None:
    """Writing by slot is reading by block."""
    cache = LayerCache.allocate(4, 4, LAYOUT)
    cache.keys[9] = 1.0
    cache.values[9] = 2.0
    assert cache.key_blocks[2].view(4, 2, 8)[1].eq(1.0).all()
    assert cache.value_blocks[2].view(4, 2, 8)[1].eq(2.0).all()
    assert cache.key_blocks.sum() == 2 * 8
