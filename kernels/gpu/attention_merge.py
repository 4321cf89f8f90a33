"""Adds up what attention over parts of a context left, in the order of the parts.

With a_c the weighted values of part c, l_c the sum of its weights and m_c its largest logit (base
2), all of one row, parts 0..c are a left fold: m = max(m', m_c),
l = l' 2^(m' - m) + l_c 2^(m_c - m), and a in the same way. A row's output is a / l.
Source: Milakov and Gimelshein 2018, arXiv:1805.02867; for split contexts Dao et al. 2023.

A part in which a row saw nothing (m_c = -inf) counts exactly 0, whatever its outputs hold: a row
has the same bits whether such parts are there or not.

Who adds them up: the last program to finish a part (no launch of its own, but one program after the
other), or, in rounds of little work, a launch with a program for every row and head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_work import ROW_WORDS, AttentionBatch, AttentionWork
from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched

PARTS_AT_ONCE = 32  # 4,096 numbers of a head of 128: 32 registers of a thread


def merge_parts_reference(
    outputs: Tensor, maxima: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts [num_parts, rows, D], [num_parts, rows] and the same, as one part."""
    largest = maxima.amax(dim=0)
    weights = torch.exp2(maxima - largest.nan_to_num(neginf=0.0))
    seen = outputs.masked_fill(weights.unsqueeze(-1) == 0, 0)
    merged_sums = (sums.masked_fill(weights == 0, 0) * weights).sum(dim=0)
    return (seen * weights.unsqueeze(-1)).sum(dim=0), largest, merged_sums


@triton.jit  # type: ignore[untyped-decorator]
def add_part(  # noqa: PLR0917  # Triton passes arguments by position
    outputs: tl.tensor,  # [block_m, D]
    maxima: tl.tensor,  # [block_m]
    sums: tl.tensor,  # [block_m]
    part_outputs: tl.tensor,
    part_maxima: tl.tensor,
    part_sums: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the fold: the same arithmetic wherever the part was computed."""
    new_maxima = tl.maximum(maxima, part_maxima)
    # Nothing seen so far: any finite number keeps the differences from being NaN.
    reference = tl.where(new_maxima > float("-inf"), new_maxima, 0.0)
    decay = tl.exp2(maxima - reference)
    weights = tl.exp2(part_maxima - reference)
    outputs = outputs * decay[:, None] + part_outputs * weights[:, None]
    return outputs, new_maxima, sums * decay + part_sums * weights


@triton.jit  # type: ignore[untyped-decorator]
def store_part(  # noqa: PLR0917  # Triton passes arguments by position
    outputs_ptr: tl.tensor,  # [rows of all parts, D] float32
    maxima_ptr: tl.tensor,  # [rows of all parts] float32
    sums_ptr: tl.tensor,  # the same
    first_row: tl.tensor,  # of the part, among those of all, int64
    outputs: tl.tensor,  # [block_m, D]
    maxima: tl.tensor,  # [block_m]
    sums: tl.tensor,  # [block_m]
    num_rows: tl.tensor,  # that are any, of the first
    head_dim: tl.constexpr,
) -> None:
    """Keep a part for whoever adds it up; outputs only of rows that saw something."""
    rows = tl.arange(0, outputs.shape[0])
    dims = tl.arange(0, outputs.shape[1])[None, :]
    is_row = rows < num_rows
    tl.store(maxima_ptr + first_row + rows, maxima, mask=is_row)
    tl.store(sums_ptr + first_row + rows, sums, mask=is_row)
    mask = (is_row & (maxima > float("-inf")))[:, None] & (dims < head_dim)
    tl.store(outputs_ptr + (first_row + rows)[:, None] * head_dim + dims, outputs, mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def merge_parts(  # noqa: PLR0917  # Triton passes arguments by position
    outputs_ptr: tl.tensor,  # [rows of all parts, D] float32
    maxima_ptr: tl.tensor,  # [rows of all parts] float32
    sums_ptr: tl.tensor,  # the same
    first_row: tl.tensor,  # of the first part, int64
    stride: tl.tensor,  # rows from part to part, int64
    num_parts: tl.tensor,
    num_rows: tl.tensor,
    block_m: tl.constexpr,
    head_dim: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Parts that other programs stored, as one; read past the first-level cache, which is old."""
    rows = tl.arange(0, block_m)
    dims = tl.arange(0, triton.next_power_of_2(head_dim))[None, :]
    is_row = rows < num_rows
    outputs = tl.zeros([block_m, dims.shape[1]], tl.float32)
    maxima = tl.full([block_m], float("-inf"), tl.float32)
    sums = tl.zeros([block_m], tl.float32)
    for part in range(num_parts):
        places = first_row + part * stride + rows
        part_maxima = tl.load(
            maxima_ptr + places, mask=is_row, other=float("-inf"), cache_modifier=".cg"
        )
        part_sums = tl.load(sums_ptr + places, mask=is_row, other=0.0, cache_modifier=".cg")
        part_outputs = tl.load(
            outputs_ptr + places[:, None] * head_dim + dims,
            mask=is_row[:, None] & (dims < head_dim),
            other=0.0,
            cache_modifier=".cg",
        )
        # Where nothing was seen nothing was stored, and 0 x NaN is NaN.
        part_outputs = tl.where((part_maxima > float("-inf"))[:, None], part_outputs, 0.0)
        outputs, maxima, sums = add_part(
            outputs, maxima, sums, part_outputs, part_maxima, part_sums
        )
    return outputs, maxima, sums


@triton.jit  # type: ignore[untyped-decorator]
def is_last_part(counter_ptr: tl.tensor, num_parts: tl.tensor) -> tl.tensor:
    """Whether all other parts are stored, now that this program's is; true for one of them.

    The counter is 0 before the first part and after the last one.
    """
    tl.debug_barrier()  # the stores of all threads are before the one that counts
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == num_parts - 1
    if is_last:
        tl.store(counter_ptr, 0)
    return is_last


@triton.jit(do_not_specialize=["num_sequences"])  # type: ignore[untyped-decorator]
def _merge_rows_kernel(  # noqa: PLR0917  # Triton passes arguments by position
    query_starts_ptr: tl.tensor, num_sequences: tl.tensor,  # [S + 1] int32
    rows_ptr: tl.tensor,  # [max_rows, ROW_WORDS] int32
    outputs_ptr: tl.tensor,  # [max_items, num_kv_heads, block_m, D] float32
    maxima_ptr: tl.tensor, sums_ptr: tl.tensor,  # [max_items, num_kv_heads, block_m] float32
    out_ptr: tl.tensor,  # [T, num_heads x D]
    num_kv_heads: tl.constexpr, head_dim: tl.constexpr, block_m: tl.constexpr,
    block_parts: tl.constexpr, is_dependent: tl.constexpr,
) -> None:  # fmt: skip
    let_next_start(is_dependent)
    wait_for_launched(is_dependent)
    row, head = tl.program_id(0), tl.program_id(1)
    num_rows = tl.load(query_starts_ptr + num_sequences)
    place = tl.load(rows_ptr + row * ROW_WORDS).to(tl.int64)
    num_parts = tl.load(rows_ptr + row * ROW_WORDS + 1)
    packed = tl.load(rows_ptr + row * ROW_WORDS + 2) + head // num_kv_heads
    first = (place * num_kv_heads + head % num_kv_heads) * block_m + packed
    dims = tl.arange(0, triton.next_power_of_2(head_dim))
    if (row < num_rows) & (num_parts > 1):
        output = tl.zeros([dims.shape[0]], tl.float32)
        maximum = tl.full([], float("-inf"), tl.float32)
        total = tl.zeros([], tl.float32)
        for start in range(0, num_parts, block_parts):
            parts = start + tl.arange(0, block_parts)
            is_part = parts < num_parts
            places = first + parts * (num_kv_heads * block_m)
            maxima = tl.load(maxima_ptr + places, mask=is_part, other=float("-inf"))
            sums = tl.load(sums_ptr + places, mask=is_part, other=0.0)
            mask = is_part[:, None] & (dims < head_dim)[None, :]
            outputs = tl.load(
                outputs_ptr + places[:, None] * head_dim + dims[None, :], mask=mask, other=0.0
            )
            # Where nothing was seen nothing was stored, and 0 x NaN is NaN.
            outputs = tl.where((maxima > float("-inf"))[:, None], outputs, 0.0)
            new_maximum = tl.maximum(maximum, tl.max(maxima, axis=0))
            reference = tl.where(new_maximum > float("-inf"), new_maximum, 0.0)
            decay, weights = tl.exp2(maximum - reference), tl.exp2(maxima - reference)
            output = output * decay + tl.sum(outputs * weights[:, None], axis=0)
            total = total * decay + tl.sum(sums * weights, axis=0)
            maximum = new_maximum
        output = output / tl.where(total > 0.0, total, 1.0)
        num_heads = tl.num_programs(1)
        out_ptrs = out_ptr + (row.to(tl.int64) * num_heads + head) * head_dim + dims
        tl.store(out_ptrs, output.to(out_ptr.dtype.element_ty), mask=dims < head_dim)


def merge_rows(batch: AttentionBatch, work: AttentionWork, out: Tensor) -> None:
    """Store the rows whose parts were left apart.

    Args:
        batch: of the round; what lies behind `query_starts` is nobody's.
        work: one that merges apart, with all parts there.
        out: [T, num_heads x D]; other rows are left as they are.
    """
    layout = work.layout
    _merge_rows_kernel[(len(out), layout.num_heads)](
        batch.query_starts,
        len(batch.context_lens),
        work.rows,
        work.outputs,
        work.maxima,
        work.sums,
        out,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_m=work.block_m,
        block_parts=PARTS_AT_ONCE,
        num_warps=4,
        enable_fp_fusion=False,
        **dependent_launch(out),
    )
