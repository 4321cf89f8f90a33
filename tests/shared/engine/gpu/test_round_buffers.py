"""What is staged for a round's kernels, whatever was staged before."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.copy_blocks import copy_words
from kernels.gpu.take_guesses import KNOWN
from shared.engine.following import Follow
from shared.engine.gpu.limits import RoundShape
from shared.engine.gpu.round_buffers import RoundBuffers
from shared.engine.spans import Span

BLOCK_SIZE, MAX_BLOCKS, MAX_SEQUENCES, MAX_ROWS = 16, 4, 5, 40


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """Some rows of a sequence, anywhere in it."""
    num_blocks = draw(st.integers(1, MAX_BLOCKS))
    room = num_blocks * BLOCK_SIZE
    start = draw(st.integers(0, room - 1))
    num_rows = draw(st.integers(1, min(MAX_ROWS // MAX_SEQUENCES, room - start)))
    tokens = draw(st.lists(st.integers(0, 99), min_size=num_rows, max_size=num_rows))
    # Few ids: rounds often have a table of the round before, or one that begins like it.
    table = draw(st.lists(st.integers(0, 2), min_size=num_blocks, max_size=num_blocks))
    num_logits = draw(st.sampled_from([num_rows, num_rows, draw(st.integers(0, num_rows))]))
    return Span(tokens, start, table, num_logits)


def _starts(own: list[Span]) -> list[int]:
    """The first row of each."""
    ends = itertools.accumulate(len(span.token_ids) for span in own)
    return [end - len(span.token_ids) for end, span in zip(ends, own, strict=True)]


ROUNDS = st.lists(st.lists(spans(), min_size=1, max_size=MAX_SEQUENCES), min_size=1, max_size=6)


@given(rounds=ROUNDS, num_follows=st.sampled_from([0, 1, MAX_SEQUENCES]))
def test_a_round_is_what_its_spans_say(rounds: list[list[Span]], num_follows: int) -> None:
    """Every row and sequence; the rest is nobody's."""
    buffers = RoundBuffers(
        max_rows=MAX_ROWS,
        max_sequences=MAX_SEQUENCES,
        max_blocks=MAX_BLOCKS,
        block_size=BLOCK_SIZE,
        device=torch.device("cpu"),
    )
    for own in rounds:
        follows = [Follow(place % 3 - 1, place) for place in range(num_follows)][: len(own)]
        copies = [(3 * place, 3 * place + 1) for place in range(num_follows)]
        shape = RoundShape.of(own)
        buffers.stage(own, shape, follows, copies)
        positions = [span.start + row for span in own for row in range(len(span.token_ids))]
        tables = [span.block_ids for span in own for _ in span.token_ids]
        num_rows = len(positions)
        tokens = [token for span in own for token in span.token_ids]
        assert buffers.token_ids[:num_rows].tolist() == tokens
        assert buffers.positions[:num_rows].tolist() == positions
        assert buffers.slots.tolist() == [
            table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            for table, position in zip(tables, positions, strict=True)
        ] + [-1] * (MAX_ROWS - num_rows)
        picked = [
            start + row
            for start, span in zip(_starts(own), own, strict=True)
            for row in range(len(span.token_ids) - span.num_logits, len(span.token_ids))
        ]
        if shape.picks:
            assert buffers.logit_rows.tolist() == picked + [0] * (MAX_ROWS - len(picked))
        else:
            assert len(picked) == num_rows
        known = [[KNOWN, 0]] * (MAX_SEQUENCES - len(follows))
        assert buffers.follows[:, 0].tolist() == [one[0] for one in (*follows, *known)]
        assert buffers.follows[: len(follows)].tolist() == [list(follow) for follow in follows]
        assert buffers.copies[: copy_words(len(copies))].tolist() == [
            len(copies), *itertools.chain(*copies)
        ]  # fmt: skip
        batch = buffers.attention
        rest = [num_rows] * (MAX_SEQUENCES + 1 - len(own))
        assert batch.query_starts.tolist() == _starts(own) + rest
        ends = [span.start + len(span.token_ids) for span in own]
        assert batch.context_lens.tolist() == ends + [0] * (MAX_SEQUENCES - len(own))
        for table, span in zip(batch.block_tables.tolist(), own, strict=False):
            assert table[: len(span.block_ids)] == span.block_ids


def test_a_table_that_grows_in_place_is_staged_again() -> None:
    """Spans refer to the lists of their sequences."""
    buffers = RoundBuffers(
        max_rows=4, max_sequences=1, max_blocks=2, block_size=16, device=torch.device("cpu")
    )
    table = [3]
    spans = [Span([1], 15, table, 1)]
    buffers.stage(spans, RoundShape.of(spans))
    table[:] = [4, 5]
    spans = [Span([1], 16, table, 1)]
    buffers.stage(spans, RoundShape.of(spans))
    assert buffers.attention.block_tables.tolist() == [[4, 5]]


def test_where_sequences_go_on_is_staged_beside_them() -> None:
    """In the order of the spans."""
    buffers = RoundBuffers(
        max_rows=4, max_sequences=3, max_blocks=2, block_size=16, device=torch.device("cpu")
    )
    own = [Span([0], 5, [1], 1), Span([0], 9, [0], 1)]
    buffers.stage(own, RoundShape.of(own), [Follow(7, 3), Follow(2, 0)])
    assert buffers.follows.tolist() == [[7, 3], [2, 0], [KNOWN, KNOWN]]
