"""Puts the rows of a round where the round before ended: its outcome never leaves the device.

A round that begins before the one before is known is staged as though every draft token had been
accepted. With n of d + 1 tokens confirmed it begins d + 1 - n tokens earlier, and computes the last
of them:

    token = chosen[first + n - 1],  position = staged - (d + 1 - n)

Source: docs/design.md, "Devices".
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_work import AttentionBatch

# Columns of `follows`, [N, NUM_COLUMNS] int32.
FIRST_ROW = 0  # of the sequence, among the rows that the round before chose tokens for
NUM_DRAFTS = 1  # d: its draft tokens there
NUM_COLUMNS = 2

NUM_WARPS = 1

_FIRST_ROW, _NUM_DRAFTS = tl.constexpr(FIRST_ROW), tl.constexpr(NUM_DRAFTS)
_NUM_COLUMNS = tl.constexpr(NUM_COLUMNS)


def follow_rows_reference(
    chosen: Tensor,
    num_confirmed: Tensor,
    follows: Tensor,
    batch: AttentionBatch,
    *,
    token_ids: Tensor,
    slots: Tensor,
    block_size: int,
) -> None:
    """Do what `follow_rows` does."""
    for row, (first, num_drafts) in enumerate(follows.tolist()):
        num = max(1, int(num_confirmed[first]))
        position = int(batch.positions[row]) - (num_drafts + 1 - num)
        block = int(batch.block_tables[row, position // block_size])
        token_ids[row] = max(0, int(chosen[first + num - 1]))
        batch.positions[row] = position
        slots[row] = block * block_size + position % block_size
        batch.context_lens[row] = position + 1


@triton.jit  # type: ignore[untyped-decorator]
def _follow_rows_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    chosen_ptr: tl.tensor,  # [T] int32
    num_confirmed_ptr: tl.tensor,  # [T] int32
    follows_ptr: tl.tensor,  # [N, NUM_COLUMNS] int32
    token_ids_ptr: tl.tensor,  # [N] int32, written
    positions_ptr: tl.tensor,  # [N] int32, changed
    slots_ptr: tl.tensor,  # [N] int32, written
    context_lens_ptr: tl.tensor,  # [N] int32, written
    tables_ptr: tl.tensor,  # [N, table_len] int32
    table_len: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(follows_ptr + row * _NUM_COLUMNS + _FIRST_ROW)
    num_drafts = tl.load(follows_ptr + row * _NUM_COLUMNS + _NUM_DRAFTS)
    num = tl.maximum(tl.load(num_confirmed_ptr + first), 1)
    token_id = tl.maximum(tl.load(chosen_ptr + first + num - 1), 0)
    position = tl.load(positions_ptr + row) - (num_drafts + 1 - num)
    block = tl.load(tables_ptr + row * table_len + position // block_size)
    tl.store(token_ids_ptr + row, token_id)
    tl.store(positions_ptr + row, position)
    tl.store(slots_ptr + row, block * block_size + position % block_size)
    tl.store(context_lens_ptr + row, position + 1)


def follow_rows(
    chosen: Tensor,
    num_confirmed: Tensor,
    follows: Tensor,
    batch: AttentionBatch,
    *,
    token_ids: Tensor,
    slots: Tensor,
    block_size: int,
) -> None:
    """Complete a staged round of N sequences, one row each, all of which go on from another round.

    A sequence of which nothing was confirmed (its logits were unusable) gets some token at a
    position of its own: whoever collects the other round drops it.

    Args:
        chosen: [T] int32, the token chosen at each row of the round before; -1 of an unusable one.
        num_confirmed: [T] int32, at a sequence's first row how many of its choices count.
        follows: [N, NUM_COLUMNS] int32.
        batch: with the positions and tables as staged; positions and context lengths are written.
        token_ids: [N or more] int32, written.
        slots: [N or more] int32, written: where keys and values go.
        block_size: tokens a block.
    """
    num_rows = len(follows)
    assert follows.shape[1:] == (NUM_COLUMNS,)
    for tensor in (chosen, num_confirmed, follows, token_ids, slots):
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.int32
    assert min(len(token_ids), len(slots), len(batch.context_lens)) >= num_rows
    if num_rows:
        _follow_rows_kernel[(num_rows,)](
            chosen,
            num_confirmed,
            follows,
            token_ids,
            batch.positions,
            slots,
            batch.context_lens,
            batch.block_tables,
            table_len=batch.block_tables.shape[1],
            block_size=block_size,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
