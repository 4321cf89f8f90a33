"""The policy inside the engine, on a model whose passes take the time they are told to."""

from collections.abc import Mapping, Sequence

import pytest
from torch import Tensor

from shared.engine.spans import Span
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath
from shared.protocol.records import Done
from target_worker.cost import Measured
from target_worker.goodput import Policy
from target_worker.pause import GO_ON
from tests.fakes import FakeRunner, ManualClock
from tests.target_worker.engines import (
    DRAFTER,
    Drafter,
    Guess,
    Rig,
    V,
    make_job,
    make_rig,
    reference,
    right_guess,
)


class Timed:
    """A model that takes time: a fixed price and one per row."""

    def __init__(self, runner: FakeRunner, *, base_s: float, per_row_s: float) -> None:
        self.clock: ManualClock | None = None
        self._runner = runner
        self._base_s = base_s
        self._per_row_s = per_row_s
        self.stalls: dict[int, float] = {}  # seconds that some runs take longer, by number
        self._num_runs = 0

    def run(self, spans: Sequence[Span]) -> Tensor:
        assert self.clock is not None
        num_rows = sum(len(span.token_ids) for span in spans)
        self._num_runs += 1
        stall_s = self.stalls.get(self._num_runs, 0.0)
        self.clock.advance(self._base_s + self._per_row_s * num_rows + stall_s)
        return self._runner.run(spans)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        self._runner.copy_blocks(copies)


def timed_rig(
    *, base_s: float = 0.004, per_row_s: float = 0.00005, stalls: Mapping[int, float] | None = None
) -> Rig:
    made: list[Timed] = []

    def wrap(runner: FakeRunner) -> Timed:
        made.append(Timed(runner, base_s=base_s, per_row_s=per_row_s))
        return made[0]

    profile = [
        Measured(n, rows, base_s + per_row_s * rows)
        for n, rows in ((1, 1), (1, 8), (4, 4), (4, 16))
    ]
    rig = make_rig(num_blocks=600, policy=Policy.AUTO, profile=profile, wrap=wrap)
    made[0].clock = rig.clock
    made[0].stalls.update(stalls or {})
    return rig


def wrong_guess(answers: dict[str, list[int]]) -> Guess:
    def guess(session_id: str, known: list[int]) -> list[tuple[int, tuple[int, ...]]]:
        truth = answers[session_id][len(known) : len(known) + 4]
        return [(len(known), tuple((token_id + 1) % V for token_id in truth))]

    return guess


def serve(rig: Rig, *, is_right: bool, max_tokens: int) -> Drafter:
    """One job to its end, with a drafter."""
    job = make_job(max_tokens=max_tokens)
    truth = {"job/0": [*job.prompt_ids, *reference(rig, job)]}
    drafter = Drafter(right_guess(truth, 8) if is_right else wrong_guess(truth))
    rig.engine.submit(job)
    rig.run(drafter=drafter)
    assert rig.tokens() == truth["job/0"][5:]
    return drafter


def num_rounds_with(stalls: Mapping[int, float]) -> int:
    """Rounds that 600 tokens take with one guess a round, always right, and such stalls."""
    rig = timed_rig(stalls=stalls)
    job = make_job(max_tokens=600)
    truth = {"job/0": [*job.prompt_ids, *reference(rig, job)]}
    rig.engine.submit(job)
    rig.run(drafter=Drafter(right_guess(truth, 1)))
    assert rig.tokens() == truth["job/0"][5:]
    return rig.runner.num_runs


def test_a_stall_does_not_decide_the_mode() -> None:
    """Of a second, while speculation is first measured: it goes on, and halves the rounds."""
    undisturbed = num_rounds_with({})
    assert undisturbed < 400
    assert num_rounds_with({60: 1.0}) <= undisturbed + 30


def test_right_guesses_on_cheap_rows_are_all_used() -> None:
    """Automatic mode finds out within the first rounds."""
    rig = timed_rig()
    serve(rig, is_right=True, max_tokens=200)
    assert rig.runner.num_runs < 60


def test_dear_rows_are_not_spent_on_guesses() -> None:
    """A row costs as much as a round: even right guesses gain nothing, and nobody is asked."""
    rig = timed_rig(base_s=0.0001, per_row_s=0.004)
    serve(rig, is_right=True, max_tokens=30)
    assert rig.runner.num_runs == 30


def test_wrong_guesses_cost_a_few_rows_and_then_their_drafter() -> None:
    """It is sent away after a while of uselessness, asked again later, and away again."""
    rig = timed_rig(base_s=0.002, per_row_s=0.0005)
    serve(rig, is_right=False, max_tokens=1_500)
    done = rig.records()[-1]
    assert isinstance(done, Done)
    assert done.speculation.num_draft_tokens < 150
    closed = [m for m in rig.said.mail[DRAFTER] if isinstance(m, DraftClosed)]
    assert 2 <= len(closed) <= 6
    assert 2 <= len(rig.said.requests) <= 6


def test_a_corrected_session_alone_waits_for_a_quick_drafter() -> None:
    """The grace: a pause instead of a plain round, ended by the guess that comes."""
    rig = timed_rig(base_s=0.016)
    job = make_job(max_tokens=400)
    answer = [*job.prompt_ids, *reference(rig, job)]
    rig.engine.submit(job)
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], rig.clock.monotonic_s())
    num_pauses, corrected_s = 0, rig.clock.monotonic_s()
    for _ in range(40):
        session = rig.engine._sessions["job/0"][2]
        base = len(session.token_ids)
        path = tuple(answer[base : base + 4])
        # It takes the drafter 1 ms, whether a round is under way or not.
        rig.engine.receive([DraftPath("job/0", base, path)], corrected_s + 0.001)
        assert rig.engine.step() == GO_ON
        corrected_s = rig.clock.monotonic_s()
        pause = rig.engine.step()
        if pause != GO_ON:
            num_pauses += 1
            assert pause.seconds is not None
            assert 0.0 < pause.seconds <= 0.008
    assert num_pauses > 20


def test_nobody_waits_when_others_are_ready() -> None:
    """Two sessions, one corrected: the round goes on at once."""
    rig = timed_rig(base_s=0.016)
    for job_id in ("a", "b"):
        rig.engine.submit(make_job(job_id, max_tokens=100))
    rig.step()
    offers = [DraftAccepted(f"{job_id}/0", DRAFTER) for job_id in ("a", "b")]
    rig.engine.receive(offers, rig.clock.monotonic_s())
    for _ in range(30):
        for job_id in ("a", "b"):
            session = rig.engine._sessions[f"{job_id}/0"][2]
            guess = DraftPath(f"{job_id}/0", len(session.token_ids), (1, 2))
            rig.engine.receive([guess], rig.clock.monotonic_s())
        assert rig.engine.step() == GO_ON
        assert rig.engine.step() == GO_ON


@pytest.mark.parametrize("policy", [Policy.AUTO, Policy.ON])
def test_a_lost_drafter_is_told_to_go(policy: Policy) -> None:
    """Silent for too long: closed, and asked for again."""
    rig = make_rig(num_blocks=400, policy=policy)
    rig.engine.submit(make_job(max_tokens=1_400))
    rig.step()
    rig.engine.receive([DraftAccepted("job/0", DRAFTER)], 0.0)
    for _ in range(1_100):
        rig.step()
    if policy is Policy.ON:
        assert DraftClosed("job/0") in rig.said.mail[DRAFTER]
