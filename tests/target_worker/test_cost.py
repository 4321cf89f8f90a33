"""The price model of a round: right prices from few rounds, and calm in a noisy world."""

import random

import pytest

from target_worker.cost import Measured, RoundCost, least_s

SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (4, 4), (4, 16), (8, 8), (16, 16), (16, 32))


def price(num_sequences: int, num_rows: int, factor: float = 1.0) -> float:
    return factor * (0.002 + 0.0001 * num_sequences + 0.0003 * num_rows)


def profiled() -> RoundCost:
    return RoundCost([Measured(n, rows, price(n, rows)) for n, rows in SHAPES])


@pytest.mark.parametrize(("num_sequences", "num_rows"), [(1, 1), (1, 6), (16, 64), (32, 32)])
def test_the_profile_gives_the_prices(num_sequences: int, num_rows: int) -> None:
    """Before the first round the prices are those measured at start."""
    expected = price(num_sequences, num_rows)
    assert profiled().predict(num_sequences, num_rows) == pytest.approx(expected)


def test_rounds_all_alike_keep_the_proportions() -> None:
    """A machine that got twice as slow: every price doubles, though only one shape was seen."""
    cost = profiled()
    for _ in range(500):
        cost.observe(1, 4, price(1, 4, 2.0))
    assert cost.predict(1, 4) == pytest.approx(price(1, 4, 2.0), rel=0.02)
    assert cost.per_row_s == pytest.approx(0.0006, rel=0.15)


def test_varied_rounds_correct_the_prices() -> None:
    """Where the profile was wrong about rows, rounds of several lengths say so."""
    cost = RoundCost([Measured(1, 1, 0.002), Measured(1, 8, 0.002)])
    for index in range(800):
        rows = 1 + index % 8
        cost.observe(1, rows, 0.002 + 0.0005 * rows)
    assert cost.per_row_s == pytest.approx(0.0005, rel=0.3)
    assert cost.predict(1, 5) == pytest.approx(0.0045, rel=0.05)


def test_a_round_that_was_held_up_does_not_change_the_world() -> None:
    """One second instead of milliseconds is a slow round, no more; and zero a fast one."""
    cost = profiled()
    for index in range(200):
        cost.observe(1, 4, 1.0 if index == 100 else price(1, 4))
    assert cost.predict(1, 4) < 1.2 * price(1, 4)
    for _ in range(200):
        cost.observe(1, 4, 0.0)
    assert 0.0 < cost.predict(1, 4) < price(1, 4)


def test_no_price_is_ever_zero_or_negative() -> None:
    """Whatever nonsense is observed: a free row would make every plan endless."""
    chance = random.Random(5)
    cost = RoundCost([Measured(1, 1, 0.002)])
    for _ in range(500):
        n = chance.randint(1, 8)
        cost.observe(n, n * chance.randint(1, 8), chance.random() * 0.01)
        assert cost.per_row_s > 0
        assert cost.predict(1, 1) > 0


def test_the_least_of_a_round_is_what_one_within_it_took() -> None:
    """Never more than was measured, however badly prices fit a device: here rows are nearly free.

    Prices say 1.3 times what 64 sequences took there; who waited so long would leave it idle.
    """
    seconds = {(1, 1): 4.3, (1, 8): 4.5, (8, 16): 4.6, (16, 32): 5.0, (32, 32): 5.0, (64, 64): 5.5}
    profile = [Measured(n, rows, ms / 1e3) for (n, rows), ms in seconds.items()]
    assert RoundCost(profile).predict(64, 64) > 1.1 * least_s(profile, 64, 64)
    for measured in profile:
        assert least_s(profile, measured.num_sequences, measured.num_rows) == measured.seconds
    assert least_s(profile, 8, 40) == 0.0046
    assert least_s(profile, 64, 320) == 0.0055
    assert least_s(profile[1:], 1, 1) == 0.0
