"""How rows divide into heads, and one layer's part of the paged cache: what the ops agree on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """One row of the fused projection holds queries, keys and values, in this order.

    With G query heads a key head, query head g x num_kv_heads + k reads key head k, so that the
    queries of one key head are G rows over the same keys.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group_size(self) -> int:
        """Query heads a key head: G."""
        return self.num_heads // self.num_kv_heads

    @property
    def num_rotated(self) -> int:
        """Queries and keys."""
        return self.num_heads + self.num_kv_heads

    @property
    def num_all(self) -> int:
        """Queries, keys and values."""
        return self.num_heads + 2 * self.num_kv_heads


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each one tensor, seen by slot and by block.

    Slot `block_id * block_size + i` is token i of a block. Views are made once: making one costs a
    tenth of a small op.
    """

    keys: Tensor  # [num_blocks x block_size, num_kv_heads, head_dim] float32
    values: Tensor  # the same
    key_blocks: Tensor  # [num_blocks, block_size x num_kv_heads x head_dim], a view
    value_blocks: Tensor  # the same

    @classmethod
    def allocate(cls, num_blocks: int, block_size: int, layout: HeadLayout) -> "LayerCache":
        """Zeros, not memory as found: what is masked must be finite, for 0 x NaN is NaN."""
        shape = (num_blocks * block_size, layout.num_kv_heads, layout.head_dim)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        return cls(keys, values, keys.view(num_blocks, -1), values.view(num_blocks, -1))

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return len(self.keys) // len(self.key_blocks)
