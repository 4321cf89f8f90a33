"""How passes are cut into groups. That these are right, test_paged_attention.py shows."""

import pytest

from kernels.attention_plan import AttentionSpan, group_spans, steady_rows, steady_tokens


def make_spans(shapes: list[tuple[int, int]]) -> list[AttentionSpan]:
    """Spans of (rows, context), one after the other."""
    firsts = [sum(rows for rows, _ in shapes[:index]) for index in range(len(shapes))]
    return [
        AttentionSpan(first, num_rows, context_len, range(context_len))
        for first, (num_rows, context_len) in zip(firsts, shapes, strict=True)
    ]


@pytest.mark.parametrize(
    ("num_rows", "group_size", "expected"),
    [(1, 3, 1), (2, 3, 2), (10, 3, 10), (11, 3, 12), (17, 2, 18), (33, 1, 36), (64, 3, 64)],
)
def test_no_rest_of_one_to_three_rows(num_rows: int, group_size: int, expected: int) -> None:
    """The tile that MKL would add up in another order is padded; a lone row is dealt with apart."""
    assert steady_rows(num_rows, group_size) == expected


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, 16), (192, 192), (193, 384), (384, 384), (385, 400), (512, 512), (700, 704), (705, 896)],
)
def test_no_sum_is_split_in_the_middle(num_tokens: int, expected: int) -> None:
    """Contexts in the uneven range of a tile are padded to its end."""
    assert steady_tokens(num_tokens) == expected


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        pytest.param([(1, 100)] * 16, [16], id="alike"),
        pytest.param([(1, 100), (1, 110), (1, 120)], [3], id="nearly-alike"),
        pytest.param([(1, 100)] * 8 + [(1, 1000)], [8, 1], id="one-long-context"),
        pytest.param([(256, 256)] + [(1, 100)] * 3, [3, 1], id="one-prefill"),
        pytest.param([(5, 100)] * 3 + [(4, 100)], [4], id="one-shorter-guess"),
        pytest.param([(1, 400)] * 16, [10, 6], id="too-much-memory"),
    ],
)
def test_spans_are_grouped_by_likeness(shapes: list[tuple[int, int]], sizes: list[int]) -> None:
    """Padding is accepted while it is cheaper than another call."""
    groups = group_spans(make_spans(shapes))
    assert [len(group) for group in groups] == sizes


def test_a_group_keeps_the_order_of_its_rows() -> None:
    """So that an even batch needs no index."""
    shapes = [(1, 120), (1, 100), (1, 110)]
    (group,) = group_spans(make_spans(shapes))
    assert [span.first_row for span in group] == [0, 1, 2]
