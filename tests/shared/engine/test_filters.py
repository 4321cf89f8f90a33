import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.filters import LOWEST, has_filters, keep_threshold
from shared.protocol.sampling import SamplingParams
from tests.reference_sampler import all_logits, all_params, kept_probabilities


@pytest.mark.parametrize("vocab_size", [1, 63, 1009])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_kept_set_follows_its_definition(vocab_size: int, data: st.DataObject) -> None:
    """The tokens at or above the threshold are those that sorting and summing keeps."""
    params = data.draw(all_params(vocab_size).filter(lambda params: params.temperature > 0))
    logits = data.draw(all_logits(vocab_size)).astype(np.float64)
    values = (logits - logits.max()) / params.temperature
    kept = np.flatnonzero(values >= keep_threshold(values, params))
    assert set(kept.tolist()) == set(kept_probabilities(logits.tolist(), params))


FILTERS = {
    "top_k": SamplingParams(seed=0, top_k=2),
    "top_p": SamplingParams(seed=0, top_p=0.3),
    "min_p": SamplingParams(seed=0, min_p=0.3),
}


@pytest.mark.parametrize("params", FILTERS.values(), ids=FILTERS.keys())
def test_ties_at_the_edge_all_stay(params: SamplingParams) -> None:
    """Equal tokens are kept or dropped together, so their order cannot matter."""
    values = np.array([0.0, -1.0, -1.0, -1.0, -50.0])
    threshold = keep_threshold(values, params)
    expected = [0] if params.top_p < 1 else [0, 1, 2, 3]
    assert np.flatnonzero(values >= threshold).tolist() == expected


def test_the_best_token_always_stays() -> None:
    """However strict the filters are, one token is left."""
    values = np.array([-1.0, 0.0, -0.001])
    for params in (
        SamplingParams(seed=0, top_p=1e-12),
        SamplingParams(seed=0, min_p=1.0),
        SamplingParams(seed=0, top_k=1),
    ):
        assert np.flatnonzero(values >= keep_threshold(values, params)).tolist() == [1]


def test_filters_apply_one_after_another() -> None:
    """top-p shares out the mass of what top-k has left, not of everything."""
    values = np.log(np.array([0.4, 0.3, 0.2, 0.1])) - math.log(0.4)
    alone = keep_threshold(values, SamplingParams(seed=0, top_p=0.57))
    after = keep_threshold(values, SamplingParams(seed=0, top_p=0.57, top_k=2))
    assert (alone, after) == (values[1], values[0])


def test_a_top_k_beyond_what_is_possible_keeps_the_possible() -> None:
    """Masked tokens are not kept to make up the number."""
    values = np.array([0.0, -np.inf, -3.0, -np.inf])
    assert keep_threshold(values, SamplingParams(seed=0, top_k=3)) == LOWEST
    assert keep_threshold(values, SamplingParams(seed=0, top_k=9)) == LOWEST


@pytest.mark.parametrize("top_p", [0.3, 0.999, math.nextafter(1.0, 0.0)])
def test_a_flat_row_is_searched_to_its_end(top_p: float) -> None:
    """The edge is found wherever it lies, also among tokens far behind the best."""
    values = np.concatenate([[0.0], np.full(100_000, -11.0), np.full(100_000, -13.0)])
    total = np.exp(values).sum()
    threshold = keep_threshold(values, SamplingParams(seed=0, top_p=top_p))
    assert np.exp(values[values >= threshold]).sum() >= top_p * total - 1e-9
    assert np.exp(values[values > threshold]).sum() < top_p * total


def test_defaults_filter_nothing() -> None:
    """Without filters nobody asks for a threshold."""
    assert not has_filters(SamplingParams(seed=0))
    assert all(has_filters(params) for params in FILTERS.values())
