"""The paged key and value cache on a GPU: for every layer two tensors, by block, head and token.

In the dtype that the model computes in, or in float8 e4m3 with a scale of 1: numbers are rounded to
three bits of fraction when they are written, and read as what they were rounded to, by the rows of
the same pass too. So what a row sees does not depend on how its sequence was cut.

Within a block the tokens of one key head follow one another, so that a tile of attention is one
contiguous read. Knows nothing of sequences: who owns which block is `shared.engine.blocks`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.gpu.copy_blocks import copy_blocks
from shared.engine.shape import ModelShape


class GpuCache:
    """Keys and values of `num_blocks` blocks of `block_size` tokens."""

    def __init__(
        self,
        config: ModelShape,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        layout = config.layout
        shape = (num_blocks, layout.num_kv_heads, block_size, layout.head_dim)
        # Zeros, not memory as found: what is masked must be finite, for 0 x NaN is NaN.
        self.layers: tuple[tuple[Tensor, Tensor], ...] = tuple(
            (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(config.num_layers)
        )

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, (source, destination) each, as if all at once."""
        if not copies:
            return
        device = self.layers[0][0].device
        pairs = torch.tensor(copies, dtype=torch.int64).to(device)
        for keys, values in self.layers:
            copy_blocks(keys, values, pairs)
