"""The paged key and value cache on a GPU: for every layer two tensors, by block, head and token.

In the dtype that the model computes in, or in float8 e4m3 with a scale of 1: numbers are rounded to
three bits of fraction when they are written, and read as what they were rounded to, by the rows of
the same pass too. So what a row sees does not depend on how its sequence was cut.

Within a block the tokens of one key head follow one another, so that a tile of attention is one
contiguous read. Knows nothing of sequences: who owns which block is `shared.engine.blocks`.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.gpu.copy_blocks import copy_blocks, copy_words
from shared.engine.shape import ModelShape

MAX_COPIES = 256  # of one launch


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
        num_words, is_pinned = copy_words(MAX_COPIES), device.type == "cuda"
        self._copies = torch.empty(num_words, dtype=torch.int32, device=device)
        self._staged = torch.empty(num_words, dtype=torch.int32, pin_memory=is_pinned)
        self._sent: torch.cuda.Event | None = None
        if is_pinned:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, (source, destination) each, in no order.

        Does not wait for it. No destination occurs twice, or is the source of another copy.
        """
        for start in range(0, len(copies), MAX_COPIES):
            self._copy(copies[start : start + MAX_COPIES])

    def copy_listed(self, copies: Tensor) -> None:
        """The same of a list on the device: see `kernels.gpu.copy_blocks`."""
        copy_blocks(self._caches, copies)

    def clear_block(self, block_id: int) -> None:
        """Zeros in all layers."""
        self._caches[:, block_id].zero_()

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        if self._sent is not None:
            self._sent.synchronize()  # the copies before may still be read
        num_words = copy_words(len(copies))
        words = torch.tensor([len(copies), *itertools.chain(*copies)], dtype=torch.int32)
        self._staged[:num_words] = words
        self._copies[:num_words].copy_(self._staged[:num_words], non_blocking=True)
        if self._sent is not None:
            self._sent.record()
        copy_blocks(self._caches, self._copies)
