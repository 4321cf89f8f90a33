"""Attention of ragged spans over a paged cache: prefill, decode and verify rows in one pass.

A row at position p sees the cached tokens 0..p of its own sequence (with a window w, the last w of
them): softmax(q K^T / sqrt(D)) V. Source: Vaswani et al. 2017, arXiv:1706.03762; grouped queries,
Ainslie et al. 2023, arXiv:2305.13245; blocks, Kwon et al. 2023, arXiv:2309.06180.

On the CPU a pass is cut into groups of similar spans. A group is padded to its longest and attended
to in one call, all query heads of a key head packed as further rows; `plan_attention` does what is
the same for every layer once. Measured per layer with 6 query heads, 2 key heads of 64 and 400
tokens of context (one core of an AMD EPYC 9004), at 4 x 1 / 4 x 5 / 16 x 1 / 16 x 5 rows in us:
padded and packed 138 / 248 / 594 / 1,126; padded, grouped heads left to torch 144 / 417 / 606 /
1,681; a call a sequence 262 / 273 / 744 / 1,172; matmul, softmax, matmul 418 / 398 / 1,914 / 2,640.
Gathering keys and values costs 12 us for one sequence and 200 for 16, by whole blocks.

MKL adds up in another order for fewer than 4 rows, and splits a sum over 193 to 383 tokens in the
middle where it otherwise cuts after 192. Padding around both gives a row the same bits alone, in a
batch and in a verify round, and is faster for the rows: 24 us instead of 32 for one decode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from kernels.head_layout import HeadLayout, LayerCache

# A further group costs about 20 us a layer, as much as attending to so many padded (row, token)
# pairs of 6 heads.
GROUP_COST = 1_024
MIN_PACKED_ROWS = 4
ROW_TILE = 32  # torch hands its rows to MKL in multiples of so many, and then the rest
TOKEN_TILE = 512  # and its tokens likewise
UNEVEN_TOKENS = (192, 384)  # between the two, within a tile, MKL splits in the middle


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """Consecutive rows of one sequence."""

    first_row: int  # in the pass
    num_rows: int
    context_len: int  # tokens the last row sees: everything cached, these rows included
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Spans attended to in one call: B sequences of P packed rows over C cached tokens, padded."""

    layout: HeadLayout
    num_sequences: int
    num_rows: int  # R, a sequence
    rows: slice | Tensor  # of the pass, B x R of them; a padding row repeats its span's last
    num_packed: int  # P: R x G, or more where that is less than MIN_PACKED_ROWS
    block_ids: Tensor | None  # [B x blocks] to gather; None: read the cache where it is
    shape: tuple[int, int, int, int]  # B, num_kv_heads, C, D: of keys and of values
    strides: tuple[int, int, int, int]
    offset: int  # elements before the first token
    masks: dict[int | None, Tensor | None]  # a window: [B, 1, P, C] added to the scores


def plan_attention(
    spans: Sequence[AttentionSpan],
    *,
    cache: LayerCache,
    layout: HeadLayout,
    windows: frozenset[int | None],
) -> list[AttentionGroup]:
    """Group the spans of a pass and build index tensors and masks for all its layers.

    Args:
        spans: at least one, each of at least one row.
        cache: any layer's; all are alike.
        layout: of the model's heads.
        windows: those of the model's layers; None sees everything.
    """
    return [_plan_group(group, cache, layout, windows) for group in group_spans(spans)]


def group_spans(spans: Sequence[AttentionSpan]) -> list[list[AttentionSpan]]:
    """Put spans together while that costs less in padding than another call would."""
    if len(spans) == 1:
        return [list(spans)]
    groups: list[list[AttentionSpan]] = []
    cost, longest = 0, 0
    for span in sorted(spans, key=lambda span: (span.num_rows, span.context_len)):
        own = span.num_rows * span.context_len
        longest_with = max(longest, span.context_len)
        joined = (len(groups[-1]) + 1) * span.num_rows * longest_with if groups else 0
        if groups and joined <= cost + own + GROUP_COST:
            groups[-1].append(span)
            cost, longest = joined, longest_with
        else:
            groups.append([span])
            cost, longest = own, span.context_len
    for group in groups:
        group.sort(key=lambda span: span.first_row)
    return groups


def _plan_group(
    spans: list[AttentionSpan],
    cache: LayerCache,
    layout: HeadLayout,
    windows: frozenset[int | None],
) -> AttentionGroup:
    block_size = cache.block_size
    num_rows = max(span.num_rows for span in spans)
    num_tokens = max(span.context_len for span in spans)
    # With one query head a key head a lone row is a vector, and padding it costs more than it is
    # worth: what such a model decodes equals what it verifies up to rounding.
    if layout.group_size > 1:
        num_rows = steady_rows(num_rows, layout.group_size)
        num_tokens = steady_tokens(num_tokens)
    num_blocks = -(-num_tokens // block_size)
    block_ids = _block_ids(spans, num_blocks, block_size)
    first_slot = block_ids[0] * block_size
    is_in_place = (
        len(spans) == 1
        and first_slot + num_tokens <= len(cache.keys)
        and _is_run(spans[0], block_size)
    )
    packed = (
        max(MIN_PACKED_ROWS, layout.group_size)
        if num_rows == 1 < layout.group_size
        else num_rows * layout.group_size
    )
    token_size = layout.num_kv_heads * layout.head_dim
    return AttentionGroup(
        layout=layout,
        num_sequences=len(spans),
        num_rows=num_rows,
        rows=_rows(spans, num_rows),
        num_packed=packed,
        block_ids=None if is_in_place else _int64(block_ids),
        shape=(len(spans), layout.num_kv_heads, num_tokens, layout.head_dim),
        strides=(num_blocks * block_size * token_size, layout.head_dim, token_size, 1),
        offset=first_slot * token_size if is_in_place else 0,
        masks={
            window: _mask(spans, (num_rows, packed // num_rows, num_tokens), window)
            for window in windows
        },
    )


def steady_rows(num_rows: int, group_size: int) -> int:
    """The next number of rows that leaves MKL no rest of 1 to 3; one row is padded otherwise."""
    if num_rows > 1:
        while 0 < num_rows * group_size % ROW_TILE < MIN_PACKED_ROWS:
            num_rows += 1
    return num_rows


def steady_tokens(num_tokens: int) -> int:
    """The next multiple of 16, a vector, over which MKL adds up as over any longer one."""
    num_tokens = -(-num_tokens // 16) * 16
    low, high = UNEVEN_TOKENS
    rest = num_tokens % TOKEN_TILE
    return num_tokens - rest + high if low < rest < high else num_tokens


def _is_run(span: AttentionSpan, block_size: int) -> bool:
    """Whether the blocks in use have consecutive ids."""
    num_blocks = -(-span.context_len // block_size)
    first = span.block_ids[0]
    return list(span.block_ids[:num_blocks]) == list(range(first, first + num_blocks))


def _int64(values: list[int]) -> Tensor:
    """Four times faster than torch.tensor on a list of 400."""
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _rows(spans: list[AttentionSpan], num_rows: int) -> slice | Tensor:
    first = spans[0].first_row
    is_even = all(
        span.num_rows == num_rows and span.first_row == first + index * num_rows
        for index, span in enumerate(spans)
    )
    if is_even:
        return slice(first, first + len(spans) * num_rows)
    rows = range(num_rows)
    return _int64([span.first_row + min(row, span.num_rows - 1) for span in spans for row in rows])


def _block_ids(spans: list[AttentionSpan], num_blocks: int, block_size: int) -> list[int]:
    """All tables one after the other, short ones filled up with any block: padding is masked."""
    block_ids: list[int] = []
    for span in spans:
        own = list(span.block_ids[: -(-span.context_len // block_size)])
        block_ids += own
        block_ids += own[-1:] * (num_blocks - len(own))
    return block_ids


def _mask(
    spans: list[AttentionSpan], sizes: tuple[int, int, int], window: int | None
) -> Tensor | None:
    """0 where a row sees a token, else minus infinity: [B, 1, P, C]. None: all see all.

    `sizes` are rows a sequence, packed rows a row, and tokens.
    """
    num_rows, num_repeats, num_tokens = sizes
    is_full = window is None or window >= num_tokens
    if is_full and num_rows == 1 and all(span.context_len == num_tokens for span in spans):
        return None
    positions = _int64(
        [
            span.context_len - max(span.num_rows - row, 1)
            for span in spans
            for row in range(num_rows)
        ]
    ).view(-1, 1)
    tokens = torch.arange(num_tokens)
    is_seen = tokens <= positions
    if window is not None:
        is_seen &= tokens > positions - window
    mask = torch.where(is_seen, 0.0, float("-inf")).view(len(spans), num_rows, 1, num_tokens)
    return mask.expand(-1, -1, num_repeats, -1).reshape(len(spans), 1, -1, num_tokens)


def paged_attention_reference(
    qkv: Tensor, cache: LayerCache, plan: list[AttentionGroup], window: int | None
) -> Tensor:
    """Attend every row of a pass to its sequence's cached tokens.

    Args:
        qkv: [T, (queries + keys + values) x D] float32, contiguous, in the order of HeadLayout.
        cache: the layer's, with these keys and values written.
        plan: from `plan_attention`, for this pass.
        window: the layer's.

    Returns:
        [T, num_heads x D] float32.
    """
    if len(plan) == 1 and isinstance(plan[0].rows, slice):
        return _attend(qkv, cache, plan[0], window)
    layout = plan[0].layout
    out = qkv.new_empty(len(qkv), layout.num_heads * layout.head_dim)
    for group in plan:
        if isinstance(group.rows, slice):
            out[group.rows] = _attend(qkv[group.rows], cache, group, window)
        else:
            own = qkv.index_select(0, group.rows)
            out.index_copy_(0, group.rows, _attend(own, cache, group, window))
    return out


def _attend(qkv: Tensor, cache: LayerCache, group: AttentionGroup, window: int | None) -> Tensor:
    """The fused rows [B x R, ...] of one group to [B x R, num_heads x D]."""
    keys, values = cache.keys, cache.values
    if group.block_ids is not None:
        keys = cache.key_blocks.index_select(0, group.block_ids)
        values = cache.value_blocks.index_select(0, group.block_ids)
    out = F.scaled_dot_product_attention(
        _packed_queries(qkv, group),
        keys.as_strided(group.shape, group.strides, group.offset),
        values.as_strided(group.shape, group.strides, group.offset),
        attn_mask=group.masks[window],
    ).transpose(1, 2)
    num_real = group.num_rows * group.layout.group_size
    if num_real < group.num_packed:
        out = out.narrow(1, 0, num_real)
    return out.reshape(len(qkv), -1)


def _packed_queries(qkv: Tensor, group: AttentionGroup) -> Tensor:
    """[B, num_kv_heads, P, D]."""
    layout = group.layout
    num_kv_heads, head_dim = layout.num_kv_heads, layout.head_dim
    if group.num_rows == 1:
        # Without a copy. Rows that are missing to P are read from the keys behind the queries.
        return qkv.as_strided(
            (group.num_sequences, num_kv_heads, group.num_packed, head_dim),
            (layout.num_all * head_dim, head_dim, num_kv_heads * head_dim, 1),
            qkv.storage_offset(),
        )
    queries = qkv.narrow(1, 0, layout.num_heads * head_dim)
    packed = queries.reshape(group.num_sequences, group.num_packed, num_kv_heads, head_dim)
    return packed.transpose(1, 2)
