"""Draft lengths: as many rows as raise tokens per second, no more."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from target_worker.cost import Measured, RoundCost
from target_worker.lengths import draft_lengths, predicted_gain


def make_cost(base: float, per_row: float) -> RoundCost:
    """Exactly seconds = base + per_row * rows, near enough."""
    shapes = ((1, 1), (1, 8), (8, 8), (8, 64))
    return RoundCost([Measured(n, rows, base + per_row * rows) for n, rows in shapes])


CHEAP, DEAR = make_cost(0.004, 0.00002), make_cost(0.0001, 0.002)


def plan(survivals: Sequence[Sequence[float]], cost: RoundCost, max_rows: int = 99) -> list[int]:
    num = len(survivals)
    return draft_lengths(survivals, num_sequences=num, num_rows=num, cost=cost, max_rows=max_rows)


def test_cheap_rows_take_all_guesses_and_dear_rows_none() -> None:
    """One session, four likely guesses."""
    survival = [0.8, 0.64, 0.5, 0.4]
    assert plan([survival], CHEAP) == [4]
    assert plan([survival], DEAR) == [0]


def test_rows_go_to_the_session_whose_guesses_survive() -> None:
    """The likely session gets the few rows there are."""
    assert plan([[0.3, 0.1], [0.9, 0.8, 0.7]], CHEAP, max_rows=3) == [0, 3]


def test_sessions_without_guesses_get_none() -> None:
    """An empty tree is no offer."""
    assert plan([[], [0.9], []], CHEAP) == [0, 1, 0]
    assert plan([], CHEAP) == []


@given(
    st.lists(st.lists(st.floats(0.05, 0.95), max_size=3), min_size=1, max_size=3),
    st.floats(0.00001, 0.002),
)
def test_no_other_lengths_would_be_faster(rates: list[list[float]], per_row: float) -> None:
    """Greedy is optimal here: compared with every combination of lengths."""
    survivals = [list(itertools.accumulate(one, lambda a, b: a * b)) for one in rates]
    cost = make_cost(0.002, per_row)
    num = len(survivals)

    def speed(lengths: Sequence[int]) -> float:
        expected = num + sum(sum(s[:length]) for s, length in zip(survivals, lengths, strict=True))
        return expected / cost.predict(num, num + sum(lengths))

    best = max(speed(each) for each in itertools.product(*(range(len(s) + 1) for s in survivals)))
    assert speed(plan(survivals, cost)) >= best * (1 - 1e-9)


def test_the_predicted_gain_is_one_where_nothing_pays() -> None:
    """And large where rows are nearly free; it falls with the number of streams."""
    survival = [0.8**i for i in range(1, 9)]
    assert predicted_gain(survival, num_streams=1, cost=DEAR) == 1.0
    gains = [predicted_gain(survival, num_streams=n, cost=CHEAP) for n in (1, 8, 64)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 3.5
