import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from shared.engine.sampling import (
    NOTHING,
    Row,
    UnusableLogits,
    VerifyRequest,
    choice_seed,
    rank,
    sample,
    verify,
)
from shared.protocol.sampling import SamplingParams
from tests.reference_sampler import (
    adjusted,
    all_logits,
    all_rows,
    kept_probabilities,
    random_logits,
    slow_sample,
    tensor,
)

VOCAB_SIZES = [1, 63, 1009, 4096]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_sampler_follows_its_definition(vocab_size: int, data: st.DataObject) -> None:
    """Whatever the parameters, the same token as the slow way, bit for bit."""
    row = data.draw(all_rows(vocab_size))
    logits = data.draw(all_logits(vocab_size))
    assert sample(tensor(logits), [row]) == [slow_sample(logits, row)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_batch_does_not_matter(data: st.DataObject) -> None:
    """A row's token is the same alone, among others, and in any order."""
    batch = [(data.draw(all_logits(63)), data.draw(all_rows(63))) for _ in range(4)]
    alone = [sample(tensor(logits), [row])[0] for logits, row in batch]
    order = data.draw(st.permutations(range(4)))
    together = sample(tensor(*(batch[i][0] for i in order)), [batch[i][1] for i in order])
    assert together == [alone[i] for i in order]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), num=st.integers(1, 6))
def test_the_first_ranked_is_the_sample(vocab_size: int, data: st.DataObject, num: int) -> None:
    """The drafter's best guess is what the sampler would say; the others come in order."""
    row = data.draw(all_rows(vocab_size))
    logits = tensor(data.draw(all_logits(vocab_size)))
    ((token_ids, scores),) = rank(logits, [row], num)
    assert token_ids[0] == sample(logits, [row])[0]
    assert len(token_ids) == len(scores) == len(set(token_ids)) <= num
    assert scores == sorted(scores, reverse=True)


def test_a_drafter_ranks_as_the_sampler_nearly_always() -> None:
    """Leaving out tokens far behind the best changes few guesses, and is allowed to."""
    rows = [Row(SamplingParams(seed=5), [1] * (index + 1), 1) for index in range(400)]
    logits = tensor(*(random_logits(4096, index) for index in range(400)))
    near, exact = rank(logits, rows, 2, only_near=True), sample(logits, rows)
    same = sum(top.token_ids[0] == token_id for top, token_id in zip(near, exact, strict=True))
    assert same >= 390


def test_ranking_leaves_the_logits_alone() -> None:
    """Penalties work on a copy."""
    logits = tensor(random_logits(63, 1))
    before = logits.clone()
    rank(logits, [Row(SamplingParams(seed=1, repetition_penalty=1.5), [1, 2, 3], 1)], 3)
    assert torch.equal(logits, before)


def test_the_runner_up_wins_when_the_winner_may_not() -> None:
    """Ranks are what the sampler would say next, so branches go where corrections come from."""
    logits = random_logits(63, 1)
    params = SamplingParams(seed=5, temperature=0.7)
    ((token_ids, _),) = rank(tensor(logits), [Row(params, [1], 1)], 3)
    for better, token_id in itertools.pairwise(token_ids):
        logits[better] = -np.inf
        assert sample(tensor(logits), [Row(params, [1], 1)]) == [token_id]


SHAPES = {
    "T=1": SamplingParams(seed=0),
    "T=0.7": SamplingParams(seed=0, temperature=0.7),
    "top-k": SamplingParams(seed=0, top_k=4),
    "top-p": SamplingParams(seed=0, temperature=0.7, top_p=0.8),
    "min-p": SamplingParams(seed=0, temperature=1.3, min_p=0.05),
    "all": SamplingParams(
        seed=0,
        temperature=0.7,
        top_k=12,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.2,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias=((3, 2.0), (5, -3.0)),
    ),
}


@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("over", ["seeds", "positions"])
def test_frequencies_follow_the_distribution(params: SamplingParams, over: str) -> None:
    """Over many seeds, and over many positions of one seed, by chi-square."""
    logits = random_logits(20, 3, spread=1.5)
    num = 2_000

    def row(index: int) -> Row:
        values = {name: getattr(params, name) for name in params.__struct_fields__}
        seed, length = (index, 8) if over == "seeds" else (11, 8 + index)
        prompt = [1, 2, 3] + [1] * (length - 8)
        return Row(
            SamplingParams(**(values | {"seed": seed})), [*prompt, 3, 3, 4, 7, 9], len(prompt)
        )

    expected = kept_probabilities(adjusted(logits.tolist(), row(0)), params)
    found = Counter(sample(tensor(*[logits] * num), [row(index) for index in range(num)]))
    assert set(found) <= set(expected)
    large = [i for i, probability in expected.items() if probability * num >= 5]
    rest = num - sum(found[i] for i in large)
    rest_expected = num - sum(expected[i] * num for i in large)
    observed = [*(found[i] for i in large), *([rest] if rest_expected > 1e-6 else [])]
    wanted = [
        *(expected[i] * num for i in large),
        *([rest_expected] if rest_expected > 1e-6 else []),
    ]
    assert len(wanted) < 2 or stats.chisquare(observed, wanted).pvalue > 1e-3


def test_greedy_takes_the_lowest_id_on_ties() -> None:
    """Temperature 0 is an argmax that everybody computes alike."""
    logits = np.zeros((2, 63), np.float32)
    logits[1, [7, 60]] = 1.0
    rows_ = [Row(SamplingParams(seed=1, temperature=0.0), [1], 1)] * 2
    assert sample(torch.from_numpy(logits), rows_) == [0, 7]


def test_no_stop_id_comes_before_min_tokens() -> None:
    """Output tokens are counted without the prompt; from then on the stop id may come."""
    logits = np.zeros(5, np.float32)
    logits[2] = 50.0
    params = SamplingParams(seed=1, min_tokens=2, stop_token_ids=(2, 900))
    chosen = [sample(tensor(logits), [Row(params, [1] * n, 3)])[0] for n in (3, 4, 5)]
    assert chosen[0] != 2
    assert chosen[1] != 2
    assert chosen[2] == 2


BAD = {"NaN": math.nan, "+inf": math.inf}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_unusable_logits_name_their_row(value: float, temperature: float) -> None:
    """One bad value makes the row an error, and says which row to leave out."""
    logits = np.stack([random_logits(63, i) for i in range(3)])
    logits[1, 40] = value
    params = SamplingParams(seed=1, temperature=temperature)
    with pytest.raises(UnusableLogits, match="row 1") as caught:
        sample(torch.from_numpy(logits), [Row(params, [1], 1)] * 3)
    assert caught.value.row == 1
    ranked = rank(torch.from_numpy(logits), [Row(params, [1], 1)] * 3, 2)
    assert [top is NOTHING for top in ranked] == [False, True, False]


def test_nothing_left_to_choose_is_an_error() -> None:
    """All tokens masked, by the model or by min_tokens."""
    masked = np.full(4, -np.inf, np.float32)
    params = SamplingParams(seed=1, min_tokens=1, stop_token_ids=(0,))
    for logits, row in [
        (masked, Row(SamplingParams(seed=1), [1], 1)),
        (np.zeros(1, np.float32), Row(params, [0], 1)),
    ]:
        with pytest.raises(UnusableLogits):
            sample(tensor(logits), [row])


def test_derived_seeds_are_distinct_and_fixed() -> None:
    """Choice 0 has the job's own seed; each other its own, always the same."""
    seeds = [choice_seed(42, choice) for choice in range(8)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert choice_seed(42, 3) == seeds[3] != choice_seed(43, 3)


def repeated_sample(logits: NDArray[np.float32], request: VerifyRequest) -> list[int]:
    """Plain decoding over the same rows, as long as the draft agrees."""
    token_ids = list(request.token_ids)
    for index, draft in enumerate([*request.draft_token_ids, None]):
        token_ids += sample(
            tensor(logits[index]), [Row(request.params, token_ids, request.prompt_len)]
        )
        if token_ids[-1] != draft:
            break
    return token_ids[len(request.token_ids) :]


NUM_IDS = 63  # the vocabulary of the drafts below
Draft = Callable[[list[int]], list[int]]
DRAFTS: dict[str, Draft] = {
    "right": lambda right: right,
    "none": lambda right: right[:0],
    "wrong at once": lambda right: [(right[0] + 1) % NUM_IDS, *right[1:]],
    "wrong later": lambda right: [*right[:2], (right[2] + 1) % NUM_IDS, *right[3:]],
    "negative": lambda right: [right[0], -1, -NUM_IDS],
    "beyond the vocabulary": lambda right: [right[0], NUM_IDS, NUM_IDS + right[1]],
    "huge": lambda right: [right[0], 2**63 + right[1], -(2**70)],
    "shifted by 2**32": lambda right: [right[0] + 2**32, right[1] - 2**32],
}


@pytest.mark.parametrize("make_draft", DRAFTS.values(), ids=DRAFTS.keys())
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_verifying_is_repeated_sampling(make_draft: Draft, data: st.DataObject) -> None:
    """Drafts decide how many tokens a round confirms, never which ones."""
    requests, logits = [], []
    for _ in range(3):
        row = data.draw(all_rows(NUM_IDS))
        values = np.stack([data.draw(all_logits(NUM_IDS)) for _ in range(6)])
        right: list[int] = []
        for index in range(5):
            history = [*row.token_ids, *right]
            right += sample(tensor(values[index]), [Row(row.params, history, row.prompt_len)])
        draft = make_draft(right)
        requests.append(VerifyRequest(row.params, row.token_ids, row.prompt_len, draft))
        logits.append(values[: len(draft) + 1])
    confirmed = verify(torch.from_numpy(np.concatenate(logits)), requests)
    assert confirmed == [
        repeated_sample(values, request) for values, request in zip(logits, requests, strict=True)
    ]
    assert all(0 <= token_id < NUM_IDS for tokens in confirmed for token_id in tokens)


def test_an_unusable_row_ends_its_own_request_only() -> None:
    """The tokens before it stand; none at all says that the request cannot go on."""
    logits = np.stack([random_logits(63, i) for i in range(6)])
    params = SamplingParams(seed=1, temperature=0.0)
    right = [int(row.argmax()) for row in logits]
    logits[0], logits[4] = np.nan, np.inf
    requests = [
        VerifyRequest(params, [1], 1, [right[0]]),
        VerifyRequest(params, [1], 1, []),
        VerifyRequest(params, [1], 1, [right[3], right[4]]),
    ]
    logits[0] = np.nan
    confirmed = verify(torch.from_numpy(logits), requests)
    assert confirmed == [[], [right[2]], [right[3]]]
    logits[1] = np.nan
    requests[0] = VerifyRequest(params, [1], 1, [(right[0] + 1) % 63])
    logits[0] = random_logits(63, 0)
    assert verify(torch.from_numpy(logits), requests)[0] == [right[0]]


def test_an_empty_batch_is_empty() -> None:
    """No rows, no tokens."""
    nothing = torch.empty(0, 63)
    assert sample(nothing, []) == []
    assert verify(nothing, []) == []
    assert rank(nothing, [], 3) == []
