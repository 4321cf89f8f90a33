"""Paged attention against the formula, row by row."""

import math
import random

import pytest
import torch
from torch import Tensor

from kernels.head_layout import HeadLayout, LayerCache
from kernels.paged_attention import (
    AttentionSpan,
    group_spans,
    paged_attention_reference,
    plan_attention,
)

NUM_BLOCKS = 300
SHAPES = {
    "one-decode": [(1, 17)],
    "one-verify": [(5, 63)],
    "one-prefill": [(63, 63)],
    "even-decodes": [(1, 30), (1, 31), (1, 33), (1, 30)],
    "even-verifies": [(5, 30), (5, 31), (5, 33)],
    "uneven-verifies": [(5, 60), (3, 61), (4, 60), (1, 60)],
    "everything": [(1, 1), (40, 40), (1, 200), (5, 20), (1, 7), (17, 90), (2, 2), (1, 1009)],
}


def make_spans(shapes: list[tuple[int, int]], block_size: int) -> list[AttentionSpan]:
    """Spans of (rows, context), one after the other, over disjoint shuffled blocks."""
    ids = list(range(NUM_BLOCKS * 16 // block_size))
    random.Random(1).shuffle(ids)
    spans, first_row = [], 0
    for num_rows, context_len in shapes:
        table = [ids.pop() for _ in range(-(-context_len // block_size))]
        spans.append(AttentionSpan(first_row, num_rows, context_len, table))
        first_row += num_rows
    return spans


def filled_cache(layout: HeadLayout, block_size: int) -> LayerCache:
    """Random keys and values in every slot."""
    cache = LayerCache.allocate(NUM_BLOCKS * 16 // block_size, block_size, layout)
    for part in (cache.keys, cache.values):
        part.normal_()
    return cache


def expected_rows(
    queries: Tensor, cache: LayerCache, spans: list[AttentionSpan], window: int | None
) -> Tensor:
    """One row and one head at a time."""
    block_size = cache.keys.shape[0] // cache.key_blocks.shape[0]
    rows = []
    for span in spans:
        slots = [block * block_size + i for block in span.block_ids for i in range(block_size)]
        for row in range(span.num_rows):
            end = span.context_len - span.num_rows + row + 1
            seen = slots[max(0, end - window) if window else 0 : end]
            heads = []
            for head in range(queries.shape[1]):
                kv_head = head % cache.keys.shape[1]
                keys, values = cache.keys[seen, kv_head], cache.values[seen, kv_head]
                scores = keys @ queries[span.first_row + row, head] / math.sqrt(keys.shape[1])
                heads.append(scores.softmax(0) @ values)
            rows.append(torch.cat(heads))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 16], ids=["full", "window"])
@pytest.mark.parametrize("block_size", [1, 5, 16])
@pytest.mark.parametrize("name", SHAPES)
def test_rows_see_their_own_past(name: str, block_size: int, window: int | None) -> None:
    """Any mix of spans, block size and window equals the formula."""
    layout = HeadLayout(num_heads=6, num_kv_heads=2, head_dim=8)
    spans = make_spans(SHAPES[name], block_size)
    cache = filled_cache(layout, block_size)
    queries = torch.randn(sum(span.num_rows for span in spans), 6, 8)
    plan = plan_attention(
        spans, block_size=block_size, layout=layout, windows=frozenset({None, window})
    )
    rows = paged_attention_reference(queries, cache, plan, window)
    expected = expected_rows(queries, cache, spans, window)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_queries_share_key_heads(num_kv_heads: int) -> None:
    """From one key head for all to one each."""
    layout = HeadLayout(num_heads=6, num_kv_heads=num_kv_heads, head_dim=4)
    spans = make_spans([(3, 20), (3, 22)], 16)
    cache = filled_cache(layout, 16)
    queries = torch.randn(6, 6, 4)
    plan = plan_attention(spans, block_size=16, layout=layout, windows=frozenset({None}))
    rows = paged_attention_reference(queries, cache, plan, None)
    expected = expected_rows(queries, cache, spans, None)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


def test_blocks_in_a_row_are_not_copied() -> None:
    """The plan of a lone sequence on consecutive blocks gathers nothing."""
    layout = HeadLayout(num_heads=2, num_kv_heads=2, head_dim=4)
    span = AttentionSpan(0, 4, 30, [7, 8])
    (group,) = plan_attention([span], block_size=16, layout=layout, windows=frozenset({None}))
    assert group.block_ids is None
    cache = filled_cache(layout, 16)
    queries = torch.randn(4, 2, 4)
    rows = paged_attention_reference(queries, cache, [group], None)
    expected = expected_rows(queries, cache, [span], None)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        pytest.param([(1, 100)] * 16, [16], id="alike"),
        pytest.param([(1, 100), (1, 110), (1, 120)], [3], id="nearly-alike"),
        pytest.param([(1, 100)] * 8 + [(1, 1000)], [8, 1], id="one-long-context"),
        pytest.param([(256, 256)] + [(1, 100)] * 3, [3, 1], id="one-prefill"),
        pytest.param([(5, 100)] * 3 + [(4, 100)], [4], id="one-shorter-guess"),
    ],
)
def test_spans_are_grouped_by_likeness(shapes: list[tuple[int, int]], sizes: list[int]) -> None:
    """Padding is accepted while it is cheaper than another call."""
    groups = group_spans(make_spans(shapes, 16))
    assert [len(group) for group in groups] == sizes
