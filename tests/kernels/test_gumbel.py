import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernels.gumbel import MAX_NOISE, gumbel, gumbel_reference, noise_of_words
from kernels.philox import Words, philox4x32_reference, round_keys

SEED = st.integers(0, 2**64 - 1)
POSITION = st.integers(0, 2**32 - 1)
TOKEN_ID = st.integers(0, 2**32 - 1)


def words(*values: int) -> Words:
    return np.array(values, np.uint64)


def noise_of_one(seed: int, position: int, token_id: int) -> float:
    """The definition for one token, by Python's own logarithm."""
    counter = np.array([[token_id], [position], [0], [0]], np.uint64)
    u = (int(philox4x32_reference(counter, seed)[0, 0]) + 0.5) / 2**32
    return -math.log(-math.log(u))


@given(SEED, POSITION, st.lists(TOKEN_ID, max_size=9))
def test_the_noise_follows_its_definition(seed: int, position: int, ids: list[int]) -> None:
    """-log(-log(u)) of the counter's first word."""
    noise = gumbel_reference(seed, position, words(*ids))
    expected = [noise_of_one(seed, position, token_id) for token_id in ids]
    assert noise.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("num_ids", [0, 1, 63, 1009, 4096, 10_007])
@given(seed=SEED, position=POSITION)
def test_the_fast_way_is_the_reference(num_ids: int, seed: int, position: int) -> None:
    """Whole vocabularies of any size, bit for bit."""
    ids = np.arange(num_ids, dtype=np.uint64)
    noise = gumbel(round_keys(seed)[:, :, None], words(position), ids)
    assert noise.tolist() == gumbel_reference(seed, position, ids).tolist()


ROWS = st.lists(st.tuples(SEED, POSITION, TOKEN_ID, TOKEN_ID, TOKEN_ID), min_size=1, max_size=9)


@given(ROWS)
def test_rows_keep_their_own_seed_and_position(rows: list[tuple[int, ...]]) -> None:
    """In a rectangle of rows, in one of columns, or with a key for each token."""
    seeds, positions, *columns = zip(*rows, strict=True)
    keys = np.stack([round_keys(seed) for seed in seeds], axis=-1)  # [rounds, 2, rows]
    ids = np.array(columns, np.uint64)  # [3, rows]
    expected = [
        [gumbel_reference(seed, position, words(token_id))[0] for seed, position, token_id in row]
        for row in (zip(seeds, positions, column, strict=True) for column in columns)
    ]
    place = words(*positions)
    assert gumbel(keys[:, :, None], place[None], ids).tolist() == expected
    by_row = gumbel(keys[..., None], place[:, None], np.ascontiguousarray(ids.T))
    assert by_row.T.tolist() == expected
    assert gumbel(keys, place, ids[0]).tolist() == expected[0]


def test_the_arguments_stay_as_they_are() -> None:
    """Keys are cached and ids belong to the caller."""
    ids, position, keys = np.arange(9, dtype=np.uint64), words(3), round_keys(1)[:, :, None]
    before = (ids.tolist(), position.tolist(), keys.tolist())
    gumbel(keys, position, ids)
    assert (ids.tolist(), position.tolist(), keys.tolist()) == before


@given(SEED, POSITION, st.lists(st.integers(0, 4095), max_size=40))
def test_a_token_keeps_its_noise_in_any_company(seed: int, position: int, ids: list[int]) -> None:
    """Bit by bit the same, alone, among a few, or in the whole vocabulary."""
    everyone = gumbel_reference(seed, position, np.arange(4096, dtype=np.uint64))
    some = gumbel(round_keys(seed)[:, :, None], words(position), words(*ids))
    assert some.tolist() == everyone[ids].tolist()


def test_the_extreme_words_stay_finite_and_below_the_bound() -> None:
    """u is never 0 or 1, so the noise has bounds, and pruning may rely on the upper one."""
    low, high = noise_of_words(words(0, 2**32 - 1))
    assert -3.2 < low < high < MAX_NOISE


def test_the_noise_is_gumbel_distributed() -> None:
    """Over tokens, positions and seeds alike (Kolmogorov-Smirnov)."""
    many, one = np.arange(1_000, dtype=np.uint64), words(0)
    seeds = np.stack([round_keys(seed) for seed in range(1_000)], axis=-1)
    samples = {
        "tokens": gumbel(round_keys(1)[:, :, None], words(2), many),
        "positions": gumbel(round_keys(1)[:, :, None], many, one.repeat(1_000)),
        "seeds": gumbel(seeds, words(2), one.repeat(1_000)),
    }
    for name, sample in samples.items():
        assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-3, name
