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


@dataclass(frozen=True, slots=True)
class AttentionSpan:
    """Consecutive rows of one sequence."""

    first_row: int  # in the pass
    num_rows: int
    context_len: int  # tokens the last row sees: everything cached, these rows included
    block_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Spans attended to in one call: B sequences of R rows over C cached tokens each, padded."""

    num_sequences: int
    rows: slice | Tensor  # of the pass, B x R of them; a padding row repeats its span's last
    block_ids: Tensor | None  # [B x blocks] to gather; None: read the cache where it is
    shape: tuple[int, int, int, int]  # B, num_kv_heads, C, D: of keys and of values
    strides: tuple[int, int, int, int]
    offset: int  # elements before the first token
    masks: dict[int | None, Tensor | None]  # a window: [B, 1, R x G, C] added to the scores


def plan_attention(
    spans: Sequence[AttentionSpan],
    *,
    block_size: int,
    layout: HeadLayout,
    windows: frozenset[int | None],
) -> list[AttentionGroup]:
    """Group the spans of a pass and build index tensors and masks for all its layers.

    Args:
        spans: at least one, each of at least one row.
        block_size: tokens a cache block holds.
        layout: of the model's heads.
        windows: those of the model's layers; None sees everything.
    """
    return [_plan_group(group, block_size, layout, windows) for group in group_spans(spans)]


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
    block_size: int,
    layout: HeadLayout,
    windows: frozenset[int | None],
) -> AttentionGroup:
    num_rows = max(span.num_rows for span in spans)
    context_len = max(span.context_len for span in spans)
    num_blocks = -(-context_len // block_size)
    block_ids = _block_ids(spans, num_blocks, block_size)
    is_alone = len(spans) == 1
    is_in_place = is_alone and block_ids == list(range(block_ids[0], block_ids[0] + num_blocks))
    num_tokens = context_len if is_alone else num_blocks * block_size
    masks: dict[int | None, Tensor | None] = {}
    for window in windows:
        sees_all = is_alone and num_rows == 1 and (window is None or window >= context_len)
        masks[window] = None if sees_all else _mask(spans, (num_rows, num_tokens), window, layout)
    token_size = layout.num_kv_heads * layout.head_dim
    return AttentionGroup(
        num_sequences=len(spans),
        rows=_rows(spans, num_rows),
        block_ids=None if is_in_place else _int64(block_ids),
        shape=(len(spans), layout.num_kv_heads, num_tokens, layout.head_dim),
        strides=(num_blocks * block_size * token_size, layout.head_dim, token_size, 1),
        offset=block_ids[0] * block_size * token_size if is_in_place else 0,
        masks=masks,
    )


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
    spans: list[AttentionSpan],
    rows_and_tokens: tuple[int, int],
    window: int | None,
    layout: HeadLayout,
) -> Tensor:
    """0 where a row sees a token, else minus infinity: [B, 1, R x G, C]."""
    num_rows, num_tokens = rows_and_tokens
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
    return mask.expand(-1, -1, layout.group_size, -1).reshape(len(spans), 1, -1, num_tokens)


def paged_attention_reference(
    queries: Tensor, cache: LayerCache, plan: list[AttentionGroup], window: int | None
) -> Tensor:
    """Attend every row of a pass to its sequence's cached tokens.

    Args:
        queries: [T, num_heads, D] float32, heads in the order of HeadLayout.
        cache: the layer's.
        plan: from `plan_attention`, for this pass.
        window: the layer's.

    Returns:
        [T, num_heads x D] float32.
    """
    if len(plan) == 1 and isinstance(plan[0].rows, slice):
        return _attend(queries, cache, plan[0], window)
    out = queries.new_empty(len(queries), queries.shape[1] * queries.shape[2])
    for group in plan:
        if isinstance(group.rows, slice):
            out[group.rows] = _attend(queries[group.rows], cache, group, window)
        else:
            own = queries.index_select(0, group.rows)
            out.index_copy_(0, group.rows, _attend(own, cache, group, window))
    return out


def _attend(
    queries: Tensor, cache: LayerCache, group: AttentionGroup, window: int | None
) -> Tensor:
    """`queries` [B x R, num_heads, D] of one group to [B x R, num_heads x D]."""
    keys, values = cache.keys, cache.values
    if group.block_ids is not None:
        keys = cache.key_blocks.index_select(0, group.block_ids)
        values = cache.value_blocks.index_select(0, group.block_ids)
    num_sequences, num_kv_heads, _, head_dim = group.shape
    out = F.scaled_dot_product_attention(
        queries.reshape(num_sequences, -1, num_kv_heads, head_dim).transpose(1, 2),
        keys.as_strided(group.shape, group.strides, group.offset),
        values.as_strided(group.shape, group.strides, group.offset),
        attn_mask=group.masks[window],
    )
    return out.transpose(1, 2).reshape(len(queries), -1)
