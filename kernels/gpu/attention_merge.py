"""Merges what attention over the chunks of a context left, in the order of the chunks.

With a_c the weighted values of chunk c, l_c the sum of its weights and m_c its largest logit (base
2), all of one row: out = sum_c a_c 2^(m_c - m) / sum_c l_c 2^(m_c - m), m = max_c m_c.
Source: Milakov and Gimelshein 2018, arXiv:1805.02867; for split contexts Dao et al. 2023.

A chunk in which a row saw nothing (m_c = -inf) counts exactly 0, whatever its outputs hold. So a
row has the same bits whether such chunks are listed or not, and the same as if its only other chunk
had been written directly.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_work import ROW_WORDS, AttentionWork

MERGED_AT_ONCE = tl.constexpr(32)  # chunks: 32 loads under way a thread at D 128
NUM_WARPS = 4


def attention_merge_reference(work: AttentionWork, out: Tensor) -> None:
    """Fill the rows of `out` [T, num_heads x D] that have more than one chunk."""
    layout = work.layout
    heads = out.view(len(out), layout.group_size, layout.num_kv_heads, layout.head_dim)
    for row, (first, tile_row, num_chunks) in enumerate(work.rows[: len(out)].tolist()):
        if num_chunks < 2:  # noqa: PLR2004  # written directly, or nobody's
            continue
        chunks = slice(first, first + num_chunks)
        packed = slice(tile_row * layout.group_size, (tile_row + 1) * layout.group_size)
        maxima = work.maxima[chunks, :, packed]  # [num_chunks, num_kv_heads, G]
        weights = torch.exp2(maxima - maxima.amax(dim=0))
        seen = work.outputs[chunks, :, packed].masked_fill(weights.unsqueeze(-1) == 0, 0)
        sums = work.sums[chunks, :, packed].masked_fill(weights == 0, 0)
        merged = (seen * weights.unsqueeze(-1)).sum(dim=0)
        merged /= (sums * weights).sum(dim=0).unsqueeze(-1)
        heads[row] = merged.transpose(0, 1).to(out.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _attention_merge_kernel(  # noqa: PLR0917  # Triton passes arguments by position
    outputs_ptr: tl.tensor,  # [max_items, num_kv_heads, block_m, D] float32
    maxima_ptr: tl.tensor,  # [max_items, num_kv_heads, block_m] float32
    sums_ptr: tl.tensor,  # the same
    rows_ptr: tl.tensor,  # [max_rows, ROW_WORDS] int32
    out_ptr: tl.tensor,  # [T, num_heads x D]
    num_kv_heads: tl.constexpr,
    group_size: tl.constexpr,
    block_m: tl.constexpr,
    head_dim: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first_item = tl.load(rows_ptr + row * ROW_WORDS)
    tile_row = tl.load(rows_ptr + row * ROW_WORDS + 1)
    num_chunks = tl.load(rows_ptr + row * ROW_WORDS + 2)
    if num_chunks > 1:
        dims = tl.arange(0, triton.next_power_of_2(head_dim))
        is_dim = dims < head_dim
        # [item, key head, packed row] of chunk 0
        packed_row = tile_row * group_size + head // num_kv_heads
        first_place = (first_item.to(tl.int64) * num_kv_heads + head % num_kv_heads) * block_m
        first_place += packed_row
        maximum = tl.full([], float("-inf"), tl.float32)
        total = tl.zeros([], tl.float32)
        merged = tl.zeros_like(dims).to(tl.float32)
        for first_chunk in range(0, num_chunks, MERGED_AT_ONCE):
            chunks = first_chunk + tl.arange(0, MERGED_AT_ONCE)
            places = first_place + chunks.to(tl.int64) * (num_kv_heads * block_m)
            is_chunk = chunks < num_chunks
            maxima = tl.load(maxima_ptr + places, mask=is_chunk, other=float("-inf"))
            is_seen = maxima > float("-inf")
            sums = tl.load(sums_ptr + places, mask=is_seen, other=0.0)
            outputs = tl.load(
                outputs_ptr + places[:, None] * head_dim + dims[None, :],
                mask=is_seen[:, None] & is_dim[None, :],
                other=0.0,
            )
            new_maximum = tl.maximum(maximum, tl.max(maxima))
            # Nothing seen so far: any finite number keeps the differences from being NaN.
            reference = tl.where(new_maximum > float("-inf"), new_maximum, 0.0)
            weights = tl.exp2(maxima - reference)
            decay = tl.exp2(maximum - reference)
            total = total * decay + tl.sum(sums * weights)
            merged = merged * decay + tl.sum(outputs * weights[:, None], axis=0)
            maximum = new_maximum
        out_ptrs = out_ptr + (row * (num_kv_heads * group_size) + head) * head_dim + dims
        tl.store(out_ptrs, (merged / total).to(out_ptr.dtype.element_ty), mask=is_dim)


def attention_merge(work: AttentionWork, out: Tensor) -> None:
    """Merge the partial results of a round's attention into its rows, without a host sync.

    Args:
        work: as attention over these rows left it.
        out: [T, num_heads x D], contiguous. Rows of one chunk and rows of nobody stay as they are.
    """
    layout = work.layout
    assert out.is_contiguous()
    assert len(out) <= len(work.rows)
    _attention_merge_kernel[(len(out), layout.num_heads)](
        work.outputs,
        work.maxima,
        work.sums,
        work.rows,
        out,
        num_kv_heads=layout.num_kv_heads,
        group_size=layout.group_size,
        block_m=work.block_m,
        head_dim=layout.head_dim,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
