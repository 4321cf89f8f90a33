import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gumbel import gumbel, gumbel_reference
from kernels.philox import round_keys
from shared.engine.candidates import Candidates, add_noise, find_candidates
from shared.protocol.sampling import SamplingParams
from tests.reference_sampler import random_logits


def found(
    logits: np.typing.NDArray[np.float32], params: SamplingParams, position: int
) -> Candidates:
    candidates = find_candidates(logits, params, position)
    assert candidates is not None
    return candidates


def peaked(vocab_size: int, height: float) -> np.typing.NDArray[np.float32]:
    """One likely token, all others `height` behind it."""
    logits = np.full(vocab_size, -height, np.float32)
    logits[vocab_size // 2] = 0.0
    return logits


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 63, 300, 1009]), min_size=1, max_size=6), st.integers(0, 99))
def test_short_and_long_rows_draw_the_same_noise(sizes: list[int], seed: int) -> None:
    """Rows that are drawn for together score as each would alone, bit for bit."""
    rows = [
        (random_logits(size, i), SamplingParams(seed + i), 7 * i) for i, size in enumerate(sizes)
    ]
    batch = [found(*row) for row in rows]
    add_noise(batch, 1)
    for (logits, params, position), candidates in zip(rows, batch, strict=True):
        values = (logits - np.float64(logits.max())) / params.temperature
        noise = gumbel_reference(params.seed, position, candidates.token_ids.astype(np.uint64))
        if len(logits) > 1:
            assert candidates.scores.tolist() == (values[candidates.token_ids] + noise).tolist()


def weak_positions() -> list[int]:
    """Where the likely token of `peaked` draws so little that others can win."""
    positions = np.arange(20_000, dtype=np.uint64)
    best = np.full(20_000, 1009 // 2, np.uint64)
    noise = gumbel(round_keys(1)[:, :, None], positions, best)
    return [position for position in range(20_000) if noise[position] < -2.0]


def test_pruning_is_exact() -> None:
    """Tokens far behind are left out, and taken in where the noise makes the best ones weak."""
    logits, everyone = peaked(1009, 25.0), np.arange(1009, dtype=np.uint64)
    weak = weak_positions()
    assert len(weak) > 5
    for position in [*range(100), *weak]:
        candidates = found(logits, SamplingParams(1), position)
        assert len(candidates.token_ids) == 1
        add_noise([candidates], 1)
        assert candidates.best == (logits + gumbel_reference(1, position, everyone)).argmax()
        assert len(candidates.token_ids) == (1009 if position in weak else 1)


@pytest.mark.parametrize("height", [24.8, 20.0, 1.0])
def test_whatever_may_win_is_a_candidate(height: float) -> None:
    """The bound on the noise is wide: all but tokens e^-24 as likely are drawn for."""
    candidates = found(peaked(1009, height), SamplingParams(1), 5)
    assert len(candidates.token_ids) == 1009


@pytest.mark.parametrize("num", [1, 3, 700])
def test_ranks_are_exact_beyond_what_was_pruned(num: int) -> None:
    """Asked for more tokens than are likely to win, the ranking still is that of all of them."""
    logits = peaked(1009, 30.0)
    logits[::2] = -3.0
    for seed in range(20):
        candidates = found(logits, SamplingParams(seed), 5)
        add_noise([candidates], num)
        everyone = np.arange(1009, dtype=np.uint64)
        scores = (logits - np.float64(logits.max())) + gumbel_reference(seed, 5, everyone)
        order = np.argsort(-scores, kind="stable")[:num]
        assert candidates.rank(num) == (order.tolist(), scores[order].tolist())


def test_a_single_candidate_needs_no_noise() -> None:
    """What filters leave alone is chosen, whatever the noise."""
    candidates = found(random_logits(63, 1), SamplingParams(seed=1, top_k=1), 5)
    add_noise([candidates], 1)
    assert candidates.rank(4) == ([int(random_logits(63, 1).argmax())], [0.0])


def test_temperature_zero_ranks_by_logit_and_id() -> None:
    """Ties go to the lowest id, down the whole ranking."""
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0], np.float32)
    candidates = found(logits, SamplingParams(seed=1, temperature=0.0), 5)
    add_noise([candidates], 4)
    assert candidates.best == 1
    assert candidates.rank(4) == ([1, 3, 2, 4], [0.0, 0.0, -1.0, -1.0])


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-8])
def test_temperatures_near_zero_choose_the_best(temperature: float) -> None:
    """Values overflow to -inf, which never wins; no warning, no NaN."""
    logits = random_logits(63, 1)
    candidates = found(logits, SamplingParams(seed=1, temperature=temperature), 5)
    add_noise([candidates], 1)
    assert candidates.best == logits.argmax()


BAD = {"NaN": [0.0, np.nan], "+inf": [np.inf, 0.0], "all masked": [-np.inf, -np.inf]}


@pytest.mark.parametrize("logits", BAD.values(), ids=BAD.keys())
def test_an_unusable_row_has_no_candidates(logits: list[float]) -> None:
    """The caller decides what becomes of it."""
    for temperature in (0.0, 1.0):
        params = SamplingParams(seed=1, temperature=temperature)
        assert find_candidates(np.array(logits, np.float32), params, 5) is None
