"""One tile of rows against some chunks of its sequence's context: the inner loop of attention.

Tiles of tokens are taken in order, in one loop, so that the next chunk is on its way while one is
added up. Each chunk begins from nothing and is then added to those before it, as if another program
had computed it. Tiles that all rows see whole run without a mask.
Source: online softmax, Dao et al. 2022, arXiv:2205.14135. Its reference is that of
`verify_attention`, whose kernel this is a part of.
"""

import triton
import triton.language as tl

from kernels.gpu.attention_merge import add_part

MAX_TREE_ROWS = tl.constexpr(64)  # bits of an int64


@triton.jit  # type: ignore[untyped-decorator]
def _blocks_of_tile(
    table_ptr: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    block_size: tl.constexpr,
    block_n: tl.constexpr,
) -> tl.tensor:
    """Ids of the blocks of the tokens from `start` on, [block_n], or one if a tile is in one."""
    tokens = start if block_size >= block_n else start + tl.arange(0, block_n)
    return tl.load(table_ptr + tokens // block_size, mask=tokens < end, other=0)


@triton.jit  # type: ignore[untyped-decorator]
def _is_visible(  # noqa: PLR0917  # Triton passes arguments by position
    tokens: tl.tensor,  # [block_n], cache indices
    row_tokens: tl.tensor,  # [block_m], cache indices of the rows themselves
    item_ptr: tl.tensor,
    end: tl.tensor,
    positions_ptr: tl.tensor,  # of the sequence's first row
    tree_bits_ptr: tl.tensor,  # the same
    window: tl.constexpr,
) -> tl.tensor:
    """[block_m, block_n]; rows that are none see what their neighbours see."""
    token_positions = tokens
    row_positions = row_tokens
    is_visible = tokens[None, :] <= row_tokens[:, None]
    if tree_bits_ptr is not None:
        base = tl.load(item_ptr + 6)
        num_rows = tl.load(item_ptr + 7)
        if num_rows <= MAX_TREE_ROWS:
            own = tokens - base
            row = tl.minimum(row_tokens - base, num_rows - 1)
            bits = tl.load(tree_bits_ptr + row)[:, None]
            shifts = tl.minimum(tl.maximum(own, 0), 63).to(tl.int64)[None, :]
            is_ancestor = ((bits >> shifts) & 1) == 1
            is_visible = (own < 0)[None, :] | (is_ancestor & (tokens < end)[None, :])
            if window > 0:
                is_own = (own >= 0) & (tokens < end)
                own_positions = tl.load(positions_ptr + own, mask=is_own, other=0)
                token_positions = tl.where(is_own, own_positions, tokens)
                row_positions = tl.load(positions_ptr + row)
    if window > 0:
        is_visible = is_visible & (token_positions[None, :] > row_positions[:, None] - window)
    return is_visible


@triton.jit  # type: ignore[untyped-decorator]
def _limits(
    item_ptr: tl.tensor,
    is_tree: tl.constexpr,
    window: tl.constexpr,
    block_n: tl.constexpr,
    chunk_len: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """First token to read and the end; all rows see all tokens of [third, fourth) among them."""
    start = tl.load(item_ptr + 3) * chunk_len
    first_token = tl.load(item_ptr + 5)
    last_token = first_token + tl.load(item_ptr + 2) - 1
    end = tl.minimum(tl.load(item_ptr + 4) * chunk_len, last_token + 1)
    seen_from = 0
    seen_to = first_token + 1
    oldest = first_token  # no row's position is before it
    if is_tree:
        oldest = tl.load(item_ptr + 6)
        seen_to = oldest
    if window > 0:
        start = tl.maximum(start, tl.maximum(oldest - window + 1, 0) // block_n * block_n)
        seen_from = last_token - window + 1
    return start, end, seen_from, seen_to


@triton.jit  # type: ignore[untyped-decorator]
def _add_tile(  # Triton passes arguments by position
    scores: tl.tensor,  # [block_m, block_n], -inf: not seen
    values: tl.tensor,  # [block_n, D]
    outputs: tl.tensor,  # [block_m, D]
    maxima: tl.tensor,  # [block_m]
    sums: tl.tensor,  # [block_m]
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Outputs, maxima and sums with one tile more; for a row that sees none of it, the same."""
    new_maxima = tl.maximum(maxima, tl.max(scores, axis=1))
    # Nothing seen so far: any finite number keeps the differences from being NaN.
    reference = tl.where(new_maxima > float("-inf"), new_maxima, 0.0)
    weights = tl.exp2(scores - reference[:, None])
    decay = tl.exp2(maxima - reference)
    sums = sums * decay + tl.sum(weights, axis=1)
    outputs = tl.dot(
        weights.to(values.dtype), values, outputs * decay[:, None], input_precision="ieee"
    )
    return outputs, new_maxima, sums


@triton.jit  # type: ignore[untyped-decorator]
def _places_of_tile(  # noqa: PLR0917  # Triton passes arguments by position
    blocks: tl.tensor,  # of the tile's tokens, as `_blocks_of_tile` gives them, int64
    tile: tl.tensor,
    dims: tl.tensor,
    head: tl.tensor,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    block_n: tl.constexpr,
) -> tl.tensor:
    """Where the keys and the values of a tile's tokens are in the cache: [block_n, D]."""
    lanes = tl.arange(0, block_n)
    slots = (blocks * num_kv_heads + head) * block_size
    if block_size >= block_n:
        # A tile in one block: where it is, and offsets that are the same for all tiles.
        places = lanes[:, None] * head_dim + dims[None, :]
        places += (slots + tile % block_size) * head_dim
    else:
        offsets = (tile + lanes) % block_size
        places = ((slots + offsets) * head_dim)[:, None] + dims[None, :]
    return places


@triton.jit  # type: ignore[untyped-decorator]
def _scores_of_tile(
    queries: tl.tensor,  # [block_m, D]
    keys: tl.tensor,  # [block_n, D]
    score_scale: tl.tensor,
    soft_cap: tl.constexpr,
) -> tl.tensor:
    """Base 2 logits of a tile, [block_m, block_n], as if all of it were seen."""
    zeros = tl.zeros([queries.shape[0], keys.shape[0]], tl.float32)
    scores = tl.dot(queries, tl.trans(keys), zeros, input_precision="ieee") * score_scale
    if soft_cap > 0.0:
        # 2 ** 126 is infinite enough for tanh = 1.
        scores = soft_cap - 2.0 * soft_cap / (tl.exp2(tl.minimum(scores, 126.0)) + 1.0)
    return scores


@triton.jit  # type: ignore[untyped-decorator]
def _nothing_seen(
    block_m: tl.constexpr, head_dim: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Outputs, maxima and sums before the first tile."""
    outputs = tl.zeros([block_m, head_dim], tl.float32)
    return outputs, tl.full([block_m], float("-inf"), tl.float32), tl.zeros([block_m], tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def attend_chunks(  # noqa: PLR0917  # Triton passes arguments by position
    queries: tl.tensor,  # [block_m, D]
    keys_ptr: tl.tensor, values_ptr: tl.tensor,
    table_ptr: tl.tensor,  # of the sequence
    positions_ptr: tl.tensor, tree_bits_ptr: tl.tensor,  # of its first row
    item_ptr: tl.tensor, head: tl.tensor,
    row_tokens: tl.tensor,  # [block_m], cache indices of the rows themselves
    score_scale: tl.tensor, soft_cap: tl.constexpr, window: tl.constexpr,
    num_kv_heads: tl.constexpr, head_dim: tl.constexpr, block_size: tl.constexpr,
    block_n: tl.constexpr, chunk_len: tl.constexpr, holds_segments: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Weighted values [block_m, D], maxima and sums [block_m] of an item, tile after tile.

    An item is one chunk unless `holds_segments`.
    """
    start, end, seen_from, seen_to = _limits(
        item_ptr, tree_bits_ptr is not None, window, block_n, chunk_len
    )
    dims = tl.arange(0, queries.shape[1])
    outputs, maxima, sums = _nothing_seen(queries.shape[0], queries.shape[1])
    all_outputs, all_maxima, all_sums = outputs, maxima, sums
    # Known a tile ahead: a load that waits for another is one that the pipeline cannot keep ahead.
    next_blocks = _blocks_of_tile(table_ptr, start, end, block_size, block_n)
    for tile in range(start, end, block_n):
        tokens = tile + tl.arange(0, block_n)
        blocks = next_blocks.to(tl.int64)
        next_blocks = _blocks_of_tile(table_ptr, tile + block_n, end, block_size, block_n)
        places = _places_of_tile(
            blocks, tile, dims, head, num_kv_heads, head_dim, block_size, block_n
        )
        # What lies behind the context may be anything, and 0 x NaN is NaN.
        mask = (tokens < end)[:, None] & (dims < head_dim)[None, :]
        keys = tl.load(keys_ptr + places, mask=mask, other=0.0)
        values = tl.load(values_ptr + places, mask=mask, other=0.0)
        # Of a cache of 8 bits. In the interpreter of any: it multiplies float32 alone.
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)
        if holds_segments:  # noqa: SIM102  # a constant: the other is not compiled without it
            if (tile % chunk_len == 0) & (tile > start):
                all_outputs, all_maxima, all_sums = add_part(
                    all_outputs, all_maxima, all_sums, outputs, maxima, sums
                )
                outputs, maxima, sums = _nothing_seen(queries.shape[0], queries.shape[1])
        scores = _scores_of_tile(queries, keys, score_scale, soft_cap)
        if (tile + block_n > seen_to) | (tile < seen_from):
            is_visible = _is_visible(
                tokens, row_tokens, item_ptr, end, positions_ptr, tree_bits_ptr, window
            )
            scores = tl.where(is_visible, scores, float("-inf"))
        outputs, maxima, sums = _add_tile(scores, values, outputs, maxima, sums)
    if holds_segments:
        outputs, maxima, sums = add_part(all_outputs, all_maxima, all_sums, outputs, maxima, sums)
    return outputs, maxima, sums
