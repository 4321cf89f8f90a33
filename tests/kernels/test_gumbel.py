import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernels.gumbel import MAX_NOISE, gumbel_reference, noise_of_words
from kernels.philox import philox4x32_reference

SEED = st.integers(0, 2**64 - 1)
POSITION = st.integers(0, 2**32 - 1)


def noise_of_one(seed: int, position: int, token_id: int) -> float:
    """The definition for one token, by Python's own logarithm."""
    counter = np.array([[token_id], [position], [0], [0]], np.uint64)
    u = (int(philox4x32_reference(counter, seed)[0, 0]) + 0.5) / 2**32
    return -math.log(-math.log(u))


@pytest.mark.parametrize("num_ids", [0, 1, 63, 1009, 4096, 10_007])
@given(seed=SEED, position=POSITION)
def test_the_noise_follows_its_definition(num_ids: int, seed: int, position: int) -> None:
    """Whole vocabularies of any size: -log(-log(u)) of the counter's first word."""
    noise = gumbel_reference(seed, position, np.arange(num_ids, dtype=np.uint64))
    assert noise.shape == (num_ids,)
    for token_id in {0, num_ids // 3, num_ids - 1} & set(range(num_ids)):
        assert noise[token_id] == pytest.approx(noise_of_one(seed, position, token_id), rel=1e-12)


@given(SEED, POSITION, st.lists(st.integers(0, 4095), max_size=40))
def test_a_token_keeps_its_noise_in_any_company(seed: int, position: int, ids: list[int]) -> None:
    """Bit by bit the same, alone, among a few, or in the whole vocabulary."""
    everyone = gumbel_reference(seed, position, np.arange(4096, dtype=np.uint64))
    some = gumbel_reference(seed, position, np.array(ids, np.uint64))
    assert some.tolist() == everyone[ids].tolist()


def test_the_extreme_words_stay_finite_and_below_the_bound() -> None:
    """u is never 0 or 1, so the noise has bounds, and pruning may rely on the upper one."""
    low, high = noise_of_words(np.array([0, 2**32 - 1], np.uint64))
    assert -3.2 < low < high < MAX_NOISE


def test_the_noise_is_gumbel_distributed() -> None:
    """Over tokens, positions and seeds alike (Kolmogorov-Smirnov)."""
    ids = np.arange(1_000, dtype=np.uint64)
    samples = {
        "tokens": gumbel_reference(1, 2, ids),
        "positions": np.concatenate([gumbel_reference(1, i, ids[:1]) for i in range(1_000)]),
        "seeds": np.concatenate([gumbel_reference(i, 2, ids[:1]) for i in range(1_000)]),
    }
    for name, sample in samples.items():
        assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-3, name
