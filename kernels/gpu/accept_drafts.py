"""How many tokens a verify round confirms: the accepted draft tokens, then one of the target's own.

The rows of a request are followed as long as the token chosen at a row equals the draft; the row
after the last match adds its own choice, unless it is unusable.

Source: docs/design.md, sampled verification.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SIZE = 32  # rows at a time: most requests have fewer
NUM_WARPS = 1


def accept_drafts_reference(chosen: Tensor, drafts: Tensor, row_starts: Tensor) -> Tensor:
    """Arguments and result as `accept_drafts`."""
    counts = []
    for start, end in itertools.pairwise(row_starts.tolist()):
        count = 0
        for token_id, draft in zip(chosen[start:end].tolist(), drafts[start:end], strict=True):
            count += token_id >= 0
            if token_id < 0 or token_id != draft:
                break
        counts.append(count)
    return torch.tensor(counts, dtype=torch.int32, device=chosen.device)


@triton.jit  # type: ignore[untyped-decorator]
def _accept_drafts_kernel(
    chosen_ptr: tl.tensor,  # [T] int32, -1 of an unusable row
    drafts_ptr: tl.tensor,  # [T] int64
    row_starts_ptr: tl.tensor,  # [R + 1] int64
    num_confirmed_ptr: tl.tensor,  # [R] int32, written
    block_size: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    start = tl.load(row_starts_ptr + request)
    end = tl.load(row_starts_ptr + request + 1)
    row, block_start = start, start
    while (row == block_start) & (row < end):  # all of the blocks before matched
        rows = block_start + tl.arange(0, block_size)
        is_inside = rows < end
        chosen = tl.load(chosen_ptr + rows, mask=is_inside, other=-1)
        drafts = tl.load(drafts_ptr + rows, mask=is_inside, other=-1)
        is_match = (chosen == drafts) & (chosen >= 0)
        block_start += block_size
        row = tl.min(tl.where(is_match, block_start, rows), axis=0)
    own = tl.load(chosen_ptr + row, mask=row < end, other=-1)
    confirmed = row - start + (own >= 0).to(tl.int64)
    tl.store(num_confirmed_ptr + request, confirmed.to(tl.int32))


def accept_drafts(
    chosen: Tensor, drafts: Tensor, row_starts: Tensor, out: Tensor | None = None
) -> Tensor:
    """Count what each request confirms: leading rows that equal their drafts, and one more.

    Args:
        chosen: [T] int32, the token chosen at each row; -1 of an unusable row.
        drafts: [T] int64, the guess for that token; -1 where there is none, as at a request's last
            row.
        row_starts: [R + 1] int64; rows row_starts[r] .. row_starts[r + 1] are request r's, maybe
            none.
        out: [R] int32; allocated if not given.

    Returns:
        `out`: the first so many choices of each request are confirmed.
    """
    num_requests = len(row_starts) - 1
    out = chosen.new_empty(num_requests) if out is None else out
    assert chosen.dtype == out.dtype == torch.int32
    assert drafts.dtype == row_starts.dtype == torch.int64
    assert len(out) == num_requests
    for tensor in (chosen, drafts, row_starts, out):
        assert tensor.is_contiguous()
    if num_requests:
        _accept_drafts_kernel[(num_requests,)](
            chosen,
            drafts,
            row_starts,
            out,
            block_size=BLOCK_SIZE,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    return out
