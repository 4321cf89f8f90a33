"""Attention of ragged spans over a paged cache: prefill, decode and verify rows in one pass.

A row at position p sees the cached tokens 0..p of its own sequence (with a window w, the last w of
them): softmax(q K^T / sqrt(D)) V. Source: Vaswani et al. 2017, arXiv:1706.03762; grouped queries,
Ainslie et al. 2023, arXiv:2305.13245; blocks, Kwon et al. 2023, arXiv:2309.06180.

On the CPU a pass is cut into groups of similar spans. A group is padded to its longest and attended
to in one call, all query heads of a key head packed as further rows; `plan_attention` does what is
the same for every layer once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

# A further group costs about 20 us a layer, as much as attending to so many padded (row, token)
# pairs of 6 heads (one core of an AMD EPYC 9004).
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
    num_rows: int
    num_tokens: int
    rows: slice | Tensor  # of the pass, B x R of them; a padding row repeats its span's last
    slots: slice | Tensor  # cache slots of the one sequence, or block ids [B x blocks]
    masks: dict[int | None, Tensor | None]  # a window: [B, 1, G x R, C] added to the scores


def plan_attention(
    spans: Sequence[AttentionSpan],
    *,
    block_size: int,
    group_size: int,
    windows: frozenset[int | None],
) -> list[AttentionGroup]:
    """Group the spans of a pass and build index tensors and masks for all its layers.

    Args:
        spans: at least one, each of at least one row.
        block_size: tokens a cache block holds.
        group_size: query heads a key head.
        windows: those of the model's layers; None sees everything.
    """
    return [_plan_group(members, block_size, group_size, windows) for members in group_spans(spans)]


def group_spans(spans: Sequence[AttentionSpan]) -> list[list[AttentionSpan]]:
    """Put spans together while that costs less padding than another call would."""
    ordered = sorted(spans, key=lambda span: (span.num_rows, span.context_len))
    groups: list[list[AttentionSpan]] = []
    cost = 0
    longest = 0
    for span in ordered:
        own = span.num_rows * span.context_len
        longest_with = max(longest, span.context_len)
        joined = (len(groups[-1]) + 1 if groups else 1) * span.num_rows * longest_with
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
    group_size: int,
    windows: frozenset[int | None],
) -> AttentionGroup:
    num_rows = max(span.num_rows for span in spans)
    context_len = max(span.context_len for span in spans)
    num_blocks = -(-context_len // block_size)
    slots = _slots(spans, num_blocks, block_size)
    is_exact = len(spans) == 1
    num_tokens = context_len if is_exact else num_blocks * block_size
    masks: dict[int | None, Tensor | None] = {}
    for window in windows:
        sees_all = is_exact and num_rows == 1 and (window is None or window >= context_len)
        masks[window] = None if sees_all else _mask(spans, num_rows, num_tokens, window, group_size)
    return AttentionGroup(
        num_sequences=len(spans),
        num_rows=num_rows,
        num_tokens=num_tokens,
        rows=_rows(spans, num_rows),
        slots=slots,
        masks=masks,
    )


def _rows(spans: list[AttentionSpan], num_rows: int) -> slice | Tensor:
    first = spans[0].first_row
    if all(
        span.num_rows == num_rows and span.first_row == first + index * num_rows
        for index, span in enumerate(spans)
    ):
        return slice(first, first + len(spans) * num_rows)
    return torch.tensor(
        [span.first_row + min(row, span.num_rows - 1) for span in spans for row in range(num_rows)]
    )


def _slots(spans: list[AttentionSpan], num_blocks: int, block_size: int) -> slice | Tensor:
    block_ids: list[int] = []
    for span in spans:
        own = list(span.block_ids[: -(-span.context_len // block_size)])
        block_ids += own + own[-1:] * (
            num_blocks - len(own)
        )  # padding is masked; any block will do
    first = block_ids[0]
    if len(spans) == 1 and block_ids == list(range(first, first + num_blocks)):
        return slice(first * block_size, first * block_size + spans[0].context_len)
    return torch.tensor(block_ids)


def _mask(
    spans: list[AttentionSpan],
    num_rows: int,
    num_tokens: int,
    window: int | None,
    group_size: int,
) -> Tensor:
    first_positions = torch.tensor([span.context_len - span.num_rows for span in spans])
    last_positions = torch.tensor([span.context_len - 1 for span in spans])
    positions = first_positions.unsqueeze(1) + torch.arange(num_rows)
    positions = positions.minimum(last_positions.unsqueeze(1)).unsqueeze(2)  # [B, R, 1]
    tokens = torch.arange(num_tokens)
    is_seen = tokens <= positions
    if window is not None:
        is_seen &= tokens > positions - window
    mask = torch.where(is_seen, 0.0, float("-inf")).unsqueeze(2)  # [B, R, 1, C]
    return mask.expand(-1, -1, group_size, -1).reshape(len(spans), 1, -1, num_tokens)


def paged_attention_reference(
    queries: Tensor, keys: Tensor, values: Tensor, plan: list[AttentionGroup], window: int | None
) -> Tensor:
    """Attend every row of a pass to its sequence's cached tokens.

    Args:
        queries: [T, G x num_kv_heads, D] float32; head g x num_kv_heads + k reads key head k.
        keys: [num_blocks, block_size, num_kv_heads, D] float32, the layer's cache.
        values: the same.
        plan: from `plan_attention`, for this pass.
        window: the layer's.

    Returns:
        [T, G x num_kv_heads x D] float32, heads in the order of `queries`.
    """
    if len(plan) == 1 and isinstance(plan[0].rows, slice):
        return _attend(queries, keys, values, plan[0], window)
    out = queries.new_empty(len(queries), queries.shape[1] * queries.shape[2])
    for group in plan:
        if isinstance(group.rows, slice):
            out[group.rows] = _attend(queries[group.rows], keys, values, group, window)
        else:
            own = queries.index_select(0, group.rows)
            out.index_copy_(0, group.rows, _attend(own, keys, values, group, window))
    return out


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, group: AttentionGroup, window: int | None
) -> Tensor:
    """`queries` [B x R, heads, D] of one group to [B x R, heads x D]."""
    num_sequences, num_kv_heads, head_dim = group.num_sequences, keys.shape[2], keys.shape[3]
    packed = queries.reshape(num_sequences, -1, num_kv_heads, head_dim).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        packed,
        _cached(keys, group).transpose(1, 2),
        _cached(values, group).transpose(1, 2),
        attn_mask=group.masks[window],
    )
    return out.transpose(1, 2).reshape(len(queries), -1)


def _cached(cache: Tensor, group: AttentionGroup) -> Tensor:
    """A group's cached tokens: [B, C, num_kv_heads, D], without a copy where they lie in a row."""
    num_blocks, block_size, num_kv_heads, head_dim = cache.shape
    if isinstance(group.slots, slice):
        return cache.view(1, num_blocks * block_size, num_kv_heads, head_dim)[:, group.slots]
    blocks = cache.view(num_blocks, -1).index_select(0, group.slots)
    tokens = blocks.view(group.num_sequences, -1, num_kv_heads, head_dim)
    return tokens.narrow(1, 0, group.num_tokens)
