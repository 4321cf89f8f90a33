"""The paged key and value cache: blocks of tokens, for every layer two tensors.

Knows nothing of sequences: who owns which block is `shared.engine.blocks`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.engine.config import ModelConfig


class PagedCache:
    """Keys and values of `num_blocks` blocks of `block_size` tokens.

    One tensor a layer and kind, never one for all layers: compilers and index updates on views of a
    stacked tensor copy all of it (measured 4 to 10 times slower on a 7 M parameter model).
    """

    def __init__(self, config: ModelConfig, *, num_blocks: int, block_size: int) -> None:
        shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
        layers = range(config.num_layers)
        # Zeros, not left as found: padding is masked, but a NaN times nothing is still a NaN.
        self.keys: list[Tensor] = [torch.zeros(shape) for _ in layers]
        self.values: list[Tensor] = [torch.zeros(shape) for _ in layers]
        self.num_blocks = num_blocks
        self.block_size = block_size

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, (source, destination) each, as if all at once."""
        if not copies:
            return
        sources, destinations = torch.tensor(copies).unbind(1)
        for cache in (*self.keys, *self.values):
            cache.index_copy_(0, destinations, cache.index_select(0, sources))
