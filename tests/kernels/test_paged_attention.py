"""Paged attention against the formula, row by row."""

import math
import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from kernels.attention_plan import AttentionSpan, plan_attention
from kernels.head_layout import HeadLayout, LayerCache
from kernels.paged_attention import paged_attention_reference

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


def random_rows(spans: list[AttentionSpan], layout: HeadLayout) -> Tensor:
    """Fused rows of a pass."""
    num_rows = sum(span.num_rows for span in spans)
    return torch.randn(num_rows, layout.num_all * layout.head_dim)


def attend(
    qkv: Tensor,
    cache: LayerCache,
    spans: list[AttentionSpan],
    layout: HeadLayout,
    window: int | None = None,
) -> Tensor:
    """Plan and attend, with a second window in the plan."""
    plan = plan_attention(spans, cache=cache, layout=layout, windows=frozenset({None, window}))
    return paged_attention_reference(qkv, cache, plan, window)


def expected_rows(
    qkv: Tensor,
    cache: LayerCache,
    spans: list[AttentionSpan],
    layout: HeadLayout,
    window: int | None = None,
) -> Tensor:
    """One row and one head at a time."""
    block_size = cache.block_size
    queries = qkv.view(len(qkv), layout.num_all, -1)[:, : layout.num_heads]
    rows = []
    for span in spans:
        slots = [block * block_size + i for block in span.block_ids for i in range(block_size)]
        for row in range(span.num_rows):
            end = span.context_len - span.num_rows + row + 1
            seen = slots[max(0, end - window) if window else 0 : end]
            heads = []
            for head in range(layout.num_heads):
                kv_head = head % layout.num_kv_heads
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
    cache, qkv = filled_cache(layout, block_size), random_rows(spans, layout)
    rows = attend(qkv, cache, spans, layout, window)
    expected = expected_rows(qkv, cache, spans, layout, window)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 11])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 1), (6, 2), (6, 3), (6, 6), (8, 2)])
def test_queries_share_key_heads(num_heads: int, num_kv_heads: int, num_rows: int) -> None:
    """From one key head for all to one each."""
    layout = HeadLayout(num_heads, num_kv_heads, head_dim=4)
    spans = make_spans([(num_rows, 20), (num_rows, 22)], 16)
    cache, qkv = filled_cache(layout, 16), random_rows(spans, layout)
    expected = expected_rows(qkv, cache, spans, layout)
    torch.testing.assert_close(attend(qkv, cache, spans, layout), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize(
    ("block_ids", "is_gathered"),
    [([7, 8], False), ([8, 7], True), ([298, 299], False), ([299, 298], True)],
    ids=["run", "backwards", "run-at-the-end", "backwards-at-the-end"],
)
def test_blocks_in_a_row_are_not_copied(
    block_ids: list[int], num_rows: int, *, is_gathered: bool
) -> None:
    """The plan of a lone sequence on consecutive blocks gathers nothing."""
    layout = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=4)
    span = AttentionSpan(0, num_rows, 30, block_ids)
    cache, qkv = filled_cache(layout, 16), random_rows([span], layout)
    (group,) = plan_attention([span], cache=cache, layout=layout, windows=frozenset({None}))
    assert (group.block_ids is not None) == is_gathered
    rows = paged_attention_reference(qkv, cache, [group], None)
    expected = expected_rows(qkv, cache, [span], layout)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


def test_padding_never_reads_past_the_cache() -> None:
    """A context that is padded beyond the last block is gathered, though its blocks are a run."""
    layout = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=4)
    first = NUM_BLOCKS - 13
    span = AttentionSpan(0, 1, 200, range(first, NUM_BLOCKS))
    cache, qkv = filled_cache(layout, 16), random_rows([span], layout)
    (group,) = plan_attention([span], cache=cache, layout=layout, windows=frozenset({None}))
    assert group.shape[2] == 384
    assert group.block_ids is not None
    rows = paged_attention_reference(qkv, cache, [group], None)
    expected = expected_rows(qkv, cache, [span], layout)
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


def has_steady_sums() -> bool:
    """Whether this machine's matrix library adds up as `steady_rows` and `steady_tokens` assume."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(1, 1, 32, 64, generator=generator)
    keys = torch.randn(1, 1, 512, 64, generator=generator)
    mask = torch.zeros(32, 512)
    mask[:, 100:] = float("-inf")
    long = sdpa(queries, keys, keys, attn_mask=mask)
    short = sdpa(queries[:, :, :4], keys[:, :, :112], keys[:, :, :112], attn_mask=mask[:4, :112])
    return torch.equal(long[:, :, :4], short)


@pytest.mark.skipif(not has_steady_sums(), reason="this matrix library adds up in other tiles")
def test_a_row_has_the_same_bits_in_any_batch() -> None:
    """Alone, among the rows of a verify round, and beside longer and shorter contexts."""
    layout = HeadLayout(num_heads=6, num_kv_heads=2, head_dim=64)
    shapes = [(5, 30), (1, 170), (11, 180), (3, 250), (5, 370), (1, 390), (17, 600), (40, 1009)]
    spans = make_spans(shapes, 16)
    cache, qkv = filled_cache(layout, 16), random_rows(spans, layout)
    together = attend(qkv, cache, spans, layout)
    for span in spans:
        for row in range(span.num_rows):
            index = span.first_row + row
            context_len = span.context_len - span.num_rows + row + 1
            alone = AttentionSpan(0, 1, context_len, span.block_ids)
            rows = attend(qkv[index : index + 1], cache, [alone], layout)
            assert torch.equal(rows[0], together[index]), (span.num_rows, context_len)
