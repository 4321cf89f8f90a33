import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernels.gumbel import MAX_NOISE, gumbel_reference, noise_of_words
from kernels.philox import Words, philox4x32_reference

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


@given(SEED, POSITION, st.lists(st.integers(0, 4095), max_size=40))
def test_a_token_keeps_its_noise_in_any_company(seed: int, position: int, ids: list[int]) -> None:
    """Bit by bit the same, alone, among a few, or in the whole vocabulary."""
    everyone = gumbel_reference(seed, position, np.arange(4096, dtype=np.uint64))
    some = gumbel_reference(seed, position, words(*ids))
    assert some.tolist() == everyone[ids].tolist()


def test_the_extreme_words_stay_finite_and_below_the_bound() -> None:
    """u is never 0 or 1, so the noise has bounds, and pruning may rely on the upper one."""
    low, high = noise_of_words(words(0, 2**32 - 1))
    assert -3.2 < low < high < MAX_NOISE


def test_the_noise_is_gumbel_distributed() -> None:
    """Over tokens, positions and seeds alike (Kolmogorov-Smirnov)."""
    many, one = np.arange(1_000, dtype=np.uint64), words(0)
    samples = {
        "tokens": gumbel_reference(1, 2, many).tolist(),
        "positions": [gumbel_reference(1, position, one)[0] for position in range(1_000)],
        "seeds": [gumbel_reference(seed, 2, one)[0] for seed in range(1_000)],
    }
    for name, sample in samples.items():
        assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-3, name
