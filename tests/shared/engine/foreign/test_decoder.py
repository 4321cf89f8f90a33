"""Rows between transformers' order of heads and ours, and attention with a cap."""

import math

import pytest
import torch

from kernels.attention_plan import AttentionSpan, plan_attention
from kernels.head_layout import HeadLayout, LayerCache
from kernels.paged_attention import paged_attention_reference
from shared.engine.foreign.decoder import capped_attention, fused_rows, unpacked_heads
from shared.engine.foreign.interface import AttentionCall

LAYOUT = HeadLayout(num_heads=6, num_kv_heads=2, head_dim=8)


def call(num_tokens: int, key_dim: int, value_dim: int) -> AttentionCall:
    torch.manual_seed(1)
    return AttentionCall(
        0,
        torch.randn(6, num_tokens, key_dim),
        torch.randn(2, num_tokens, key_dim),
        torch.randn(2, num_tokens, value_dim),
        None,
        {},
    )


@pytest.mark.parametrize(("key_dim", "value_dim"), [(8, 8), (8, 5), (5, 8), (3, 4)])
@pytest.mark.parametrize("num_tokens", [1, 63])
def test_a_fused_row_holds_every_head_in_its_place(
    num_tokens: int, key_dim: int, value_dim: int
) -> None:
    """Query head 3k + g becomes head 2g + k, then keys, then values; zeros fill up."""
    asked = call(num_tokens, key_dim, value_dim)
    rows = fused_rows(asked, LAYOUT, torch.float64)
    assert rows.shape == (num_tokens, LAYOUT.num_all * 8)
    assert rows.is_contiguous()
    heads = rows.view(num_tokens, 10, 8)
    for k in range(2):
        for g in range(3):
            own = asked.queries[3 * k + g].double()
            torch.testing.assert_close(heads[:, 2 * g + k, :key_dim], own)
        torch.testing.assert_close(heads[:, 6 + k, :key_dim], asked.keys[k].double())
        torch.testing.assert_close(heads[:, 8 + k, :value_dim], asked.values[k].double())
    assert not heads[:, :8, key_dim:].any()
    assert not heads[:, 8:, value_dim:].any()


def test_the_way_back_restores_the_order() -> None:
    """Attention's rows are queries' rows."""
    asked = call(63, 8, 8)
    rows = fused_rows(asked, LAYOUT, torch.float32)[:, : 6 * 8].contiguous()
    assert torch.equal(unpacked_heads(rows, LAYOUT, 8), asked.queries.transpose(0, 1))
    assert torch.equal(unpacked_heads(rows, LAYOUT, 5), asked.queries.transpose(0, 1)[..., :5])


SPANS = [
    AttentionSpan(0, 1, 40, [7, 2, 5]),
    AttentionSpan(1, 5, 33, [1, 0, 6]),
    AttentionSpan(6, 20, 20, [3, 4]),
    AttentionSpan(26, 1, 17, [8, 9]),
]


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("spans", [SPANS, SPANS[:1], [AttentionSpan(0, 3, 30, [4, 5])]])
def test_a_cap_is_applied_to_scaled_products(
    spans: list[AttentionSpan], window: int | None
) -> None:
    """The formula, row by row; where the cap is far off, attention without one."""
    torch.manual_seed(2)
    cache = LayerCache.allocate(10, 16, LAYOUT)
    cache.keys.normal_()
    cache.values.normal_()
    num_rows = sum(span.num_rows for span in spans)
    qkv = torch.randn(num_rows, LAYOUT.num_all * 8)
    plan = plan_attention(spans, cache=cache, layout=LAYOUT, windows=frozenset([window]))
    out = capped_attention(qkv, cache, plan, window, soft_cap=0.7).view(num_rows, 6, 8)
    for span in spans:
        slots = torch.tensor(span.block_ids).repeat_interleave(16) * 16
        slots += torch.arange(len(slots)) % 16
        for row in range(span.num_rows):
            end = span.context_len - span.num_rows + row + 1
            own = slots[max(0, end - window) if window else 0 : end]
            for head in range(6):
                query = qkv.view(num_rows, -1, 8)[span.first_row + row, head]
                products = cache.keys[own, head % 2] @ query / math.sqrt(8)
                weights = (0.7 * torch.tanh(products / 0.7)).softmax(0)
                expected = weights @ cache.values[own, head % 2]
                torch.testing.assert_close(out[span.first_row + row, head], expected)
    far = capped_attention(qkv, cache, plan, window, soft_cap=1e4)
    torch.testing.assert_close(
        far, paged_attention_reference(qkv, cache, plan, window), atol=1e-5, rtol=0
    )
