"""A job's records: the log's grammar, and honest counts."""

import pytest

from shared.bus.jobs import Claim
from shared.protocol.records import Done, Finished, FinishReason, Tokens
from shared.protocol.sampling import SamplingParams
from target_worker.job import Job
from target_worker.session import Session
from tests.target_worker.engines import LetterText


def make_job(num_choices: int = 1, *, num_logged: int = 0) -> Job:
    sessions = {
        choice: Session(
            f"job/{choice}",
            (1, 2, 3),
            prompt_len=3,
            max_len=20,
            params=SamplingParams(seed=1),
            text=LetterText(),
            vocab_size=50,
        )
        for choice in range(num_choices)
    }
    claim = Claim("job", "jobs", "1-0", 1, 77, is_cancelled=False, deliveries=1, lengths=())
    return Job(
        claim,
        sessions,
        reasons=[None] * num_choices,
        num_logged=[num_logged] * num_choices,
        prompt_len=3,
        deadline_ms=None,
        now_s=100.0,
    )


def test_offsets_are_dense_and_start_where_the_log_ends() -> None:
    """A takeover does not begin at 0; an empty confirmation writes nothing."""
    job = make_job(num_logged=4)
    assert job.confirmed(0, [5, 6], "fg") == [Tokens(0, 4, (5, 6), "fg")]
    assert job.confirmed(0, [], "") == []
    assert job.confirmed(0, [7], "h") == [Tokens(0, 6, (7,), "h")]


def test_the_last_choice_to_end_writes_done() -> None:
    """The others write `finished`; reasons are in order of choice."""
    job = make_job(2)
    job.sessions[1].reason = FinishReason.STOP
    assert job.confirmed(1, [5], "f")[1:] == [Finished(1, "", FinishReason.STOP)]
    assert not job.is_over
    job.sessions[0].reason = FinishReason.LENGTH
    done = job.confirmed(0, [6, 7], "gh")[-1]
    assert isinstance(done, Done)
    assert job.is_over
    assert done.reasons == (FinishReason.LENGTH, FinishReason.STOP)
    assert (done.choice, done.seed, done.usage.completion_tokens) == (0, 77, 3)


def test_speculation_is_counted_by_position() -> None:
    """Two rounds with drafts, of 3 and 2 guesses, of which 2 and 0 were right."""
    job = make_job()
    job.count_draft(3, 2)
    job.count_draft(2, 0)
    job.sessions[0].reason = FinishReason.LENGTH
    done = job.confirmed(0, [5], "f")[-1]
    assert isinstance(done, Done)
    stats = done.speculation
    assert (stats.num_rounds, stats.num_draft_tokens, stats.num_accepted_tokens) == (2, 5, 2)
    assert stats.drafted_per_position == (2, 2, 1)
    assert stats.accepted_per_position == (1, 1, 0)
    assert stats.acceptance_rate == pytest.approx(0.4)


def test_the_report_says_how_long_it_took() -> None:
    """Time to the first token and in all; without a first token there is none to report."""
    job = make_job()
    assert job.report("cancelled", 103.0).ttft_s is None
    job.first_token_s = 101.0
    report = job.report("stop", 104.0)
    assert (report.ttft_s, report.duration_s, report.outcome) == (1.0, 4.0, "stop")
