import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.adjustments import Adjustments, changes_logits
from shared.engine.sampling import Row
from shared.protocol.sampling import SamplingParams
from tests.reference_sampler import adjusted, all_logits, all_rows, random_logits


@pytest.mark.parametrize("vocab_size", [1, 63, 1009])
@settings(max_examples=60, deadline=None)
@given(data=st.data(), new=st.lists(st.integers(0, 9), max_size=4))
def test_adjustments_follow_their_definition(
    vocab_size: int, data: st.DataObject, new: list[int]
) -> None:
    """Also after the output grew, as it does inside a draft: then as if begun with those tokens."""
    row = data.draw(all_rows(vocab_size))
    logits = data.draw(all_logits(vocab_size))
    new = [token_id % vocab_size for token_id in new]
    adjustments = Adjustments(row.params, row.token_ids, row.prompt_len, vocab_size)
    for token_id in new:
        adjustments.accept(token_id)
    grown = Row(row.params, [*row.token_ids, *new], row.prompt_len)
    assert adjustments.apply(logits).tolist() == adjusted(logits.tolist(), grown)


def test_the_models_own_logits_stay_as_they_are() -> None:
    """Other sequences' rows, and the drafter's, lie in the same tensor."""
    logits = random_logits(63, 1)
    before = logits.copy()
    params = SamplingParams(seed=0, repetition_penalty=1.5, logit_bias=((3, 5.0),))
    Adjustments(params, [1, 2, 3], 1, 63).apply(logits)
    assert logits.tolist() == before.tolist()


def test_ids_that_the_vocabulary_lacks_are_passed_over() -> None:
    """A prompt, a bias or a stop id from outside may name what does not exist."""
    params = SamplingParams(
        seed=0,
        repetition_penalty=2.0,
        presence_penalty=1.0,
        logit_bias=((-1, 5.0), (63, 5.0), (2**40, 5.0)),
        min_tokens=9,
        stop_token_ids=(-1, 63),
    )
    logits = random_logits(63, 1)
    values = Adjustments(params, [63, -1, 2**40, -2], 2, 63).apply(logits)
    assert values.tolist() == logits.tolist()


CHANGES = {
    "repetition_penalty": SamplingParams(seed=0, repetition_penalty=1.1),
    "presence_penalty": SamplingParams(seed=0, presence_penalty=0.1),
    "frequency_penalty": SamplingParams(seed=0, frequency_penalty=-0.1),
    "logit_bias": SamplingParams(seed=0, logit_bias=((1, 1.0),)),
    "min_tokens": SamplingParams(seed=0, min_tokens=3, stop_token_ids=(1,)),
}


@pytest.mark.parametrize("params", CHANGES.values(), ids=CHANGES.keys())
def test_whoever_changes_logits_says_so(params: SamplingParams) -> None:
    """min_tokens counts only while the output is short, and only with something to mask."""
    assert changes_logits(params, 2)
    assert changes_logits(params, 3) == (params.min_tokens == 0)
    assert not changes_logits(SamplingParams(seed=0, min_tokens=3), 2)
