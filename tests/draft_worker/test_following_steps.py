"""Steps of draft_worker/model_drafter.py that begin before the one before is read."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest

from draft_worker.drafter import Proposal
from draft_worker.model_drafter import ModelDrafter
from shared.engine.sampling import Row, sample
from shared.protocol.messages import DraftClosed, DraftPath, DraftRequest
from shared.protocol.sampling import SamplingParams
from tests.draft_worker.builders import (
    EAGER,
    GREEDY,
    PENALISED,
    WARM,
    V,
    make_drafter,
    make_request,
    make_verdict,
)
from tests.draft_worker.test_model_drafter import BrokenForSome
from tests.fakes import FakeRunner

ALONE = replace(EAGER, num_branches=0, chunk=1)
SAMPLINGS = pytest.mark.parametrize(
    "sampling", [GREEDY, WARM, PENALISED], ids=["greedy", "warm", "penalised"]
)


def target_tokens(request: DraftRequest, num_tokens: int) -> list[int]:
    """What a target of the drafter's own model emits after a request."""
    model = FakeRunner(vocab_size=V, num_blocks=1, block_size=1)
    tokens = list(request.token_ids)
    for _ in range(num_tokens):
        row = Row(request.sampling, tokens, request.prompt_len)
        tokens.append(sample(model.logits(tokens)[None], [row])[0])
    return tokens[len(request.token_ids) :]


def run(drafter: ModelDrafter, max_steps: int = 200) -> list[Proposal]:
    """Step until there is nothing to do."""
    proposals: list[Proposal] = []
    for _ in range(max_steps):
        if not drafter.has_work:
            return proposals
        proposals += drafter.step()
    raise AssertionError("the drafter never rests")


def path(base_len: int, token_ids: Sequence[int]) -> DraftPath:
    return DraftPath("job/0", base_len, tuple(token_ids))


def test_a_step_gives_what_the_one_before_found() -> None:
    """Nothing at first; after the last one there is one more to be read."""
    drafter, request = make_drafter(limits=ALONE, can_follow=True), make_request()
    truth = target_tokens(request, 10)
    drafter.open(request)
    assert drafter.step() == []
    for length in range(1, 11):
        assert drafter.has_work
        assert drafter.step() == [path(3, truth[:length])]
    assert drafter.counts["steps"] == 10
    assert drafter.step() == []
    assert not drafter.has_work


@SAMPLINGS
def test_guesses_are_those_of_steps_one_by_one(sampling: SamplingParams) -> None:
    """With branches, verdicts and corrections between; penalties wait for what they depend on."""
    drafter, request = make_drafter(can_follow=True), make_request(sampling=sampling)
    drafter.open(request)
    confirmed = request
    for number in range(12):
        right = target_tokens(confirmed, 10)
        for _ in range(number):
            drafter.step()
        wrong = (right[2] + 1) % V
        base_len = len(confirmed.token_ids)
        assert drafter.confirm(make_verdict(base_len, *right[:2], wrong))
        told = (*confirmed.token_ids, *right[:2], wrong)
        confirmed = msgspec.structs.replace(request, token_ids=told)
    proposals = run(drafter)
    assert path(len(confirmed.token_ids), target_tokens(confirmed, 10)) in proposals


def test_news_overtake_what_is_under_way() -> None:
    """What was begun before a correction says nothing about what comes after it."""
    drafter, request = make_drafter(limits=ALONE, can_follow=True), make_request()
    truth = target_tokens(request, 10)
    drafter.open(request)
    for _ in range(3):
        drafter.step()
    wrong = (truth[0] + 1) % V
    drafter.confirm(make_verdict(3, wrong))
    told = msgspec.structs.replace(request, token_ids=(*request.token_ids, wrong))
    right = target_tokens(told, 10)
    assert drafter.step() == []  # the step that this begins is the first of use
    assert drafter.step() == [path(4, right[:1])]


def test_a_token_beyond_all_guesses_overtakes_the_guess_in_its_place() -> None:
    """All were right, and the target has one more than was known."""
    drafter, request = make_drafter(limits=ALONE, can_follow=True), make_request()
    truth = target_tokens(request, 20)
    drafter.open(request)
    for _ in range(3):
        drafter.step()
    assert drafter.sessions["job/0"].num_ahead == 2
    drafter.confirm(make_verdict(3, *truth[:3]))
    assert path(6, truth[3:13]) in run(drafter)


def test_nothing_is_guessed_behind_an_end() -> None:
    """A step that was begun behind the last token's comes to nothing."""
    request = make_request()
    truth = target_tokens(request, 10)
    ending = msgspec.structs.replace(GREEDY, stop_token_ids=(truth[4],))
    drafter = make_drafter(limits=ALONE, can_follow=True)
    drafter.open(make_request(sampling=ending))
    run(drafter)
    end = truth.index(truth[4]) + 1
    assert drafter.sessions["job/0"].main.token_ids[3:] == truth[:end]
    assert drafter.counts["steps"] == end + 1
    drafter.confirm(make_verdict(3, *truth[: end - 1], (truth[end - 1] + 1) % V))
    told = (*request.token_ids, *truth[: end - 1], (truth[end - 1] + 1) % V)
    on = target_tokens(make_request(token_ids=told, prompt_len=3, sampling=ending), 1)
    assert path(len(told), on) in run(drafter)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_session_without_usable_logits_is_closed_once(sampling: SamplingParams) -> None:
    """Though another step was begun for it; the same id may come again at once."""
    drafter = make_drafter(model=BrokenForSome, can_follow=True)
    bad = make_request("b/0", token_ids=(9, 2, 3), sampling=sampling)
    drafter.open(bad)
    proposals: list[Proposal] = []
    while not any(isinstance(one, DraftClosed) for one in proposals):
        proposals += drafter.step()
    assert proposals[-1] == DraftClosed("b/0")
    assert drafter.open(make_request("b/0", sampling=sampling))
    assert all(isinstance(one, DraftPath) and one.base_len == 3 for one in run(drafter))
    drafter.close("b/0")
    assert drafter.usage == 0.0


def test_it_listens_only_while_a_step_is_under_way() -> None:
    """And not while something is to be said."""
    drafter, request = make_drafter(limits=ALONE, can_follow=True), make_request()
    assert drafter.listen_s == 0.0
    drafter.open(request)
    assert drafter.listen_s == 0.0
    drafter.step()
    drafter._pace._step_s = 60.0
    assert drafter.listen_s > 50.0
    drafter._ready["job/0"] = [path(3, [1])]
    assert drafter.listen_s == 0.0
