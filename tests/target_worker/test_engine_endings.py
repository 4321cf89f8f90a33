"""The engine where a job ends early: failures, cancellation, deadlines, no room, another owner."""

from collections.abc import Sequence

import pytest
from torch import Tensor

from shared.engine.spans import Span
from shared.protocol.records import Done, Failed
from shared.protocol.sampling import SamplingParams
from target_worker.outcome import Outcome
from target_worker.pause import IDLE
from target_worker.rounds import EngineBroken
from tests.fakes import FakeRunner
from tests.target_worker.engines import Drafter, make_job, make_rig, mixed_guess, reference


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
        can_stop = False

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


@pytest.mark.parametrize("overlap_from", [1, 4])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_a_claim_that_comes_again_during_a_round_starts_from_its_own_log(
    num_steps: int, overlap_from: int
) -> None:
    """Tokens of a round that the older claim began are nobody's: the newer one computes them."""
    rig = make_rig(overlap_from=overlap_from)
    rig.engine.submit(make_job(epoch=1))
    for _ in range(num_steps):
        rig.step()
    rig.said = Outcome()
    job = make_job(epoch=2)
    rig.engine.submit(job)
    rig.run()
    assert rig.tokens() == reference(rig, job)
