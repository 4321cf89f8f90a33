import math
import os
import random
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.engine import sampling
from shared.engine.adjustments import changes_logits
from shared.engine.filters import has_filters
from shared.engine.gpu import adjusted_rows
from shared.engine.gpu.sampling import GpuSampler, sampler_bytes
from shared.engine.sampling import Row, VerifyRequest
from shared.protocol.sampling import SamplingParams
from tests.reference_sampler import all_logits, all_rows, random_logits, tensor

# The interpreter computes with numpy, which tells of overflow where a GPU quietly has infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

NUM_IDS = 63  # the vocabulary of the drafts below
MAX_ROWS = 24
GRAPH_SIZES = (1, 4, 16)
# A row takes the interpreter a tenth of a second, and a GPU no time at all.
MANY = 1 if os.environ["TRITON_INTERPRET"] == "1" else 20
GREEDY = SamplingParams(seed=1, temperature=0.0)
PARAMS = [
    *(SamplingParams(seed=seed, temperature=0.7) for seed in range(4)),
    GREEDY,
    SamplingParams(seed=8, top_p=0.7),
    SamplingParams(seed=8, temperature=0.0, top_k=3),
    SamplingParams(seed=9, temperature=0.7, presence_penalty=0.5),
    SamplingParams(seed=9, min_tokens=3, stop_token_ids=(5, 6)),
]

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


@lru_cache
def sampler(vocab_size: int, device: str) -> GpuSampler:
    """One for all examples, as in a worker: what a round leaves behind must not matter."""
    return GpuSampler(max_rows=MAX_ROWS, vocab_size=vocab_size, device=device)


def requests_of(rows: list[Row], drafts: list[list[int]]) -> list[VerifyRequest]:
    return [
        VerifyRequest(row.params, row.token_ids, row.prompt_len, draft)
        for row, draft in zip(rows, drafts, strict=True)
    ]


@pytest.mark.parametrize("vocab_size", [1, 63, 1009, 4096])
@settings(max_examples=6 * MANY, deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_the_definition(
    vocab_size: int, device: str, data: st.DataObject
) -> None:
    """Whatever the parameters, the same token as on the CPU."""
    rows = [data.draw(all_rows(vocab_size)) for _ in range(2)]
    logits = tensor(*(data.draw(all_logits(vocab_size)) for _ in rows))
    requests = requests_of(rows, [[], []])
    confirmed = sampler(vocab_size, device).verify(logits.to(device), requests)
    assert confirmed == sampling.verify(logits, requests)


@pytest.mark.parametrize("make_draft", DRAFTS.values(), ids=DRAFTS.keys())
@settings(max_examples=2 * MANY, deadline=None)
@given(data=st.data())
def test_drafts_decide_how_many_never_which(
    make_draft: Draft, device: str, data: st.DataObject
) -> None:
    """A round of several requests confirms what the definition confirms."""
    rows, drafts, logits = [], [], []
    for _ in range(2):
        row = data.draw(all_rows(NUM_IDS))
        values = [data.draw(all_logits(NUM_IDS)) for _ in range(5)]
        right: list[int] = []
        for one in values[:4]:
            history = [*row.token_ids, *right]
            right += sampling.sample(tensor(one), [Row(row.params, history, row.prompt_len)])
        rows.append(row)
        drafts.append(make_draft(right))
        logits += values[: len(drafts[-1]) + 1]
    requests = requests_of(rows, drafts)
    confirmed = sampler(NUM_IDS, device).verify(tensor(*logits).to(device), requests)
    assert confirmed == sampling.verify(tensor(*logits), requests)


@settings(max_examples=4 * MANY, deadline=None)
@given(data=st.data())
def test_the_batch_does_not_matter(device: str, data: st.DataObject) -> None:
    """A row's ranking is the same to the last bit alone, among others, and in any order."""
    batch = [(data.draw(all_logits(NUM_IDS)), data.draw(all_rows(NUM_IDS))) for _ in range(3)]
    ours = sampler(NUM_IDS, device)
    alone = [ours.rank(tensor(logits).to(device), [row], 2)[0] for logits, row in batch]
    order = data.draw(st.permutations(range(3)))
    logits = tensor(*(batch[i][0] for i in order)).to(device)
    assert ours.rank(logits, [batch[i][1] for i in order], 2) == [alone[i] for i in order]


@pytest.mark.parametrize("vocab_size", [1, 63, 4096])
@settings(max_examples=4 * MANY, deadline=None)
@given(data=st.data(), num=st.integers(1, 4))
def test_ranks_are_those_of_the_definition(
    vocab_size: int, device: str, data: st.DataObject, num: int
) -> None:
    """The drafter's guesses too, and the distances between them."""
    rows = [data.draw(all_rows(vocab_size)) for _ in range(2)]
    logits = tensor(*(data.draw(all_logits(vocab_size)) for _ in rows))
    tops = sampler(vocab_size, device).rank(logits.to(device), rows, num)
    expected = sampling.rank(logits, rows, num)
    assert [top.token_ids for top in tops] == [top.token_ids for top in expected]
    for top, right in zip(tops, expected, strict=True):
        assert top.scores == pytest.approx(right.scores, abs=1e-9)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-3, 50.0])
@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_extreme_temperatures_and_seeds(temperature: float, seed: int, device: str) -> None:
    """Values that overflow, or that hardly differ, and all 64 bits of the seed."""
    params = SamplingParams(seed=seed, temperature=temperature)
    requests = [VerifyRequest(params, [1] * 7, 1, [])]
    logits = tensor(random_logits(1009, seed % 1000))
    confirmed = sampler(1009, device).verify(logits.to(device), requests)
    assert confirmed == sampling.verify(logits, requests)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_lowest_id_wins_among_equals(temperature: float, device: str) -> None:
    """Also among those of different blocks; with noise, equal logits are told apart by it."""
    params = SamplingParams(seed=9, temperature=temperature)
    values = np.zeros((2, 4096), np.float32)
    values[1, [3000, 4000]] = 2.0
    logits = torch.from_numpy(values)
    requests = [VerifyRequest(params, [1], 1, []) for _ in range(2)]
    confirmed = sampler(4096, device).verify(logits.to(device), requests)
    assert confirmed == sampling.verify(logits, requests)
    if temperature == 0:
        assert confirmed == [[0], [3000]]


def bad_rows() -> dict[str, NDArray[np.float32]]:
    rows = {name: random_logits(NUM_IDS, 3) for name in ("NaN", "+inf", "both")}
    rows["NaN"][40] = rows["both"][0] = math.nan
    rows["+inf"][40] = rows["both"][62] = math.inf
    return rows | {"masked": np.full(NUM_IDS, -np.inf, np.float32)}


@pytest.mark.parametrize("bad", bad_rows().values(), ids=bad_rows().keys())
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_unusable_row_ends_its_own_request_only(
    bad: NDArray[np.float32], temperature: float, device: str
) -> None:
    """The tokens before it stand; none at all says that the request cannot go on."""
    params = SamplingParams(seed=1, temperature=temperature)
    values = [random_logits(NUM_IDS, index) for index in range(6)]
    ((right,),) = sampling.verify(tensor(values[3]), [VerifyRequest(params, [1], 1, [])])
    values[0] = values[4] = bad
    requests = requests_of([Row(params, [1], 1)] * 3, [[5], [], [right, 7]])
    logits = tensor(*values)
    confirmed = sampler(NUM_IDS, device).verify(logits.to(device), requests)
    assert confirmed == sampling.verify(logits, requests)
    assert (confirmed[0], confirmed[2]) == ([], [right])
    ranked = sampler(NUM_IDS, device).rank(logits[:1].to(device), [Row(params, [1], 1)], 2)
    assert ranked == [sampling.NOTHING]


def test_padding_rows_are_ignored(device: str) -> None:
    """A graph's logits have more rows than the round; what they hold is nobody's."""
    values = np.full((MAX_ROWS, NUM_IDS), np.nan, np.float32)
    values[:2] = [random_logits(NUM_IDS, 1), random_logits(NUM_IDS, 2)]
    logits = torch.from_numpy(values)
    requests = [VerifyRequest(GREEDY, [1], 1, [int(values[0].argmax())])]
    ours = sampler(NUM_IDS, device)
    ours.stage(requests)
    results = ours.launch(logits.to(device))
    assert ours.confirmed(results) == sampling.verify(logits[:2], requests)


def test_bf16_logits_are_taken_as_they_are(device: str) -> None:
    """The tokens of their exact values, whatever stands beside a row in memory."""
    wide = torch.from_numpy(np.stack([random_logits(4111, i) for i in range(4)])).bfloat16()
    logits = wide[:, :4096]
    requests = requests_of([Row(SamplingParams(seed=4), [1, 2], 1)] * 4, [[], [], [], []])
    confirmed = sampler(4096, device).verify(logits.to(device), requests)
    assert confirmed == sampling.verify(logits.float(), requests)


def test_without_requests_nothing_is_launched(device: str) -> None:
    """A round of prefill chunks alone: not even logits that no launch would take are looked at."""
    nothing = torch.empty(0, NUM_IDS + 1, device=device)
    assert sampler(NUM_IDS, device).verify(nothing, []) == []
    assert sampler(NUM_IDS, device).begin_verify(nothing, [])() == []
    assert sampler(NUM_IDS, device).rank(nothing, [], 3) == []


def random_round(rng: random.Random, num_requests: int, num_drafts: int) -> list[VerifyRequest]:
    """Requests of all kinds, as they come and go."""
    requests = []
    for _ in range(num_requests):
        params = rng.choice(PARAMS)
        tokens = [rng.randrange(NUM_IDS) for _ in range(rng.randint(1, 9))]
        drafts = [rng.randrange(NUM_IDS) for _ in range(rng.randint(0, num_drafts))]
        requests.append(VerifyRequest(params, tokens, 1, drafts))
    return requests


def kinds(num_rows: int, num: int, requests: list[VerifyRequest]) -> list[tuple[int, int, bool]]:
    """The graph that such a round is to be replayed in, or none."""
    if any(changes_logits(one.params, len(one.token_ids) - 1) for one in requests):
        return []
    size = next(size for size in GRAPH_SIZES if size >= num_rows)
    params = [one.params for one in requests]
    return [(size, num, any(one.temperature > 0 and has_filters(one) for one in params))]


@pytest.mark.parametrize("num_rounds", [12 * MANY])
def test_logits_of_graphs_are_chosen_from_by_replays(num_rounds: int, device: str) -> None:
    """The same tokens, whatever was staged before; other logits and other rounds are launched."""
    rng = random.Random(11)
    ours = GpuSampler(max_rows=MAX_ROWS, vocab_size=NUM_IDS, device=device)
    buffer = torch.full((16, NUM_IDS), torch.nan, device=device)
    ours.capture(buffer, GRAPH_SIZES, num_ranks=(3,))
    assert ours._graphs is not None
    replays = ours._graphs.replays
    replayed: list[tuple[int, int, bool]] = []
    for key, replay in list(replays.items()):
        replays[key] = partial(_noted, replayed, key[1:], replay)
    expected: list[tuple[int, int, bool]] = []
    for number in range(num_rounds):
        requests = random_round(rng, rng.randint(1, 4), 3)
        num_rows = sum(len(request.draft_token_ids) + 1 for request in requests)
        logits = tensor(*(random_logits(NUM_IDS, 99 * number + row) for row in range(num_rows)))
        buffer[:num_rows] = logits.to(device)
        is_own = rng.random() < 0.7
        there = buffer[:num_rows] if is_own else logits.to(device)
        assert ours.verify(there, requests) == sampling.verify(logits, requests)
        expected += kinds(num_rows, 1, requests) if is_own else []
        rows = [Row(one.params, one.token_ids, 1) for one in requests]
        ranked = ours.rank(buffer[: len(rows)], rows, 3)
        right = sampling.rank(buffer[: len(rows)].cpu(), rows, 3)
        assert [top.token_ids for top in ranked] == [top.token_ids for top in right]
        expected += kinds(len(rows), 3, requests)
    assert replayed == expected
    assert {(16, 1, False), (4, 3, False)} <= set(replayed)
    assert any(has_filters for _, _, has_filters in replayed)


def _noted(
    seen: list[tuple[int, int, bool]], key: tuple[int, int, bool], replay: Callable[[], None]
) -> None:
    seen.append(key)
    replay()


def test_a_round_without_a_graph_of_its_size_is_launched(device: str) -> None:
    """More rows than the largest graph, and ranks that were not asked for."""
    ours = GpuSampler(max_rows=MAX_ROWS, vocab_size=NUM_IDS, device=device)
    logits = tensor(*(random_logits(NUM_IDS, row) for row in range(5)))
    buffer = logits.to(device)
    ours.capture(buffer, (1, 4))
    requests = requests_of([Row(SamplingParams(seed=4), [1, 2], 1)] * 5, [[]] * 5)
    assert ours.verify(buffer, requests) == sampling.verify(logits, requests)
    rows = [Row(GREEDY, [1], 1)]
    assert ours.rank(buffer[:1], rows, 2)[0].token_ids == sampling.rank(logits[:1], rows, 2)[0][0]


def test_a_request_that_cannot_be_staged_leaves_no_trace(device: str) -> None:
    """The others, and rounds after it, get their own tokens."""
    ours = GpuSampler(max_rows=MAX_ROWS, vocab_size=NUM_IDS, device=device)
    logits = tensor(*(random_logits(NUM_IDS, row) for row in range(3)))
    rows = [Row(SamplingParams(seed=seed), [1, 2], 1) for seed in (4, 5)]
    requests = requests_of(rows, [[], [3]])
    expected = sampling.verify(logits, requests)
    assert ours.verify(logits.to(device), requests) == expected
    for params in (SamplingParams(seed=2**64), SamplingParams(seed=1, top_p=0.9, min_p="x")):  # type: ignore[arg-type]  # as a bug might
        with pytest.raises((OverflowError, TypeError)):
            ours.verify(logits.to(device), requests_of([Row(params, [1], 1)] * 3, [[]] * 3))
    assert ours.verify(logits.to(device), requests) == expected
    assert ours.verify(logits[:1].to(device), requests[:1]) == expected[:1]


def test_more_adjusted_rows_than_there_is_room_for_take_turns(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filtered or not, beside rows that are not adjusted."""
    monkeypatch.setattr(adjusted_rows, "MAX_ROWS", 2)
    ours = GpuSampler(max_rows=MAX_ROWS, vocab_size=NUM_IDS, device=device)
    logits = tensor(*(random_logits(NUM_IDS, row) for row in range(12)))
    params = [
        SamplingParams(seed=1, repetition_penalty=1.3, top_k=9),
        SamplingParams(seed=2, temperature=0.7),
        SamplingParams(seed=3, temperature=0.7, frequency_penalty=0.4),
        GREEDY,
    ]
    rows = [Row(one, [5, 6, 7, 6], 2) for one in params]
    requests = requests_of(rows, [[3, 4, 5], [6], [7, 8, 9], [1]])
    assert ours.verify(logits.to(device), requests) == sampling.verify(logits, requests)
    ranked = ours.rank(logits[:4].to(device), rows, 3)
    right = sampling.rank(logits[:4], rows, 3)
    assert [top.token_ids for top in ranked] == [top.token_ids for top in right]


def test_warming_up_leaves_no_trace(device: str) -> None:
    """Later rounds choose what they would have chosen."""
    ours = GpuSampler(max_rows=MAX_ROWS, vocab_size=NUM_IDS, device=device)
    ours.warm_up([torch.float32, torch.bfloat16], num_ranks=(3,))
    logits = tensor(*(random_logits(NUM_IDS, row) for row in range(9)))
    requests = random_round(random.Random(5), 3, 0)
    confirmed = ours.verify(logits[:3].to(device), requests)
    assert confirmed == sampling.verify(logits[:3], requests)


def test_memory_is_counted_to_the_byte(device: str) -> None:
    """All that is set aside, and what forming adjusted rows takes on the way."""
    ours = GpuSampler(max_rows=MAX_ROWS, vocab_size=NUM_IDS, device=device)
    tensors = [
        *ours._device_inputs,
        ours._device_results,
        *ours._workspace,
        ours._adjusted_rows._values,
    ]
    changes = adjusted_rows.MAX_CHANGES * adjusted_rows.CHANGE_BYTES
    assert sampler_bytes(MAX_ROWS, NUM_IDS) == sum(one.nbytes for one in tensors) + changes
