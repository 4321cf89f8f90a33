"""draft_worker/model_drafter.py: batched, coupled guesses that run ahead of the verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec
import pytest
from torch import Tensor

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
from tests.fakes import BoundedRunner, FakeRunner

SAMPLINGS = pytest.mark.parametrize(
    "sampling", [GREEDY, WARM, PENALISED], ids=["greedy", "warm", "penalised"]
)


def target_tokens(request: DraftRequest, num_tokens: int, *, salt: int = 0) -> list[int]:
    """What a target emits after a request; `salt` 0 is the drafter's own model."""
    model = FakeRunner(vocab_size=V, num_blocks=1, block_size=1)
    tokens = list(request.token_ids)
    for _ in range(num_tokens):
        prefix = tokens if salt == 0 else [salt, *tokens]
        row = Row(request.sampling, tokens, request.prompt_len)
        tokens.append(sample(model.logits(prefix)[None], [row])[0])
    return tokens[len(request.token_ids) :]


def run(drafter: ModelDrafter, max_steps: int = 200) -> list[Proposal]:
    """Step until there is nothing to do."""
    proposals: list[Proposal] = []
    for _ in range(max_steps):
        if not drafter.has_work:
            return proposals
        proposals += drafter.step()
    raise AssertionError("the drafter never rests")


def path(base_len: int, token_ids: Iterable[int], session_id: str = "job/0") -> DraftPath:
    return DraftPath(session_id, base_len, tuple(token_ids))


@SAMPLINGS
def test_a_drafter_that_agrees_guesses_what_the_target_emits(sampling: SamplingParams) -> None:
    """Same model, parameters, noise and history: every guess is the target's own token."""
    drafter, request = make_drafter(), make_request(sampling=sampling)
    assert drafter.open(request)
    assert path(3, target_tokens(request, 10)) in run(drafter)


@SAMPLINGS
def test_confirmed_guesses_move_the_window_without_computing_them_again(
    sampling: SamplingParams,
) -> None:
    """Round after round, the guesses stay right and are ten ahead."""
    drafter, request = make_drafter(), make_request(sampling=sampling)
    truth = target_tokens(request, 60)
    drafter.open(request)
    run(drafter)
    for start in range(0, 50, 5):
        assert drafter.confirm(make_verdict(3 + start, *truth[start : start + 5]))
        assert path(8 + start, truth[start + 5 : start + 15]) in run(drafter)
    assert drafter.sessions["job/0"].num_misses == 0


@SAMPLINGS
def test_after_a_correction_it_goes_on_from_there(sampling: SamplingParams) -> None:
    """Against another model nearly every verdict corrects; the cache stays true."""
    drafter, request = make_drafter(), make_request(sampling=sampling)
    truth = target_tokens(request, 40, salt=9)
    drafter.open(request)
    for end in range(1, 40):
        run(drafter)
        assert drafter.confirm(make_verdict(2 + end, truth[end - 1]))
        confirmed = (*request.token_ids, *truth[:end])
        expected = target_tokens(msgspec.structs.replace(request, token_ids=confirmed), 10)
        run(drafter)
        assert drafter.sessions["job/0"].main.token_ids[3 + end :] == expected
    assert drafter.sessions["job/0"].num_misses > 20


def test_branches_are_sent_before_the_verdict() -> None:
    """The runner-up's continuation is at the target before the correction is known."""
    drafter, request = make_drafter(), make_request()
    drafter.open(request)
    first = run(drafter)
    runner_up = drafter.sessions["job/0"].guess_at(3).token_ids[1]
    branch = [p for p in first if isinstance(p, DraftPath) and p.token_ids[0] == runner_up]
    confirmed = msgspec.structs.replace(request, token_ids=(*request.token_ids, runner_up))
    expected = target_tokens(confirmed, 9)
    assert branch
    assert branch[-1].token_ids == (runner_up, *expected[: len(branch[-1].token_ids) - 1])


def test_a_correction_that_was_a_branch_costs_no_recomputation() -> None:
    """The branch becomes the main chain, with all it has computed."""
    drafter, request = make_drafter(), make_request()
    drafter.open(request)
    run(drafter)
    session = drafter.sessions["job/0"]
    runner_up = session.guess_at(3).token_ids[1]
    branch = session.branches[3, runner_up]
    length = len(branch.token_ids)
    assert drafter.confirm(make_verdict(3, runner_up))
    assert session.main is branch
    assert (session.num_misses, session.num_covered) == (1, 1)
    assert (len(branch.token_ids), branch.num_computed) == (length, length - 1)
    confirmed = msgspec.structs.replace(request, token_ids=(*request.token_ids, runner_up))
    assert path(4, target_tokens(confirmed, 10)) in run(drafter)


def test_the_first_guess_goes_out_alone_and_later_ones_in_chunks() -> None:
    """A target with nothing is served at once; one with guesses is not woken for each token."""
    drafter = make_drafter(limits=replace(EAGER, num_branches=0))
    drafter.open(make_request())
    lengths = [len(p.token_ids) for p in run(drafter) if isinstance(p, DraftPath)]
    assert lengths == [1, 3, 7, 10]


def test_guesses_the_target_lacks_go_out_before_the_next_computation() -> None:
    """When a verdict uses up all that was sent, what is ready is not held back for a step."""
    drafter, request = make_drafter(limits=replace(EAGER, num_branches=0)), make_request()
    truth = target_tokens(request, 6)
    drafter.open(request)
    while drafter.sessions["job/0"].num_ahead < 6:  # the first three are sent
        drafter.step()
    drafter.confirm(make_verdict(3, *truth[:3]))
    assert drafter.step() == [path(6, truth[3:])]
    assert drafter.counts["steps"] == 6


def test_a_long_prompt_is_prefilled_in_chunks_beside_running_sessions() -> None:
    """One pass holds a chunk of the new prompt and a row of the old session."""
    limits = replace(EAGER, max_num_batched_tokens=32, num_branches=0)
    drafter = make_drafter(limits=limits)
    drafter.open(make_request("a/0"))
    drafter.step()
    drafter.open(make_request("b/0", token_ids=tuple(i % V for i in range(100))))
    before = drafter.counts.copy()
    drafter.step()
    assert drafter.counts["rows"] - before["rows"] == 2
    proposals = run(drafter)
    truth = target_tokens(make_request(token_ids=tuple(i % V for i in range(100))), 10)
    assert path(100, truth, "b/0") in proposals
    assert path(3, target_tokens(make_request(), 10), "a/0") in proposals


def test_guesses_stop_at_an_end_token_and_at_the_length_limit() -> None:
    """Nothing is guessed beyond the end of the sequence."""
    request = make_request()
    truth = target_tokens(request, 10)
    ending = msgspec.structs.replace(GREEDY, stop_token_ids=(truth[4],))
    drafter = make_drafter()
    drafter.open(make_request("a/0", sampling=ending))
    drafter.open(make_request("b/0", max_len=6))
    run(drafter)
    assert drafter.sessions["a/0"].main.token_ids[3:] == truth[: truth.index(truth[4]) + 1]
    assert drafter.sessions["b/0"].main.token_ids[3:] == truth[:3]


def test_a_repeated_request_resynchronises_and_tells_all_again() -> None:
    """After a takeover, the new owner gets the guesses that exist, at once."""
    drafter, request = make_drafter(), make_request()
    truth = target_tokens(request, 20)
    drafter.open(request)
    run(drafter)
    runs = drafter.counts["steps"]
    again = msgspec.structs.replace(
        request, epoch=2, token_ids=(*request.token_ids, *truth[:4]), target_id="target:b"
    )
    assert drafter.open(again)
    assert drafter.step()[0] == DraftPath("job/0", 7, tuple(truth[4:10]))
    assert drafter.counts["steps"] == runs
    assert path(7, truth[4:14]) in run(drafter)


def test_a_request_that_tells_another_story_starts_anew() -> None:
    """Same id, other tokens: nothing of the old session is kept."""
    drafter = make_drafter()
    drafter.open(make_request())
    run(drafter)
    other = make_request(token_ids=(5, 6))
    assert drafter.open(other)
    assert path(2, target_tokens(other, 10)) in run(drafter)
    drafter.close("job/0")
    assert drafter.usage == 0.0


def test_out_of_blocks_branches_go_first_and_then_a_session() -> None:
    """Main chains live on; a session without a block left is closed, and says so."""
    drafter = make_drafter(num_blocks=6, block_size=4)
    drafter.open(make_request("a/0", token_ids=tuple(range(11))))
    drafter.open(make_request("b/0", token_ids=tuple(range(7))))
    proposals = run(drafter)
    closed = [p.session_id for p in proposals if isinstance(p, DraftClosed)]
    assert len(closed) == 1
    assert list(drafter.sessions) == ["b/0" if closed == ["a/0"] else "a/0"]
    drafter.close(next(iter(drafter.sessions)))
    assert drafter.usage == 0.0


def test_a_prompt_without_room_is_refused() -> None:
    """No half-opened session stays behind."""
    drafter = make_drafter(num_blocks=4, block_size=4)
    assert not drafter.open(make_request(token_ids=tuple(range(20))))
    assert drafter.usage == 0.0
    assert not drafter.sessions


def test_choices_of_one_job_share_their_prompt_and_other_jobs_do_not() -> None:
    """Prefix blocks are found again within a job only."""
    prompt = tuple(range(40))
    drafter = make_drafter()
    drafter.open(make_request("a/0", token_ids=prompt))
    run(drafter)
    drafter.close("a/0")
    drafter.open(make_request("a/1", token_ids=prompt))
    drafter.open(make_request("b/0", token_ids=prompt))
    assert drafter.sessions["a/1"].main.num_computed > 30
    assert drafter.sessions["b/0"].main.num_computed == 0


@pytest.mark.parametrize(
    "verdict", [make_verdict(3, -1), make_verdict(3, V), make_verdict(3, *[1] * 999)]
)
def test_a_verdict_that_cannot_be_true_is_not_followed(verdict: object) -> None:
    """Foreign ids and endless lists are refused, and the other sessions go on."""
    drafter = make_drafter()
    drafter.open(make_request())
    assert not drafter.confirm(verdict)  # type: ignore[arg-type]
    assert not drafter.confirm(make_verdict(3, 1, session_id="unknown/0"))
    assert run(drafter)


def test_hopeless_guesses_are_not_made() -> None:
    """Where the odds say that nothing further is worth a row, the drafter rests."""
    drafter = make_drafter(limits=replace(EAGER, min_odds=0.99))
    drafter.open(make_request())
    run(drafter)
    assert drafter.sessions["job/0"].num_ahead == 1


class BrokenForSome(BoundedRunner):
    """A model that has no numbers for what begins with token 9, from the sixth token on."""

    def logits(self, prefix: Sequence[int]) -> Tensor:
        row = super().logits(prefix)
        is_broken = prefix[0] == 9 and len(prefix) >= 6
        return row * math.nan if is_broken else row


@SAMPLINGS
def test_a_session_without_usable_logits_is_closed_and_the_others_go_on(
    sampling: SamplingParams,
) -> None:
    """One DraftClosed, nothing said of it after that, its blocks free, and it may come back."""
    drafter = make_drafter(model=BrokenForSome)
    good = make_request("a/0", sampling=sampling)
    bad = make_request("b/0", token_ids=(9, 2, 3), sampling=sampling)
    drafter.open(bad)
    drafter.open(good)
    proposals = run(drafter)
    of_bad = [one for one in proposals if one.session_id == "b/0"]
    assert of_bad[-1] == DraftClosed("b/0")
    assert all(isinstance(one, DraftPath) for one in of_bad[:-1])
    assert path(3, target_tokens(good, 10), "a/0") in proposals
    assert set(drafter.sessions) == {"a/0"}
    drafter.close("a/0")
    assert drafter.usage == 0.0
    assert drafter.open(bad)


def test_a_step_has_no_more_tokens_than_it_may() -> None:
    """More sequences to grow and to prefill than fit: some wait, and all get their guesses."""
    limits = replace(EAGER, max_num_rows=64, max_num_batched_tokens=5)
    drafter = make_drafter(num_blocks=400, limits=limits)
    requests = [
        make_request(f"job{index}/0", token_ids=tuple(range(index + 1, 3 * index + 2)))
        for index in range(8)
    ]
    for request in requests:
        assert drafter.open(request)
    proposals = run(drafter, max_steps=2_000)
    for request in requests:
        truth = target_tokens(request, 10)
        assert path(len(request.token_ids), truth, request.session_id) in proposals
