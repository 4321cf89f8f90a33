"""shared/engine/ranking.py: a drafter's passes where everything is done at once."""

import pytest
import torch

from shared.engine.ranking import KNOWN, HostRanker, completed
from shared.engine.samplers import HostSampler
from shared.engine.sampling import Row, sample
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams
from tests.fakes import FakeRunner

V = 32
GREEDY = SamplingParams(seed=1, temperature=0.0)
WARM = SamplingParams(seed=2, temperature=0.7, top_k=5)


def test_what_is_completed_knows_the_best_of_the_pass_before() -> None:
    """In the span and at the end of the row; spans that follow nothing stay as they are."""
    spans = [Span([0], 4, [1], 1), Span([5, 6], 0, [2], 0), Span([7], 9, [3], 1)]
    rows = [Row(GREEDY, [1, 2, 3, 4], 2), Row(WARM, [8] * 10, 3)]
    known, all_rows = completed(spans, rows, [1, KNOWN, KNOWN], [20, 21])
    assert known == [Span([21], 4, [1], 1), *spans[1:]]
    assert all_rows == [Row(GREEDY, [1, 2, 3, 4, 21], 2), rows[1]]


@pytest.mark.parametrize("params", [GREEDY, WARM])
def test_passes_behind_one_another_are_those_one_by_one(params: SamplingParams) -> None:
    """The second is asked for with a token less than it computes."""
    runner = FakeRunner(vocab_size=V, num_blocks=4, block_size=4)
    ranker = HostRanker(runner, HostSampler(), can_follow=True)
    tokens = [3, 1, 4]
    row = Row(params, tokens, 3)
    before = ranker.begin([Span(tokens, 0, [0, 1], 1)], [row], 3)
    behind = ranker.begin([Span([0], 3, [0, 1], 1)], [row], 3, [0])
    for collect in (before, behind):
        (top,) = collect()
        expected = sample(runner.logits(tokens)[None], [Row(params, tokens, 3)])
        assert top.token_ids[:1] == expected
        tokens = [*tokens, *expected]


def test_an_unusable_row_is_followed_by_some_token() -> None:
    """Nobody is harmed: what comes of it is dropped."""

    class Broken(FakeRunner):
        def logits(self, prefix: object) -> torch.Tensor:
            del prefix
            return torch.full((V,), torch.nan)

    ranker = HostRanker(Broken(vocab_size=V, num_blocks=1, block_size=4), HostSampler())
    row = Row(GREEDY, [3], 1)
    assert ranker.begin([Span([3], 0, [0], 1)], [row], 3)()[0].token_ids == []
    assert ranker.begin([Span([0], 1, [0], 1)], [row], 3, [0])()[0].token_ids == []
