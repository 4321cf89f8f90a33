"""How a ragged pass is cut into padded batches for paged attention, once for all layers.

Spans of similar rows and context form a group, which is padded to its longest and attended to in
one call, all query heads of a key head packed as further rows. Measured per layer in us, with 6
query heads, 2 key heads of 64 and 400 tokens of context (one core of an AMD EPYC 9004):

    sequences x rows              4 x 1   4 x 5   16 x 1   16 x 5
    padded and packed               138     248      594    1,126
    padded, not packed              144     417      606    1,681
    a call a sequence               262     273      744    1,172
    matmul, softmax, matmul         418     398    1,914    2,640

MKL adds up in another order for fewer than 4 rows, and splits a sum over 193 to 383 tokens in the
middle where it otherwise cuts after 192. Padding around both gives a row the same bits alone, in a
batch and in a verify round. 4 rows are also faster than 3: 24 us instead of 32 for one decode, 342
instead of 515 for 16. Other matrix libraries may add up in other tiles: then rows agree up to
rounding, as they would without the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.head_layout import HeadLayout, LayerCache

# A further group costs about 20 us a layer, as much as attending to so many padded (row, token)
# pairs of 6 heads.
GROUP_COST = 1_024
# Beyond a few megabytes of gathered keys and values, memory from the system costs more than another
# call: a pass of 16 x 1 rows at 400 tokens took 19.7 ms in one group, 12.8 in two.
MAX_GROUP_TOKENS = 4_096
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
        num_tokens = steady_tokens(span.context_len)
        own = span.num_rows * num_tokens
        longest_with = max(longest, num_tokens)
        tokens_with = (len(groups[-1]) + 1) * longest_with if groups else 0
        joined = tokens_with * span.num_rows
        is_worth_it = joined <= cost + own + GROUP_COST and tokens_with <= MAX_GROUP_TOKENS
        if groups and is_worth_it:
            groups[-1].append(span)
            cost, longest = joined, longest_with
        else:
            groups.append([span])
            cost, longest = own, num_tokens
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
