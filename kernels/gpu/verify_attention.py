"""Attention over the paged cache for decode, verify and prefill rows, ragged and mixed.

A row at position p sees the tokens 0..p of its own sequence (with a window w, the last w of them):
out = softmax(cap(q K^T x scale)) V, with cap(x) = c tanh(x / c) if there is a cap c. Rows of a tree
see the tokens before it and their own ancestors. Source: online softmax, Dao et al. 2022,
arXiv:2205.14135; queries of a key head as rows of one product, Ainslie et al. 2023,
arXiv:2305.13245.

For one block_m a row has the same bits whatever other sequences, other rows and padding a round
has, and however many programs run: chunks and tiles begin at absolute positions (`attention_work`),
what a row does not see adds exact zeros, and configurations are a table. So a verified row equals
the same row decoded alone. Another block_m adds up in another order. Products and sums are not
fused (`enable_fp_fusion`): a compiler may fuse them in a tile with a mask and not in one without.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention_chunk import MAX_TREE_ROWS, attend_chunks
from kernels.gpu.attention_merge import is_last_part, merge_parts, merge_rows, store_part
from kernels.gpu.attention_work import (
    ITEM_WORDS,
    SEGMENT_CHUNKS,
    AttentionBatch,
    AttentionWork,
)
from kernels.gpu.dependent_launch import dependent_launch, let_next_start, wait_for_launched
from kernels.head_layout import HeadLayout

INTERPRETED_PROGRAMS = 8
ALIGNMENT_BYTES = 16
LOG2_E = 1 / math.log(2)
FP8 = torch.float8_e4m3fn


class Config(NamedTuple):
    """How a kernel is compiled, and how many programs of it an SM holds."""

    block_n: int  # tokens of a tile
    num_warps: int
    num_stages: int
    programs_per_sm: int


# (block_m, D padded to a power of 2).
CONFIGS = {
    (16, 32): Config(64, 4, 3, 4),
    (16, 64): Config(64, 4, 3, 3),
    (16, 128): Config(64, 4, 3, 2),
    (16, 256): Config(32, 4, 3, 2),
    (32, 32): Config(64, 4, 3, 3),
    (32, 64): Config(64, 4, 3, 2),
    (32, 128): Config(32, 4, 4, 2),
    (32, 256): Config(32, 8, 3, 1),
    (128, 32): Config(64, 8, 3, 1),
    (128, 64): Config(64, 8, 3, 1),
    (128, 128): Config(32, 8, 4, 1),
    (128, 256): Config(32, 8, 2, 1),
}

# Where a cache of 8 bits needs others: converting it takes registers. Chosen by these, not by time.
FP8_CONFIGS = CONFIGS | {
    (128, 128): Config(16, 8, 4, 1),
    (128, 256): Config(16, 8, 3, 1),
}


def verify_attention_reference(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: AttentionBatch,
    layout: HeadLayout,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    tree_bits: Tensor | None = None,
    out: Tensor,
) -> None:
    """The formula, sequence by sequence, in float64; arguments as `verify_attention` takes them."""
    block_size, head_dim = keys.shape[2:]
    queries = qkv.view(len(qkv), -1, head_dim)[:, : layout.num_heads].double()
    starts = batch.query_starts.tolist()
    for sequence, context_len in enumerate(batch.context_lens.tolist()):
        rows = slice(starts[sequence], starts[sequence + 1])
        tokens = torch.arange(context_len, device=qkv.device)
        blocks = batch.block_tables[sequence].long()[tokens // block_size]
        offsets = tokens % block_size
        repeats = (1, layout.group_size, 1)  # query head g x num_kv_heads + k reads key head k
        own_keys = keys[blocks, :, offsets].double().repeat(repeats)  # [C, num_heads, D]
        own_values = values[blocks, :, offsets].double().repeat(repeats)
        scores = torch.einsum("rhd,chd->hrc", queries[rows], own_keys) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        is_visible = _visible_reference(batch.positions[rows], tokens, window, tree_bits, rows)
        weights = scores.masked_fill(~is_visible, -math.inf).softmax(dim=-1)
        result = torch.einsum("hrc,chd->rhd", weights, own_values)
        out[rows] = result.flatten(1).to(out.dtype)


def _visible_reference(
    positions: Tensor, tokens: Tensor, window: int | None, tree_bits: Tensor | None, rows: slice
) -> Tensor:
    """[rows, tokens]: whether a row of one sequence sees a token of its context."""
    num_rows, base = len(positions), len(tokens) - len(positions)
    own = tokens - base  # among the rows, from 0
    is_visible = own <= torch.arange(num_rows, device=tokens.device)[:, None]
    token_positions = tokens
    if tree_bits is not None and num_rows <= MAX_TREE_ROWS.value:
        bits = tree_bits[rows, None] >> own.clamp(min=0) & 1
        is_visible = (own < 0) | (bits == 1)
        token_positions = torch.cat([tokens[:base], positions])
    if window is not None:
        is_visible = is_visible & (token_positions > positions[:, None] - window)
    return is_visible


@triton.jit(do_not_specialize=["max_blocks", "max_items"])  # type: ignore[untyped-decorator]
def _verify_attention_kernel(  # noqa: PLR0917  # Triton passes arguments by position
    qkv_ptr: tl.tensor,  # [T, num_all x D]
    keys_ptr: tl.tensor, values_ptr: tl.tensor,  # [num_blocks, num_kv_heads, block_size, D]
    block_tables_ptr: tl.tensor, max_blocks: tl.tensor,  # [S, max_blocks] int32
    positions_ptr: tl.tensor,  # [T] int32
    tree_bits_ptr: tl.tensor,  # [T] int64, or None
    items_ptr: tl.tensor, max_items: tl.tensor,  # [max_items, ITEM_WORDS] int32
    num_items_ptr: tl.tensor,  # [1] int32
    counters_ptr: tl.tensor,  # [2, max_items, num_kv_heads] int32
    outputs_ptr: tl.tensor,  # [max_items, num_kv_heads, block_m, D] float32
    maxima_ptr: tl.tensor, sums_ptr: tl.tensor,  # [max_items, num_kv_heads, block_m] float32
    out_ptr: tl.tensor,  # [T, num_heads x D]
    score_scale: tl.tensor,
    soft_cap: tl.constexpr,  # of base 2 logits; 0.0: none
    window: tl.constexpr,  # 0: none
    num_kv_heads: tl.constexpr, group_size: tl.constexpr, head_dim: tl.constexpr,
    block_size: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    chunk_len: tl.constexpr, merges_apart: tl.constexpr,
    is_interpreted: tl.constexpr, is_dependent: tl.constexpr,
) -> None:  # fmt: skip
    wait_for_launched(is_dependent)
    packed = tl.arange(0, block_m)  # row of the tile x G + query head of the group
    dims = tl.arange(0, triton.next_power_of_2(head_dim))[None, :]
    num_work = tl.load(num_items_ptr) * num_kv_heads
    program = tl.program_id(0)
    for first in range(0, num_work, tl.num_programs(0)):
        index = first + program
        # Items become shorter and shorter: who had a long one gets a short one next.
        program = tl.num_programs(0) - 1 - program
        if index < num_work:
            head = index % num_kv_heads
            item_ptr = items_ptr + index // num_kv_heads * ITEM_WORDS
            tile_row = tl.load(item_ptr + 1)
            first_token = tl.load(item_ptr + 5)
            first_row = tile_row - first_token + tl.load(item_ptr + 6)  # of the sequence
            num_packed = tl.load(item_ptr + 2) * group_size
            mask = (packed < num_packed)[:, None] & (dims < head_dim)
            rows = (tile_row + packed // group_size).to(tl.int64)
            heads = packed % group_size * num_kv_heads + head
            places = (rows * ((group_size + 2) * num_kv_heads) + heads)[:, None] * head_dim + dims
            queries = tl.load(qkv_ptr + places, mask=mask, other=0.0)
            bits_ptr = tree_bits_ptr if tree_bits_ptr is None else tree_bits_ptr + first_row
            part = attend_chunks(
                queries.to(tl.float32) if is_interpreted else queries, keys_ptr, values_ptr,
                block_tables_ptr + tl.load(item_ptr) * max_blocks, positions_ptr + first_row,
                bits_ptr, item_ptr, head, first_token + packed // group_size, score_scale,
                soft_cap, window, num_kv_heads, head_dim, block_size, block_n, chunk_len,
                not merges_apart,
            )  # fmt: skip
            out_ptrs = out_ptr + (rows * (group_size * num_kv_heads) + heads)[:, None] * head_dim
            _finish_item(
                item_ptr, head, max_items, counters_ptr, outputs_ptr, maxima_ptr, sums_ptr,
                part[0], part[1], part[2], out_ptrs + dims, mask, num_packed,
                num_kv_heads, head_dim, merges_apart,
            )  # fmt: skip
    let_next_start(is_dependent)


@triton.jit  # type: ignore[untyped-decorator]
def _finish_item(  # noqa: PLR0917  # Triton passes arguments by position
    item_ptr: tl.tensor, head: tl.tensor, max_items: tl.tensor,
    counters_ptr: tl.tensor, outputs_ptr: tl.tensor, maxima_ptr: tl.tensor, sums_ptr: tl.tensor,
    outputs: tl.tensor,  # [block_m, D]
    maxima: tl.tensor, sums: tl.tensor,  # [block_m]
    out_ptrs: tl.tensor, mask: tl.tensor,  # [block_m, D]
    num_packed: tl.tensor, num_kv_heads: tl.constexpr, head_dim: tl.constexpr,
    merges_apart: tl.constexpr,
) -> None:  # fmt: skip
    """Store the rows of an item that is all of its tile; else its part, and merge the last one."""
    first_chunk = tl.load(item_ptr + 3)
    block_m: tl.constexpr = outputs.shape[0]
    if tl.load(item_ptr + 4) - first_chunk == tl.load(item_ptr + 9):
        _store_rows(out_ptrs, outputs, sums, mask)
    elif merges_apart:
        place = (tl.load(item_ptr + 8) + first_chunk).to(tl.int64)
        store_part(
            outputs_ptr, maxima_ptr, sums_ptr, (place * num_kv_heads + head) * block_m,
            outputs, maxima, sums, num_packed, head_dim,
        )  # fmt: skip
    else:
        place, step, num_parts = _finish_part(
            item_ptr, head, max_items, counters_ptr, outputs_ptr, maxima_ptr, sums_ptr,
            outputs, maxima, sums, num_packed, num_kv_heads, head_dim,
        )  # fmt: skip
        if num_parts > 0:
            outputs, maxima, sums = merge_parts(
                outputs_ptr, maxima_ptr, sums_ptr, place, step, num_parts, num_packed,
                block_m, head_dim,
            )  # fmt: skip
            _store_rows(out_ptrs, outputs, sums, mask)


@triton.jit  # type: ignore[untyped-decorator]
def _store_rows(
    out_ptrs: tl.tensor,  # [block_m, D]
    outputs: tl.tensor,  # [block_m, D]
    sums: tl.tensor,  # [block_m], 0 for rows that are none
    mask: tl.tensor,  # [block_m, D]
) -> None:
    outputs = outputs / tl.where(sums > 0.0, sums, 1.0)[:, None]
    tl.store(out_ptrs, outputs.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _finish_part(  # noqa: PLR0917  # Triton passes arguments by position
    item_ptr: tl.tensor,
    head: tl.tensor,
    max_items: tl.tensor,
    counters_ptr: tl.tensor,
    outputs_ptr: tl.tensor,
    maxima_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    outputs: tl.tensor,  # [block_m, D]
    maxima: tl.tensor,  # [block_m]
    sums: tl.tensor,  # [block_m]
    num_packed: tl.tensor,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Store an item's part, and merge the chunks of its segment if they are all there.

    Returns:
        Row of the first part among all, rows from part to part, and number of parts that are left
        to be merged to the tile's result; 0 parts if another program is still to come.
    """
    block_m: tl.constexpr = outputs.shape[0]
    first_chunk = tl.load(item_ptr + 3)
    tile_place = tl.load(item_ptr + 8)
    tile_chunks = tl.load(item_ptr + 9)
    step = tl.load(item_ptr + 10)
    segment_items = SEGMENT_CHUNKS // step  # places from segment to segment
    segment = first_chunk // SEGMENT_CHUNKS
    num_segments = (tile_chunks + SEGMENT_CHUNKS - 1) // SEGMENT_CHUNKS
    segment_place = tile_place + segment * segment_items
    num_chunks = tl.minimum(SEGMENT_CHUNKS, tile_chunks - segment * SEGMENT_CHUNKS)
    num_parts = (num_chunks + step - 1) // step  # of this segment
    part_rows = tl.full([], num_kv_heads * block_m, tl.int64)  # from place to place
    own_row = (tile_place + first_chunk // step) * part_rows + head * block_m
    segment_row = segment_place * part_rows + head * block_m
    store_part(
        outputs_ptr, maxima_ptr, sums_ptr, own_row, outputs, maxima, sums, num_packed, head_dim
    )
    row, rows, left = segment_row, part_rows, num_parts
    is_done = num_parts == 1
    if num_parts > 1:
        is_done = is_last_part(counters_ptr + segment_place * num_kv_heads + head, num_parts)
    if num_segments > 1:
        if is_done:
            if num_parts > 1:
                outputs, maxima, sums = merge_parts(
                    outputs_ptr, maxima_ptr, sums_ptr, segment_row, part_rows, num_parts,
                    num_packed, block_m, head_dim,
                )  # fmt: skip
                tl.debug_barrier()  # all threads have read what is now replaced
                store_part(
                    outputs_ptr, maxima_ptr, sums_ptr, segment_row, outputs, maxima, sums,
                    num_packed, head_dim,
                )  # fmt: skip
            counter_ptr = counters_ptr + (max_items + tile_place) * num_kv_heads + head
            is_done = is_last_part(counter_ptr, num_segments)
        row = tile_place * part_rows + head * block_m
        rows, left = segment_items * part_rows, num_segments
    return row, rows, tl.where(is_done, left, 0)


def verify_attention(  # noqa: PLR0917  # three tensors and what tells how to read them
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: AttentionBatch,
    work: AttentionWork,
    layout: HeadLayout,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    tree_bits: Tensor | None = None,
    out: Tensor,
    num_programs: int | None = None,
    config: Config | None = None,
) -> None:
    """Attend every row of a round to its sequence's cached tokens, without a host sync.

    Args:
        qkv: [T, num_all x D] bf16, float16 or float32, contiguous; only the queries are read,
            rotated.
        keys: [num_blocks, num_kv_heads, block_size, D] of the same dtype or e4m3, contiguous,
            with the rows' own keys; block_size a power of 2 from 16 to 256.
        values: the same.
        batch: of this round.
        work: `plan_attention_work` has run for this batch; the partial results are overwritten.
        layout: of the rows; D 32, 64, 96, 128 or 256, G at most 16.
        scale: of the products, before the cap.
        window: tokens that a row sees, itself included; None sees everything.
        soft_cap: bound on the logits; None or 0 for no bound.
        tree_bits: [T] int64, or None for chains. Row r of at most 64 of a sequence sees, of these,
            the rows j whose bit j is set, itself too and none after it; its position is between
            the first row's cache index and its own. Sequences of more rows are chains.
        out: [T, num_heads x D]; the rows of nobody are left as they are.
        num_programs: running side by side; None for as many as the GPU holds.
        config: None for the one in the tables, with whose bits another's need not agree.
    """
    configs = FP8_CONFIGS if keys.dtype == FP8 else CONFIGS
    config = config or configs[work.block_m, triton.next_power_of_2(layout.head_dim)]
    assert work.layout == layout
    assert work.chunk_len % config.block_n == 0
    _check_tensors(qkv, keys, values, work, out)
    num_programs = num_programs or _num_resident(qkv.device, config.programs_per_sm)
    soft_cap = soft_cap or 0.0
    _verify_attention_kernel[(num_programs,)](
        qkv, keys, values, batch.block_tables, batch.block_tables.stride(0), batch.positions,
        tree_bits, work.items, len(work.items), work.num_items, work.counters,
        work.outputs, work.maxima, work.sums, out,
        score_scale=scale * (2 / soft_cap if soft_cap else 1.0) * LOG2_E,
        soft_cap=soft_cap * LOG2_E, window=window or 0,
        block_size=keys.shape[2], is_interpreted=not qkv.is_cuda, **_constants(work, config),
        **dependent_launch(qkv),
    )  # fmt: skip
    if work.merges_apart:
        merge_rows(batch, work, out)


def _constants(work: AttentionWork, config: Config) -> dict[str, Any]:
    """What the kernel is compiled for, besides the cache."""
    layout = work.layout
    return {
        "num_kv_heads": layout.num_kv_heads,
        "group_size": layout.group_size,
        "head_dim": layout.head_dim,
        "block_m": work.block_m,
        "block_n": config.block_n,
        "chunk_len": work.chunk_len,
        "merges_apart": work.merges_apart,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": False,
    }


def _check_tensors(
    qkv: Tensor, keys: Tensor, values: Tensor, work: AttentionWork, out: Tensor
) -> None:
    num_rows, layout, head_dim = len(qkv), work.layout, work.layout.head_dim
    assert num_rows <= work.max_rows
    assert qkv.shape == (num_rows, layout.num_all * head_dim)
    assert out.shape == (num_rows, layout.num_heads * head_dim)
    assert keys.dtype == values.dtype
    assert keys.dtype in {qkv.dtype, FP8}
    assert keys.shape == values.shape
    assert (keys.shape[1], keys.shape[3]) == (layout.num_kv_heads, head_dim)
    for tensor in (qkv, keys, values, out):
        assert tensor.is_contiguous()
        # Triton compiles another program, with narrow loads, for what is not aligned.
        assert tensor.data_ptr() % ALIGNMENT_BYTES == 0


@functools.cache
def _num_resident(device: torch.device, programs_per_sm: int) -> int:
    """How many programs run side by side."""
    if device.type == "cpu":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count * programs_per_sm
