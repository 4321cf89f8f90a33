import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gumbel import gumbel_reference
from kernels.gumbel_top import NEAR, Top, Values, gumbel_top, gumbel_top_reference
from tests.reference_sampler import all_logits

LOWEST = -sys.float_info.max


def assert_same(found: Top, expected: Top) -> None:
    """The same tokens; scores up to the last bits of two logarithms."""
    assert found.token_ids == expected.token_ids
    assert found.scores == pytest.approx(expected.scores, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("vocab_size", [1, 63, 1009, 4096])
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    temperature=st.sampled_from([0.0, 5e-324, 1e-8, 0.3, 0.7, 1.0, 2.0]),
    min_value=st.sampled_from([LOWEST, -30.0, -9.0, -3.0, 0.0]),
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**32 - 1),
    num=st.sampled_from([1, 2, 3, 7, 2_000]),
)
def test_it_is_the_reference(  # noqa: PLR0917
    vocab_size: int,
    data: st.DataObject,
    temperature: float,
    min_value: float,
    seed: int,
    position: int,
    num: int,
) -> None:
    """Whatever the parameters, ties and masked tokens included."""
    logits = data.draw(all_logits(vocab_size)).astype(np.float64)
    found, expected = (
        top(
            logits,
            temperature=temperature,
            min_value=min_value,
            seed=seed,
            position=position,
            num=num,
        )
        for top in (gumbel_top, gumbel_top_reference)
    )
    assert_same(found, expected)


def peaked(vocab_size: int, height: float) -> Values:
    """One likely token, all others `height` behind it."""
    logits = np.full(vocab_size, -height)
    logits[vocab_size // 2] = 0.0
    return logits


def test_tokens_far_behind_win_when_the_noise_says_so() -> None:
    """What is skipped without logarithms is only what cannot be among the best."""
    logits, wins = peaked(1009, NEAR + 0.5), 0
    for position in range(3_000):
        found, expected = (
            top(logits, temperature=1.0, min_value=LOWEST, seed=1, position=position, num=1)
            for top in (gumbel_top, gumbel_top_reference)
        )
        assert_same(found, expected)
        wins += found.token_ids != [1009 // 2]
    assert wins > 100  # so the second pass was put to the test


def weak_positions() -> list[int]:
    """Where the likely token of `peaked` draws so little that others can win."""
    best = np.array([1009 // 2], np.uint64)
    return [position for position in range(5_000) if gumbel_reference(1, position, best)[0] < -2.0]


def test_pruning_is_exact_where_the_best_token_is_weak() -> None:
    """Tokens beyond nearly all noise still win where the definition says so."""
    weak = weak_positions()
    assert len(weak) > 2
    for height in (20.0, 24.9, 26.0):
        for position in weak:
            found, expected = (
                top(
                    peaked(1009, height),
                    temperature=1.0,
                    min_value=LOWEST,
                    seed=1,
                    position=position,
                    num=2,
                )
                for top in (gumbel_top, gumbel_top_reference)
            )
            assert_same(found, expected)


def test_only_near_tokens_when_asked() -> None:
    """A drafter does without those that hardly ever win."""
    logits = np.array([0.0, -NEAR + 0.1, -NEAR - 0.1, -2.0])
    found = gumbel_top(
        logits, temperature=1.0, min_value=LOWEST, seed=3, position=9, num=4, only_near=True
    )
    assert sorted(found.token_ids) == [0, 1, 3]


def test_ties_go_to_the_lowest_id() -> None:
    """Without noise, down the whole ranking."""
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0])
    found = gumbel_top(logits, temperature=0.0, min_value=LOWEST, seed=1, position=5, num=4)
    assert found == Top([1, 3, 2, 4], [0.0, 0.0, -1.0, -1.0])


def test_masked_tokens_are_never_chosen() -> None:
    """Fewer than asked for where fewer may be chosen."""
    logits = np.array([-math.inf, 0.5, -math.inf])
    for temperature in (0.0, 1.0):
        found = gumbel_top(
            logits, temperature=temperature, min_value=LOWEST, seed=1, position=5, num=3
        )
        assert found.token_ids == [1]
