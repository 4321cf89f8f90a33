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

MAX_COPIES = 256  # of one launch; a step of a drafter forks some tens of branches at most


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
        self._caches = torch.zeros(2 * config.num_layers, *shape, dtype=dtype, device=device)
        pairs = self._caches.view(config.num_layers, 2, *shape)
        self.layers: tuple[tuple[Tensor, Tensor], ...] = tuple(
            (keys, values) for keys, values in pairs
        )
        self._pairs = torch.empty(MAX_COPIES, 2, dtype=torch.int64, device=device)
        is_pinned = device.type == "cuda"
        self._staged = torch.empty(MAX_COPIES, 2, dtype=torch.int64, pin_memory=is_pinned)
        self._sent: torch.cuda.Event | None = None
        if is_pinned:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, (source, destination) each, in no order.

        Does not wait for it. No destination occurs twice, or is the source of another copy.
        """
        for start in range(0, len(copies), MAX_COPIES):
            self._copy(copies[start : start + MAX_COPIES])

    def clear_block(self, block_id: int) -> None:
        """Zeros in all layers."""
        self._caches[:, block_id].zero_()

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        if self._sent is not None:
            self._sent.synchronize()  # the copies before may still be read
        staged, pairs = self._staged[: len(copies)], self._pairs[: len(copies)]
        staged.copy_(torch.tensor(copies, dtype=torch.int64))
        pairs.copy_(staged, non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        copy_blocks(self._caches, pairs)
