"""Which rounds are cut in which way, and that there is a graph for each of them."""

import dataclasses
from collections.abc import Sequence

import pytest

from shared.engine.gpu.limits import (
    DECODE,
    FEW_CONTEXT,
    FEW_DECODE,
    FEW_VERIFY,
    GRAPH_ROWS,
    PICKING_ROWS,
    PREFILL,
    VERIFY,
    GpuLimits,
    GraphKind,
    RoundShape,
    Tiling,
)
from shared.engine.spans import Span

LIMITS = GpuLimits(
    num_blocks=1_000, block_size=16, max_rows=2_048, max_sequences=64, max_model_len=8_192
)


def shape_of(lens: Sequence[tuple[int, int]], *, picks: bool = False) -> RoundShape:
    """Of a round of (rows, context) each; the first asks for no logits if it `picks`."""
    return RoundShape.of(
        [
            Span([0] * num_rows, context - num_rows, [], 0 if picks and not index else num_rows)
            for index, (num_rows, context) in enumerate(lens)
        ]
    )


def test_a_round_is_as_large_as_its_spans() -> None:
    """Together, and the longest of them."""
    assert shape_of([(3, 10), (1, 700), (20, 20)]) == RoundShape(3, 24, 24, 20, 700)
    shape = shape_of([(3, 10), (1, 700)], picks=True)
    assert (shape.num_logits, shape.picks) == (1, True)


@pytest.mark.parametrize(
    ("lens", "expected"),
    [
        ([(1, 1)], FEW_DECODE),
        ([(4, 900), (1, 40)], FEW_DECODE),
        ([(5, 900), (9, 40)], FEW_VERIFY),
        ([(1, 40)] * 3, DECODE),
        ([(1, 900), (5, 900), (1, 900)], VERIFY),
        ([(1, FEW_CONTEXT + 1)], DECODE),
        ([(17, 40), (16, 40)], VERIFY),
        ([(33, 40)], PREFILL),
        ([(1, 40)] * 40 + [(500, 600)], PREFILL),
    ],
)
def test_a_round_is_cut_as_its_rows_and_contexts_ask(
    lens: list[tuple[int, int]], expected: Tiling
) -> None:
    """Few sequences in small chunks, decode rows in small tiles, prefill in large ones."""
    assert LIMITS.tiling_of(shape_of(lens), group_size=4) == expected


def test_rounds_that_pick_their_logits_are_of_two_kinds() -> None:
    """So that few graphs serve them all."""
    assert LIMITS.tiling_of(shape_of([(2, 40)], picks=True), 4) == VERIFY
    assert LIMITS.tiling_of(shape_of([(1, 900)] * 40 + [(9, 9)], picks=True), 4) == VERIFY
    assert LIMITS.tiling_of(shape_of([(1, 40), (33, 40)], picks=True), 4) == PREFILL


@pytest.mark.parametrize("picks", [False, True])
@pytest.mark.parametrize("group_size", [1, 4, 8])
def test_every_round_has_a_graph(
    group_size: int,
    picks: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Up to as many rows as there are graphs for; what asks for all logits is no prompt."""
    for num_sequences in (1, 2, 3, 40):
        for num_rows in (1, 5, 9, 300):
            lens = [(num_rows, 1_000)] * num_sequences
            tiling = LIMITS.tiling_of(shape_of(lens, picks=picks), group_size)
            if num_rows * num_sequences <= GRAPH_ROWS[-1] and (picks or tiling != PREFILL):
                assert LIMITS.graphs[GraphKind(tiling, picks)][-1] >= num_rows * num_sequences


def test_where_bits_are_a_rows_own_there_is_one_way() -> None:
    """The same tiling, whatever is asked for, with graphs for as many rows as ever."""
    limits = dataclasses.replace(LIMITS, is_batch_invariant=True)
    assert limits.tilings == (VERIFY,)
    assert limits.graphs == {
        GraphKind(VERIFY): LIMITS.graph_rows,
        GraphKind(VERIFY, picks=True): PICKING_ROWS,
    }
    for lens in ([(1, 1)], [(500, 600)] * 3):
        assert limits.tiling_of(shape_of(lens), 4) == VERIFY


def test_graphs_are_as_many_as_rounds_have_rows() -> None:
    """None is larger than a round can be, or than was asked for."""
    limits = GpuLimits(1_000, 16, max_rows=100, max_sequences=8, max_model_len=64)
    assert limits.graph_rows[-1] == max(size for size in GRAPH_ROWS if size <= 100)
    assert GpuLimits(1_000, 16, 100, 8, 64, max_graph_rows=0).graphs[GraphKind(DECODE)] == ()
