"""Completes a drafter's pass that began before the one before was read: its guesses stay here.

    token[row of sequence i] = ranked[first row of follow i][0]     (where sequence i follows one)

Source: docs/design.md, "Devices".
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.follow_rows import FIRST_ROW, NUM_COLUMNS

KNOWN = -1  # instead of a first row: the tokens are as they were staged

BLOCK = 128
NUM_WARPS = 1

_FIRST_ROW, _NUM_COLUMNS = tl.constexpr(FIRST_ROW), tl.constexpr(NUM_COLUMNS)


def take_guesses_reference(
    ranked: Tensor, follows: Tensor, query_starts: Tensor, *, token_ids: Tensor
) -> None:
    """Do what `take_guesses` does."""
    for sequence, first_row in enumerate(follows[:, FIRST_ROW].tolist()):
        if first_row != KNOWN:
            token_ids[query_starts[sequence]] = max(0, int(ranked[first_row, 0]))


@triton.jit  # type: ignore[untyped-decorator]
def _take_guesses_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    ranked_ptr: tl.tensor,  # [T, num] int32
    follows_ptr: tl.tensor,  # [N, NUM_COLUMNS] int32
    query_starts_ptr: tl.tensor,  # [N] int32
    token_ids_ptr: tl.tensor,  # int32, written
    num_sequences: tl.tensor,
    num: tl.constexpr,
    block: tl.constexpr,
) -> None:
    sequence = tl.program_id(0) * block + tl.arange(0, block)
    is_own = sequence < num_sequences
    first_row = tl.load(follows_ptr + sequence * _NUM_COLUMNS + _FIRST_ROW, mask=is_own, other=-1)
    follows = first_row >= 0
    row = tl.load(query_starts_ptr + sequence, mask=follows, other=0)
    token_id = tl.load(ranked_ptr + first_row.to(tl.int64) * num, mask=follows, other=0)
    tl.store(token_ids_ptr + row, tl.maximum(token_id, 0), mask=follows)


def take_guesses(
    ranked: Tensor, follows: Tensor, query_starts: Tensor, *, token_ids: Tensor
) -> None:
    """Put the best guesses of one pass where the next one computes them.

    A row without any guess (its logits were unusable) gives some token: whoever collects that pass
    drops what comes of it.

    Args:
        ranked: [T, num] int32, the best tokens of each row of the pass before, best first.
        follows: [N, NUM_COLUMNS] int32, with a row of `ranked` or KNOWN for each sequence.
        query_starts: [N or more] int32, the first row of each sequence in this pass.
        token_ids: [rows or more] int32, written at the first row of each that follows.
    """
    num_sequences = len(follows)
    assert follows.shape[1:] == (NUM_COLUMNS,)
    assert len(query_starts) >= num_sequences
    for tensor in (ranked, follows, query_starts, token_ids):
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.int32
    _take_guesses_kernel[(triton.cdiv(num_sequences, BLOCK),)](
        ranked,
        follows,
        query_starts,
        token_ids,
        num_sequences,
        num=ranked.shape[1],
        block=BLOCK,
        num_warps=NUM_WARPS,
        num_stages=1,
    )
