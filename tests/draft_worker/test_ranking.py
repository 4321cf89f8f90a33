"""draft_worker/ranking.py: the sampler's ranking at a drafter's cost."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draft_worker.ranking import FEW_CANDIDATES, Chooser, rank
from shared.engine import sampling
from shared.engine.sampling import Row
from shared.protocol.sampling import SamplingParams
from tests.draft_worker.builders import GREEDY, PENALISED, WARM

MIXED = [GREEDY, WARM, PENALISED, msgspec.structs.replace(WARM, seed=9, top_k=0, top_p=1.0)]


def make_rows(params: list[SamplingParams]) -> list[Row]:
    return [Row(one, [3, 1, 2, *range(index)], 2) for index, one in enumerate(params)]


def make_logits(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * 4


@given(
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 63, 64, 200]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, (1 << 64) - 1),
)
@settings(max_examples=80, deadline=None)
def test_with_all_tokens_as_candidates_it_is_the_sampler(
    **params: float,
) -> None:
    """Same tokens, same scores up to rounding, whatever the parameters."""
    row = Row(SamplingParams(**params), [3, 1, 2, 3], 2)  # type: ignore[arg-type]
    logits = make_logits(1, FEW_CANDIDATES, int(params["seed"]) % 1000)
    ids, scores = rank(logits, [row], [Chooser(row.params)], 3)
    expected_ids, expected_scores = sampling.rank(logits, [row], 3)
    assert ids == expected_ids
    offset = scores[0][0] - expected_scores[0][0]
    assert scores[0] == pytest.approx([score + offset for score in expected_scores[0]], abs=1e-4)


def test_rows_of_all_kinds_share_a_batch() -> None:
    """A row's ranking does not depend on the rows beside it."""
    rows = make_rows(MIXED)
    logits = make_logits(len(rows), 500)
    choosers = [Chooser(row.params) for row in rows]
    ids, scores = rank(logits, rows, choosers, 3)
    for index, row in enumerate(rows):
        alone = rank(logits[index : index + 1], [row], [choosers[index]], 3)
        assert ids[index] == alone[0][0]
        assert scores[index] == pytest.approx(alone[1][0])


def test_leaving_out_unlikely_candidates_hardly_changes_a_choice() -> None:
    """Over a vocabulary of thousands, the first guess is the sampler's own nearly always."""
    params = SamplingParams(seed=5, temperature=0.7)
    rows = [Row(params, [1] * (index + 1), 1) for index in range(400)]
    logits = make_logits(400, 4096)
    ids, _ = rank(logits, rows, [Chooser(params)] * 400, 2)
    same = sum(
        best[0] == token for best, token in zip(ids, sampling.sample(logits, rows), strict=True)
    )
    assert same >= 380


def test_ties_go_to_the_lowest_id() -> None:
    """As in the sampler."""
    logits = torch.zeros(1, 200)
    logits[0, [9, 5, 7]] = 1.0
    ids, scores = rank(logits, [Row(GREEDY, [1], 1)], [Chooser(GREEDY)], 3)
    assert ids == [[5, 7, 9]]
    assert scores == [[0.0, 0.0, 0.0]]


def test_the_given_logits_are_left_alone() -> None:
    """Penalties work on a copy."""
    logits = make_logits(1, 100)
    before = logits.clone()
    rank(logits, [Row(PENALISED, [1, 2, 3], 1)], [Chooser(PENALISED)], 3)
    assert torch.equal(logits, before)
