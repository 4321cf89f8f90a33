"""How many tokens a verify round confirms: the accepted draft tokens, then one of the target's own.

The rows of a request are followed as long as the token chosen at a row equals the draft; the row
after the last match adds its own choice, unless it is unusable.

Source: docs/design.md, sampled verification.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import gumbel_choice as columns

BLOCK_SIZE = 32  # rows at a time: most requests have fewer
NUM_WARPS = 1

_DRAFT, _NUM_ROWS = tl.constexpr(columns.DRAFT), tl.constexpr(columns.NUM_ROWS)
_NUM_FIELDS = tl.constexpr(columns.NUM_FIELDS)


def accept_drafts_reference(chosen: Tensor, rows: Tensor) -> Tensor:
    """Arguments and result as `accept_drafts`."""
    counts = [0] * len(chosen)
    for start, num_rows in enumerate(rows[: len(chosen), columns.NUM_ROWS].tolist()):
        own = slice(start, start + num_rows)
        drafts = rows[own, columns.DRAFT].tolist()
        for token_id, draft in zip(chosen[own].tolist(), drafts, strict=True):
            counts[start] += token_id >= 0
            if token_id < 0 or token_id != draft:
                break
    return torch.tensor(counts, dtype=torch.int32, device=chosen.device)


@triton.jit  # type: ignore[untyped-decorator]
def _accept_drafts_kernel(
    chosen_ptr: tl.tensor,  # [T] int32, -1 of an unusable row
    rows_ptr: tl.tensor,  # [T, NUM_FIELDS] int64
    num_confirmed_ptr: tl.tensor,  # [T] int32, written
    block_size: tl.constexpr,
) -> None:
    start = tl.program_id(0).to(tl.int64)
    num_rows = tl.load(rows_ptr + start * _NUM_FIELDS + _NUM_ROWS)
    end = start + num_rows
    row, block_start = start, start
    while (row == block_start) & (row < end):  # all of the blocks before matched
        rows = block_start + tl.arange(0, block_size)
        is_inside = rows < end
        chosen = tl.load(chosen_ptr + rows, mask=is_inside, other=-1)
        drafts = tl.load(rows_ptr + rows * _NUM_FIELDS + _DRAFT, mask=is_inside, other=-1)
        is_match = (chosen == drafts) & (chosen >= 0)
        block_start += block_size
        row = tl.min(tl.where(is_match, block_start, rows), axis=0)
    own = tl.load(chosen_ptr + row, mask=row < end, other=-1)
    confirmed = row - start + (own >= 0).to(tl.int64)
    tl.store(num_confirmed_ptr + start, confirmed.to(tl.int32))


def accept_drafts(chosen: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Count what each request confirms: leading rows that equal their drafts, and one more.

    Args:
        chosen: [T] int32, the token chosen at each row; -1 of an unusable row.
        rows: [T or more, NUM_FIELDS] int64, contiguous: the columns of gumbel_choice.
        out: [T or more] int32; allocated if not given.

    Returns:
        `out`: at a request's first row how many of its choices are confirmed, 0 at other rows.
    """
    num_rows = len(chosen)
    out = chosen.new_empty(num_rows) if out is None else out
    assert chosen.dtype == out.dtype == torch.int32
    assert rows.dtype == torch.int64
    assert rows.shape[1:] == (columns.NUM_FIELDS,)
    for tensor in (chosen, rows, out):
        assert tensor.is_contiguous()
        assert len(tensor) >= num_rows
    if num_rows:
        _accept_drafts_kernel[(num_rows,)](
            chosen,
            rows,
            out,
            block_size=BLOCK_SIZE,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    return out
