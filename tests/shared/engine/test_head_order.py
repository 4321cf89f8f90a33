"""Heads and pairs in the order of the kernels, by index."""

import torch

from kernels.head_layout import HeadLayout
from shared.engine.head_order import HeadOrder

LAYOUT = HeadLayout(num_heads=6, num_kv_heads=2, head_dim=4)  # three query heads a key head
ORDER = HeadOrder(LAYOUT)


def test_query_heads_go_by_their_place_in_the_group() -> None:
    """Head k x 3 + g comes g x 2 + k, and the halves of a pair become neighbours."""
    rows = torch.arange(24)
    heads = ORDER.queries(rows).view(6, 4)
    assert (heads[:, 0] // 4).tolist() == [0, 3, 1, 4, 2, 5]
    assert heads[1].tolist() == [12, 14, 13, 15]


def test_key_heads_keep_their_order() -> None:
    """Only pairs become neighbours; one head alone is permuted as each of many."""
    assert ORDER.keys(torch.arange(8)).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert ORDER.keys(torch.arange(4)).tolist() == [0, 2, 1, 3]


def test_the_output_reads_heads_where_they_now_are() -> None:
    """Columns move by whole heads: values have no pairs."""
    columns = torch.arange(24).expand(5, 24)
    heads = ORDER.output(columns).view(5, 6, 4)
    assert (heads[4, :, 0] // 4).tolist() == [0, 3, 1, 4, 2, 5]
    assert heads[0, 1].tolist() == [12, 13, 14, 15]


def test_rows_are_moved_whole() -> None:
    """What follows the first dimension comes along, in any dtype."""
    weight = torch.randn(24, 63).bfloat16()
    order = ORDER.queries(torch.arange(24))
    assert torch.equal(ORDER.queries(weight), weight[order])
