"""The best few tokens of every row by value plus keyed Gumbel noise, on a GPU.

score(i) = (logit(i) - best logit) / temperature + G(seed, position, i), over the tokens that
filters keep; at temperature 0 the noise is left out. The lowest id wins a tie. What decides is
counted in float64, so the same logits give the same tokens as kernels/gumbel_top.py (up to the
last bits of float64 logarithms).

Two launches. The first reads every logit once and leaves two numbers a block of tokens: its best
logit, and, in float32, a lower bound of the first arrival of an exponential race,

    min over i of -log(u(i)) x exp((best of the block - logit(i)) / temperature),

whose negative logarithm bounds every score of the block from above. The second launch scores blocks
in float64 in the order of these bounds, until no other block can win: nearly always one.

Source: Gumbel-max as an exponential race, Maddison 2016; one noise for target and drafter after
Daliri et al. 2024, arXiv:2408.07978.
"""

import sys
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.keyed_noise import gumbel_noise, lowest_arrival, random_words
from kernels.gumbel_top import Top, gumbel_top_reference
from kernels.philox import MASK

BLOCK_SIZE = 2048  # tokens: 63 programs a row of 128,256, and 16 tokens a thread
NUM_BOUND_WARPS = 4
NUM_CHOICE_WARPS = 8  # float64 takes twice the registers
LOWEST = -sys.float_info.max  # the `min_value` that keeps all but -inf

# Columns of `rows`, [T, NUM_FIELDS] int64; those marked * hold the bits of a float64.
SEED = 0  # unsigned
POSITION = 1  # absolute index of the token being chosen
TEMPERATURE = 2  # *
MIN_VALUE = 3  # * what (logit - best) / temperature has to reach
MIN_LOGIT = 4  # * at most the smallest logit that reaches it: a block below need not be looked at
IS_USED = 5  # 0: nobody's, or chosen elsewhere: nothing is read, and -1 is chosen
DRAFT = 6  # for accept_drafts: the guess for the token chosen here, -1 where there is none
NUM_ROWS = 7  # for accept_drafts: of the request whose first row this is; 0 at its other rows
NUM_FIELDS = 8

_SEED, _POSITION, _TEMPERATURE = tl.constexpr(SEED), tl.constexpr(POSITION), tl.constexpr(2)
_MIN_VALUE, _MIN_LOGIT = tl.constexpr(MIN_VALUE), tl.constexpr(MIN_LOGIT)
_IS_USED, _NUM_FIELDS = tl.constexpr(IS_USED), tl.constexpr(NUM_FIELDS)
_LOG2E = tl.constexpr(1.4426950408889634)
_LOWEST_32 = tl.constexpr(-3.4028234663852886e38)
# float32 rounding in the bounds is below 1e-4 for every token that may win, which is one within
# 26.1 (the range of the noise) of the best.
_MARGIN = tl.constexpr(1e-3)
_NO_ID = tl.constexpr(2**31 - 1)


def gumbel_choice_reference(logits: Tensor, rows: Tensor, num: int = 1) -> list[Top]:
    """By definition, row after row; arguments as `gumbel_choice`, every row used."""
    tops = []
    floats = rows.view(torch.float64)
    for values, numbers, words in zip(
        logits.double().numpy(), floats.tolist(), rows.tolist(), strict=True
    ):
        top = gumbel_top_reference(
            values,
            temperature=numbers[TEMPERATURE],
            min_value=numbers[MIN_VALUE],
            seed=words[SEED] % 2**64,
            position=words[POSITION] & MASK,
            num=num,
        )
        tops.append(top)
    return tops


@triton.jit  # type: ignore[untyped-decorator]
def _bound_blocks_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    logits_ptr: tl.tensor,  # [T, V]
    row_stride: tl.tensor,  # elements
    vocab_size: tl.tensor,
    rows_ptr: tl.tensor,  # [T, NUM_FIELDS] int64
    best_ptr: tl.tensor,  # [T, num_blocks] float64, written: +inf if a logit is NaN or +inf
    arrival_ptr: tl.tensor,  # [T, num_blocks] float32, written where there is a temperature
    block_size: tl.constexpr,
) -> None:
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    fields_ptr = rows_ptr + row * _NUM_FIELDS
    if tl.load(fields_ptr + _IS_USED) != 0:
        is_double: tl.constexpr = logits_ptr.dtype.element_ty == tl.float64
        token_ids = block * block_size + tl.arange(0, block_size)
        is_inside = token_ids < vocab_size
        logits = tl.load(
            logits_ptr + row * row_stride + token_ids, mask=is_inside, other=float("-inf")
        )
        if not is_double:
            logits = logits.to(tl.float32)
        best = tl.max(tl.where(logits < float("inf"), logits, float("inf")), axis=0)
        place = row * tl.num_programs(0) + block
        tl.store(best_ptr + place, best.to(tl.float64))
        temperature = tl.load(fields_ptr + _TEMPERATURE).to(tl.float64, bitcast=True)
        is_finite = (best > float("-inf")) & (best < float("inf"))
        if is_finite & (temperature > 0.0):
            floor = tl.load(fields_ptr + _MIN_LOGIT).to(tl.float64, bitcast=True)
            if not is_double:
                floor = tl.maximum(floor, _LOWEST_32).to(tl.float32)
            # Within float32; requests have temperatures far from these ends.
            scale = tl.minimum(tl.maximum(_LOG2E / temperature, 1e-38), 1e38)
            behind = (best - logits).to(tl.float32) * scale.to(tl.float32)
            position, seed = tl.load(fields_ptr + _POSITION), tl.load(fields_ptr + _SEED)
            arrivals = lowest_arrival(random_words(token_ids, position, seed))
            arrivals = tl.where(logits >= floor, arrivals * tl.exp2(behind), float("inf"))
            tl.store(arrival_ptr + place, tl.min(arrivals, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _scores_of_block(
    row_ptr: tl.tensor,  # [V] logits
    token_ids: tl.tensor,  # [N]
    vocab_size: tl.tensor,
    best: tl.tensor,
    fields_ptr: tl.tensor,
) -> tl.tensor:
    """[N] float64 scores, -inf of tokens that may not be chosen."""
    temperature = tl.load(fields_ptr + _TEMPERATURE).to(tl.float64, bitcast=True)
    min_value = tl.load(fields_ptr + _MIN_VALUE).to(tl.float64, bitcast=True)
    is_inside = token_ids < vocab_size
    logits = tl.load(row_ptr + token_ids, mask=is_inside, other=float("-inf")).to(tl.float64)
    scale = tl.where(temperature > 0.0, temperature, 1.0)
    values = (logits - best) / scale
    is_kept = is_inside & (values >= min_value)
    if temperature > 0.0:
        position, seed = tl.load(fields_ptr + _POSITION), tl.load(fields_ptr + _SEED)
        values += gumbel_noise(random_words(token_ids, position, seed))
    return tl.where(is_kept, values, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _bounds_of_row(
    best_ptr: tl.tensor,  # of the row [num_blocks]
    arrival_ptr: tl.tensor,  # of the row [num_blocks]
    blocks: tl.tensor,  # [N]
    num_blocks: tl.tensor,
    temperature: tl.tensor,
) -> tl.tensor:
    """What no score of a block exceeds, [N] float64, and the best logit; all -inf if unusable."""
    is_block = blocks < num_blocks
    block_best = tl.load(best_ptr + blocks, mask=is_block, other=float("-inf"))
    best = tl.max(block_best, axis=0)
    is_usable = (best > float("-inf")) & (best < float("inf"))
    best = tl.where(is_usable, best, 0.0)
    is_open = is_block & (block_best > float("-inf")) & (block_best < float("inf"))
    bounds = tl.where(is_open, block_best, float("-inf")) - best
    if temperature > 0.0:
        arrivals = tl.load(arrival_ptr + blocks, mask=is_open, other=1.0).to(tl.float64)
        bounds = bounds / temperature - tl.log(arrivals) + _MARGIN
    return tl.where(is_usable, bounds, float("-inf")), best


@triton.jit  # type: ignore[untyped-decorator]
def _first_best(values: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """The largest value and its id, the lowest on ties."""
    top = tl.max(values, axis=0)
    return top, tl.min(tl.where(values == top, ids, _NO_ID), axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _may_enter(
    top: tl.tensor, first_id: tl.tensor, worst: tl.tensor, worst_id: tl.tensor
) -> tl.tensor:
    """Whether a score beats the worst that was found, or is as good under a lower id."""
    return (top > worst) | ((top == worst) & (top > float("-inf")) & (first_id < worst_id))


@triton.jit  # type: ignore[untyped-decorator]
def _store_best(
    token_ids_ptr: tl.tensor,  # [num], written
    scores_ptr: tl.tensor,  # [num], written
    found: tl.tensor,
    found_ids: tl.tensor,
    num: tl.constexpr,
) -> None:
    for rank in tl.static_range(num):
        top, top_id = _first_best(found, found_ids)
        tl.store(token_ids_ptr + rank, tl.where(top > float("-inf"), top_id, -1))
        tl.store(scores_ptr + rank, top)
        is_stored = (found == top) & (found_ids == top_id)
        found = tl.where(is_stored, float("-inf"), found)


@triton.jit  # type: ignore[untyped-decorator]
def _choose_kernel(  # noqa: PLR0917  # kernels take their arguments by position
    logits_ptr: tl.tensor,  # [T, V]
    row_stride: tl.tensor,  # elements
    vocab_size: tl.tensor,
    rows_ptr: tl.tensor,  # [T, NUM_FIELDS] int64
    best_ptr: tl.tensor,  # [T, num_blocks] float64
    arrival_ptr: tl.tensor,  # [T, num_blocks] float32
    token_ids_ptr: tl.tensor,  # [T, num] int32, written: -1 where there is none
    scores_ptr: tl.tensor,  # [T, num] float64, written
    num: tl.constexpr,
    max_blocks: tl.constexpr,  # blocks of a row, rounded up to a power of 2
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    fields_ptr = rows_ptr + row * _NUM_FIELDS
    temperature = tl.load(fields_ptr + _TEMPERATURE).to(tl.float64, bitcast=True)
    num_blocks = tl.cdiv(vocab_size, block_size)
    blocks = tl.arange(0, max_blocks)
    used_blocks = tl.where(tl.load(fields_ptr + _IS_USED) != 0, num_blocks, 0)
    start = row * num_blocks
    bounds, best = _bounds_of_row(
        best_ptr + start, arrival_ptr + start, blocks, used_blocks, temperature
    )

    num_slots: tl.constexpr = triton.next_power_of_2(num)
    slots = tl.arange(0, num_slots)
    found = tl.where(slots < num, float("-inf"), float("inf")).to(tl.float64)
    found_ids = tl.zeros_like(slots) + _NO_ID
    worst, worst_id = tl.min(found, axis=0), tl.max(found_ids, axis=0)
    bound, block = _first_best(bounds, blocks)
    while _may_enter(bound, block * block_size, worst, worst_id):
        token_ids = block * block_size + tl.arange(0, block_size)
        row_ptr = logits_ptr + row * row_stride
        scores = _scores_of_block(row_ptr, token_ids, vocab_size, best, fields_ptr)
        top, top_id = _first_best(scores, token_ids)
        while _may_enter(top, top_id, worst, worst_id):
            is_worst = (found == worst) & (found_ids == worst_id)
            slot = tl.min(tl.where(is_worst, slots, num_slots), axis=0)
            found = tl.where(slots == slot, top, found)
            found_ids = tl.where(slots == slot, top_id, found_ids)
            worst = tl.min(found, axis=0)
            worst_id = tl.max(tl.where(found == worst, found_ids, -1), axis=0)
            scores = tl.where(token_ids == top_id, float("-inf"), scores)
            top, top_id = _first_best(scores, token_ids)
        bounds = tl.where(blocks == block, float("-inf"), bounds)
        bound, block = _first_best(bounds, blocks)
    found = tl.where(slots < num, found, float("-inf"))
    _store_best(token_ids_ptr + row * num, scores_ptr + row * num, found, found_ids, num)


class Workspace(NamedTuple):
    """What the first launch leaves to the second."""

    best: Tensor  # [T, num_blocks] float64
    arrivals: Tensor  # [T, num_blocks] float32


class Choice(NamedTuple):
    """Best first; -1 and -inf where a row has fewer, and everywhere where it is unusable."""

    token_ids: Tensor  # [T, num] int32
    scores: Tensor  # [T, num] float64


def new_workspace(num_rows: int, vocab_size: int, device: torch.device | str) -> Workspace:
    """Room for up to `num_rows` rows."""
    shape = (num_rows, triton.cdiv(vocab_size, BLOCK_SIZE))
    return Workspace(
        torch.empty(shape, dtype=torch.float64, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
    )


def workspace_bytes(num_rows: int, vocab_size: int) -> int:
    """Of `new_workspace`."""
    item_bytes = 8 + 4  # float64 and float32
    return num_rows * -(-vocab_size // BLOCK_SIZE) * item_bytes


def new_choice(num_rows: int, num: int, device: torch.device | str) -> Choice:
    """Room for the best `num` of `num_rows` rows."""
    return Choice(
        torch.empty((num_rows, num), dtype=torch.int32, device=device),
        torch.empty((num_rows, num), dtype=torch.float64, device=device),
    )


def gumbel_choice(
    logits: Tensor,
    rows: Tensor,
    *,
    num: int = 1,
    workspace: Workspace | None = None,
    out: Choice | None = None,
) -> Choice:
    """The best `num` tokens of each row and their scores, in two launches.

    Args:
        logits: [T, V] bf16, float16, float32, or float64; rows may lie further apart than V.
        rows: [T or more, NUM_FIELDS] int64, contiguous; the columns are described above.
        num: at least 1; a handful.
        workspace: for at least T rows of V tokens; allocated if not given.
        out: at least T rows; allocated if not given.

    Returns:
        `out`. A row with NaN or +inf, or with nothing but -inf, has no token. A row's tokens do not
        depend on the other rows.
    """
    num_rows, vocab_size = logits.shape
    workspace = workspace or new_workspace(num_rows, vocab_size, logits.device)
    out = out or new_choice(num_rows, num, logits.device)
    num_blocks = triton.cdiv(vocab_size, BLOCK_SIZE)
    assert logits.stride(1) == 1
    assert rows.shape[0] >= num_rows
    assert rows.shape[1:] == (NUM_FIELDS,)
    assert workspace.best.shape[1:] == workspace.arrivals.shape[1:] == (num_blocks,)
    assert out.token_ids.shape[1:] == out.scores.shape[1:] == (num,)
    for tensor in (rows, *workspace, *out):
        assert tensor.is_contiguous()
        assert len(tensor) >= num_rows
    if not num_rows:
        return out
    _bound_blocks_kernel[(num_blocks, num_rows)](
        logits,
        logits.stride(0),
        vocab_size,
        rows,
        *workspace,
        block_size=BLOCK_SIZE,
        num_warps=NUM_BOUND_WARPS,
        num_stages=1,
    )
    _choose_kernel[(num_rows,)](
        logits,
        logits.stride(0),
        vocab_size,
        rows,
        *workspace,
        *out,
        num=num,
        max_blocks=triton.next_power_of_2(num_blocks),
        block_size=BLOCK_SIZE,
        num_warps=NUM_CHOICE_WARPS,
        num_stages=1,
    )
    return out
