from hypothesis import given
from hypothesis import strategies as st

from shared.engine.gpu.passes import passes
from shared.engine.spans import Span

SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 30))
def test_passes_are_the_round_in_pieces(sizes: list[tuple[int, int]], max_rows: int) -> None:
    """Every token once and in order, logits of the same rows, and no pass beyond its bound."""
    spans = [
        Span(list(range(100 * i, 100 * i + num_rows)), 7 * i, [i], min(num_logits, num_rows))
        for i, (num_rows, num_logits) in enumerate(sizes)
    ]
    pieces = list(passes(spans, max_rows))
    assert all(sum(len(span.token_ids) for span in piece) <= max_rows for piece in pieces)
    flat = [span for piece in pieces for span in piece]
    wanted = [(s.start + i, t) for s in spans for i, t in enumerate(s.token_ids)]
    assert [(s.start + i, t) for s in flat for i, t in enumerate(s.token_ids)] == wanted
    assert [t for s in flat for t in s.token_ids[len(s.token_ids) - s.num_logits :]] == [
        t for s in spans for t in s.token_ids[len(s.token_ids) - s.num_logits :]
    ]


def test_no_sequence_is_twice_in_a_pass() -> None:
    """The second piece reads what the first has written."""
    for piece in passes([Span(list(range(50)), 0, [0], 1), Span([1, 2], 0, [1], 1)], 16):
        assert len({span.block_ids[0] for span in piece}) == len(piece)
