"""The engine: the same tokens whatever is guessed, and one session's fault stays its own."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from shared.engine.sampling import choice_seed
from shared.engine.spans import Span
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath, Verdict
from shared.protocol.records import Done, Failed, Finished, FinishReason, Tokens
from shared.protocol.sampling import SamplingParams
from target_worker.engine import IDLE
from target_worker.goodput import Policy
from target_worker.rounds import EngineBroken
from tests.fakes import FakeRunner
from tests.target_worker.engines import (
    DRAFTER,
    Drafter,
    V,
    make_job,
    make_rig,
    mixed_guess,
    reference,
    right_guess,
)

SAMPLING = {
    "greedy": SamplingParams(seed=1, temperature=0.0),
    "warm": SamplingParams(seed=2, temperature=0.7),
    "filtered": SamplingParams(
        seed=3,
        temperature=1.0,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias=((4, 2.0), (9, -100.0)),
        min_tokens=3,
        stop_token_ids=(0, 11),
    ),
}


@pytest.mark.parametrize("params", SAMPLING.values(), ids=SAMPLING)
@pytest.mark.parametrize("guesses", ["none", "right", "mixed"])
@pytest.mark.parametrize("num_blocks", [11, 200], ids=["tiny-pool", "large-pool"])
def test_guesses_and_preemption_never_change_a_token(
    params: SamplingParams, guesses: str, num_blocks: int
) -> None:
    """Many sessions, chunked prefill, preemption in the tiny pool: the reference's answers."""
    rig = make_rig(num_blocks=num_blocks, max_batched_tokens=9, max_num_seqs=5)
    jobs = {
        f"job{index}": make_job(
            f"job{index}", [(index * 7 + i) % V for i in range(3 + 2 * index)], params=[params]
        )
        for index in range(6)
    }
    answers = {name: reference(rig, job) for name, job in jobs.items()}
    truth = {f"{name}/0": [*job.prompt_ids, *answers[name]] for name, job in jobs.items()}
    drafter = {
        "none": None,
        "right": Drafter(right_guess(truth)),
        "mixed": Drafter(mixed_guess(truth)),
    }
    for job in jobs.values():
        rig.engine.submit(job)
    rig.run(drafter=drafter[guesses])
    assert {name: rig.tokens(name) for name in jobs} == answers
    assert (rig.engine.num_preemptions > 0) == (num_blocks == 11)


def test_right_guesses_save_rounds() -> None:
    """Five right guesses a round make six tokens of it, and the statistics say so."""
    rig = make_rig()
    job = make_job(max_tokens=36)
    answer = [*job.prompt_ids, *reference(rig, job)]
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": answer})))
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert rig.runner.num_runs < 12
    assert done.speculation.acceptance_rate == 1.0
    assert done.speculation.mean_acceptance_length > 5
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 36)


def test_a_stop_inside_a_draft_ends_the_session_there() -> None:
    """Right guesses behind the stop id are not emitted."""
    rig = make_rig()
    plain = reference(rig, make_job(max_tokens=30))
    params = SamplingParams(seed=7, stop_token_ids=(plain[9],))
    job = make_job(max_tokens=30, params=[params])
    expected = reference(rig, job)
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": [1, 2, 3, 4, 5, *plain]}, length=7)))
    done = rig.records()[-1]
    assert rig.tokens() == expected
    assert isinstance(done, Done)
    assert done.reasons == (FinishReason.STOP,)
    assert done.speculation.num_accepted_tokens < done.usage.completion_tokens


def test_a_stop_string_across_a_draft_ends_the_session_there() -> None:
    """The text decides in the same round; what was guessed behind it is dropped."""
    rig = make_rig()
    plain = reference(rig, make_job(max_tokens=30))
    stop = "".join(chr(ord("a") + token_id % 26) for token_id in plain[5:8])
    job = make_job(max_tokens=30, stop_strings=[stop])
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess({"job/0": [1, 2, 3, 4, 5, *plain]})))
    assert rig.tokens() == reference(rig, job, stop_strings=[stop])


def test_a_full_context_inside_a_draft_ends_the_session_there() -> None:
    """Guesses beyond the last position are not verified."""
    rig = make_rig()
    plain = reference(rig, make_job(max_tokens=30))
    for max_tokens in range(1, 9):
        job = make_job(f"job{max_tokens}", max_tokens=max_tokens)
        rig.engine.submit(job)
        answer = {f"job{max_tokens}/0": [1, 2, 3, 4, 5, *plain]}
        rig.run(drafter=Drafter(right_guess(answer, length=8)))
        assert rig.tokens(f"job{max_tokens}") == plain[:max_tokens]
        done = rig.records(f"job{max_tokens}")[-1]
        assert isinstance(done, Done)
        assert done.reasons == (FinishReason.LENGTH,)


def test_choices_share_the_prompt_and_end_with_one_done() -> None:
    """n = 3: three answers, own seeds, the prompt computed once, the last choice writes `done`."""
    rig = make_rig()
    params = [
        SamplingParams(seed=choice_seed(7, choice), stop_token_ids=tuple(range(choice * 4)))
        for choice in range(3)
    ]
    job = make_job(prompt=range(1, 20), params=params, max_tokens=20)
    rig.engine.submit(job)
    rig.run()
    for choice in range(3):
        assert rig.tokens("job", choice) == reference(rig, job, choice)
    records = rig.records()
    assert sum(isinstance(record, Finished) for record in records) == 2
    done = records[-1]
    assert isinstance(done, Done)
    assert (len(done.reasons), done.usage.prompt_tokens) == (3, 19)


def test_the_second_job_of_a_tenant_finds_the_prompt_cached() -> None:
    """Blocks are shared within a tenant, never across."""
    rig = make_rig()
    for job_id, tenant in [("first", "t"), ("again", "t"), ("other", "u")]:
        rig.engine.submit(make_job(job_id, range(1, 18), tenant=tenant))
        rig.run()
    cached = {job_id: rig.records(job_id)[-1] for job_id in ("first", "again", "other")}
    found = {
        name: done.usage.cached_tokens for name, done in cached.items() if isinstance(done, Done)
    }
    assert found == {"first": 0, "again": 16, "other": 0}


def test_a_takeover_continues_where_the_log_ends() -> None:
    """Confirmed tokens are prefilled, not emitted again; the rest is what it would have been."""
    rig = make_rig()
    whole = reference(rig, make_job())
    rig.engine.submit(make_job(outputs=[whole[:5]], epoch=2))
    rig.run()
    first = rig.records()[0]
    assert isinstance(first, Tokens)
    assert first.offset == 5
    found = [token for r in rig.records() if isinstance(r, Tokens) for token in r.token_ids]
    assert found == whole[5:]
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert done.usage.completion_tokens == len(whole)


def test_a_finished_choice_stays_finished_after_a_takeover() -> None:
    """Only the open choice goes on, and `done` gives both reasons in order."""
    rig = make_rig()
    params = [SamplingParams(seed=1), SamplingParams(seed=2)]
    job = make_job(params=params, outputs=[[9, 9], []], reasons=[FinishReason.STOP, None], epoch=2)
    rig.engine.submit(job)
    rig.run()
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert (done.choice, done.reasons) == (1, (FinishReason.STOP, FinishReason.LENGTH))
    assert not [r for r in rig.records() if isinstance(r, Tokens) and r.choice == 0]


class Poisoned:
    """A model that fails on sequences holding the token 49: by an exception, or by NaN."""

    def __init__(self, runner: FakeRunner, *, how: str) -> None:
        self._runner = runner
        self._how = how

    def run(self, spans: Sequence[Span]) -> Tensor:
        bad = [49 in span.token_ids for span in spans]
        if self._how == "raises" and any(bad):
            raise RuntimeError("poisoned")
        logits = self._runner.run(spans)
        start = 0
        for span, is_bad in zip(spans, bad, strict=True):
            if is_bad:
                logits[start : start + span.num_logits] = float("nan")
            start += span.num_logits
        return logits

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        self._runner.copy_blocks(copies)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_session_that_breaks_the_model_fails_alone(how: str) -> None:
    """The culprit ends with one error; the others get the tokens they would have got."""
    rig = make_rig(wrap=lambda runner: Poisoned(runner, how=how))
    bias = ((49, -100.0),)
    good = make_job("good", params=[SamplingParams(seed=1, logit_bias=bias)])
    expected = reference(rig, good)
    rig.engine.submit(good)
    rig.step()
    rig.engine.submit(make_job("bad", [1, 49, 2]))
    rig.engine.submit(make_job("twin", params=[SamplingParams(seed=1, logit_bias=bias)]))
    rig.run()
    assert rig.tokens("good") == rig.tokens("twin") == expected
    (failed,) = rig.records("bad")
    assert isinstance(failed, Failed)
    assert (failed.code, failed.status) == ("engine_error", 500)


def test_a_broken_engine_says_so() -> None:
    """When the self-test fails too, it is not the sessions' fault."""

    def break_down() -> None:
        raise RuntimeError("no device")

    rig = make_rig(wrap=lambda runner: Poisoned(runner, how="raises"))
    rig.engine._rounds._self_test = break_down
    rig.engine.submit(make_job("bad", [1, 49, 2]))
    with pytest.raises(EngineBroken):
        rig.engine.step()


def test_a_poisoned_job_while_idle_breaks_nothing() -> None:
    """One bad job after another: each ends, the engine lives."""
    rig = make_rig(wrap=lambda runner: Poisoned(runner, how="raises"))
    for index in range(5):
        rig.engine.submit(make_job(f"bad{index}", [1, 49, 2]))
        rig.run()
        assert isinstance(rig.records(f"bad{index}")[-1], Failed)


def test_text_that_cannot_be_made_fails_its_session_alone() -> None:
    """An exception of the text side is one job's error."""

    class BadText:
        is_stopped = False

        def push(self, token_id: int) -> str:
            raise ValueError(token_id)

        def flush(self) -> str:
            return ""

    rig = make_rig()
    job = make_job("bad")
    object.__setattr__(job.choices[0], "text", BadText())
    rig.engine.submit(job)
    rig.engine.submit(make_job("good"))
    rig.run()
    assert isinstance(rig.records("bad")[-1], Failed)
    assert isinstance(rig.records("good")[-1], Done)


def test_a_cancelled_job_ends_at_once_with_status_499() -> None:
    """While running, while waiting, and twice: one terminal record, all blocks back."""
    rig = make_rig(max_num_seqs=1)
    rig.engine.submit(make_job("running", max_tokens=100))
    rig.engine.submit(make_job("waiting"))
    rig.step()
    for job_id in ("running", "waiting", "waiting", "unknown"):
        rig.engine.cancel(job_id)
    rig.run()
    for job_id in ("running", "waiting"):
        last = rig.records(job_id)[-1]
        assert isinstance(last, Failed)
        assert (last.code, last.status) == ("cancelled", 499)
    assert rig.engine.step() == IDLE


def test_a_dropped_job_leaves_no_word() -> None:
    """A fenced worker neither writes nor tells drafters: the next owner has them now."""
    rig = make_rig()
    job = make_job()
    rig.engine.submit(job)
    drafter = Drafter(mixed_guess({"job/0": [*job.prompt_ids, *reference(rig, job)]}))
    for _ in range(3):
        rig.engine.receive(drafter.answer(rig.step()), rig.clock.monotonic_s())
    rig.engine.drop("job")
    rig.engine.drop("job")
    assert not rig.engine.take_outcome()
    assert rig.pool.num_free == rig.pool.num_blocks


def test_a_job_claimed_again_replaces_its_older_self() -> None:
    """The newer claim writes; the older one's session is gone."""
    rig = make_rig()
    rig.engine.submit(make_job(epoch=1))
    rig.step()
    rig.engine.submit(make_job(epoch=2))
    rig.run()
    assert set(rig.said.records) == {("job", 1), ("job", 2)}
    assert isinstance(rig.said.records["job", 2][1][-1], Done)


def test_a_deadline_ends_a_job() -> None:
    """Running and waiting jobs alike, once the time is over."""
    rig = make_rig(max_num_seqs=1)
    soon = rig.clock.unix_ms() + 5
    rig.engine.submit(make_job("a", max_tokens=1_000, deadline_ms=soon))
    rig.engine.submit(make_job("b", deadline_ms=soon))
    rig.engine.submit(make_job("c", deadline_ms=soon + 60_000))
    rig.run()
    for job_id in ("a", "b"):
        last = rig.records(job_id)[-1]
        assert isinstance(last, Failed)
        assert last.code == "deadline_exceeded"
    assert isinstance(rig.records("c")[-1], Done)


def test_a_session_larger_than_the_cache_fails_with_a_clear_error() -> None:
    """Alone and still no room: `out_of_blocks`, and the next job is served."""
    rig = make_rig(num_blocks=4)
    rig.engine.submit(make_job("large", range(12), max_tokens=20))
    rig.engine.submit(make_job("huge", range(40)))
    rig.engine.submit(make_job("small", max_tokens=2))
    rig.run()
    for job_id in ("large", "huge"):
        last = rig.records(job_id)[-1]
        assert isinstance(last, Failed)
        assert last.code == "out_of_blocks"
    assert isinstance(rig.records("small")[-1], Done)


def test_a_late_drafter_is_told_what_it_missed() -> None:
    """Between request and offer tokens were confirmed; the first verdict closes the gap."""
    rig = make_rig()
    rig.engine.submit(make_job(max_tokens=30))
    (request,) = rig.step().requests
    for _ in range(4):
        rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    outcome = rig.engine.take_outcome()
    (verdict,) = outcome.mail[DRAFTER]
    assert isinstance(verdict, Verdict)
    assert (verdict.base_len, len(verdict.token_ids)) == (len(request.token_ids), 5)


def test_drafters_of_nobody_are_sent_away() -> None:
    """An offer for a session that is over, or that wants none, is declined."""
    rig = make_rig()
    rig.engine.submit(make_job("plain", max_drafts=0, max_tokens=30))
    assert not rig.step().requests
    for session_id in ("plain/0", "gone/0"):
        rig.engine.receive([DraftAccepted(session_id, DRAFTER)], 0.0)
        assert rig.engine.take_outcome().mail == {DRAFTER: [DraftClosed(session_id)]}
    rig.engine.receive([DraftPath("gone/0", 1, (1,)), DraftClosed("gone/0")], 0.0)
    assert not rig.engine.take_outcome()


def test_a_second_drafter_for_a_session_is_sent_away() -> None:
    """One drafter gets the verdicts; its repeated offer is harmless."""
    rig = make_rig()
    rig.engine.submit(make_job(max_tokens=30))
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER), DraftAccepted("job/0", DRAFTER)], 0.0)
    rig.engine.receive([DraftAccepted("job/0", "draft:b")], 0.0)
    assert rig.engine.take_outcome().mail["draft:b"] == [DraftClosed("job/0")]


def test_a_silent_drafter_is_given_up_and_another_one_asked() -> None:
    """Verdicts without an answer for a second: a new request, decoding plainly meanwhile."""
    rig = make_rig(num_blocks=400)
    rig.engine.submit(make_job(max_tokens=1_400))
    assert rig.step().requests
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    for _ in range(1_100):
        rig.step()
    assert len(rig.said.requests) == 2


def test_an_ended_session_dismisses_its_drafter() -> None:
    """The last word to a drafter is `closed`, after every verdict in order."""
    rig = make_rig()
    job = make_job()
    rig.engine.submit(job)
    drafter = Drafter(right_guess({"job/0": [*job.prompt_ids, *reference(rig, job)]}))
    rig.run(drafter=drafter)
    assert rig.said.mail[DRAFTER][-1] == DraftClosed("job/0")
    assert not drafter.known


def test_without_speculation_nobody_is_asked() -> None:
    """Policy off: no requests, offers declined, guesses ignored."""
    rig = make_rig(policy=Policy.OFF)
    job = make_job(max_tokens=20)
    rig.engine.submit(job)
    rig.step()
    rig.engine.receive([DraftPath("job/0", 6, tuple(range(5)))], 0.0)
    rig.run()
    assert not rig.said.requests
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert (done.speculation.num_rounds, rig.runner.num_runs) == (0, 20)


def test_logits_of_one_row_do_not_depend_on_the_company() -> None:
    """The fake model itself: a guard for the tests above."""
    rig = make_rig()
    assert torch.equal(rig.runner.logits([1, 2]), rig.runner.logits((1, 2)))
