"""The engine: sessions in, rounds run, outcomes out. Used by one thread; does no I/O.

Joins the scheduler, the rounds and the policy of speculation. What it says to the world collects in
an Outcome, which the caller takes after each step.
"""

from collections.abc import Sequence
from dataclasses import replace

import structlog

from shared.common.clock import Clock
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath, Message
from shared.protocol.records import Failed
from target_worker.acceptance import Acceptance
from target_worker.admitted import AdmittedJob
from target_worker.deadlines import Deadlines
from target_worker.flights import Accepted, Flight, Landing
from target_worker.job import Job
from target_worker.outcome import Outcome
from target_worker.pause import GO_ON, IDLE, MAX_LISTENING_S, POLL_S, Pause
from target_worker.rounds import Rounds, Verified
from target_worker.scheduler import DoesNotFit, Row, Scheduler
from target_worker.session import Session
from target_worker.speculation import Speculation
from target_worker.totals import Totals

_log = structlog.get_logger()

CANCELLED = Failed("cancelled", "the job was cancelled", status=499)
EXPIRED = Failed("deadline_exceeded", "the job's deadline passed", status=504)
NO_ROOM = Failed(
    "out_of_blocks", "the sequence does not fit the worker's cache, even alone", status=507
)
FAILED = Failed("engine_error", "the model failed on this sequence", status=500)


class Engine:
    """All jobs of one worker.

    Args:
        rounds: runs passes of the model.
        scheduler: with the model's blocks.
        speculation: the policy.
        vocab_size: of the model.
        clock: time.
        overlap_from: for devices that compute by themselves once a round is begun: rows from which
            the next round is begun before drafters hear of the last one. With fewer they hear
            first; it is booked while the next one computes in any case. None: never.
    """

    def __init__(
        self,
        rounds: Rounds,
        scheduler: Scheduler,
        speculation: Speculation,
        *,
        vocab_size: int,
        clock: Clock,
        overlap_from: int | None = None,
    ) -> None:
        self._rounds = rounds
        self._overlap_from = overlap_from
        self._flight: Flight | None = None
        self._following: Flight | None = None  # begun behind the flight, and before it has landed
        self._landing: Landing | None = None  # to be booked when the next round has begun
        self._scheduler = scheduler
        self._speculation = speculation
        self._vocab_size = vocab_size
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._sessions: dict[str, tuple[Job, int, Session]] = {}
        self._outcome = Outcome()
        self._round_end_s: float | None = None  # None after a pause
        self._deadlines = Deadlines()
        self.totals = Totals()

    @property
    def num_jobs(self) -> int:
        """Jobs that are not over."""
        return len(self._jobs)

    @property
    def num_running(self) -> int:
        """Sessions in the cache."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sessions that wait for room."""
        return len(self._scheduler.waiting)

    @property
    def num_preemptions(self) -> int:
        """How often a session had to leave the cache."""
        return self._scheduler.num_preemptions

    @property
    def cache_usage(self) -> float:
        """Share of the cache's blocks that sessions hold."""
        return self._scheduler.pool.usage

    @property
    def num_free_tokens(self) -> int:
        """Tokens that the cache has room for."""
        pool = self._scheduler.pool
        return pool.num_free * pool.block_size

    def submit(self, admitted: AdmittedJob) -> None:
        """Take on a job. If it is here already, with an older claim, that one is dropped."""
        claim = admitted.claim
        self.drop(claim.job_id)
        sessions = {
            index: Session.of_choice(admitted, index, vocab_size=self._vocab_size)
            for index, choice in enumerate(admitted.choices)
            if choice.reason is None
        }
        job = Job(
            claim,
            sessions,
            reasons=[choice.reason for choice in admitted.choices],
            num_logged=[len(choice.output_ids) for choice in admitted.choices],
            prompt_len=len(admitted.prompt_ids),
            deadline_ms=admitted.deadline_ms,
            now_s=self._clock.monotonic_s(),
        )
        self._jobs[claim.job_id] = job
        self.totals.num_prompt_tokens += len(admitted.prompt_ids)
        leader: Session | None = None
        for index, session in sessions.items():
            self._sessions[session.session_id] = (job, index, session)
            session.acceptance = Acceptance(self._speculation.acceptance)
            session.leader = leader
            leader = leader or session
            self._scheduler.add(session)
        self._deadlines.add(claim.job_id, admitted.deadline_ms)

    def cancel(self, job_id: str) -> None:
        """End a job with the terminal record `cancelled`. Unknown jobs are over already."""
        self._fail(job_id, CANCELLED)

    def drop(self, job_id: str, *, epoch: int | None = None) -> None:
        """Forget a job (of this epoch, if given) without a word: somebody else writes it now."""
        job = self._jobs.get(job_id)
        if job is not None and epoch in (None, job.claim.epoch):
            del self._jobs[job_id]
            self._deadlines.discard(job_id)
            for session in job.sessions.values():
                if self._sessions.pop(session.session_id, None) is not None:
                    self._scheduler.remove(session)

    def receive(self, messages: Sequence[Message], received_s: float) -> None:
        """Take in what drafters say. Messages about sessions that are not here cost nothing."""
        for message in messages:
            if isinstance(message, DraftPath):
                found = self._sessions.get(message.session_id)
                if found is not None:
                    self._speculation.receive(found[2], message, received_s)
            elif isinstance(message, DraftAccepted):
                found = self._sessions.get(message.session_id)
                session = None if found is None else found[2]
                self._speculation.engage(session, message, self._outcome)
            elif isinstance(message, DraftClosed) and message.session_id in self._sessions:
                self._speculation.disengage(self._sessions[message.session_id][2])

    def dismiss_drafters(self) -> None:
        """Send all drafters away: this worker goes."""
        for _, _, session in self._sessions.values():
            self._speculation.dismiss(session, self._outcome)

    def rest(self) -> None:
        """Nothing is run for a while: the time until the next round is no round's."""
        self._round_end_s = None

    def take_outcome(self) -> Outcome:
        """What there is to say since the last call."""
        outcome, self._outcome = self._outcome, Outcome()
        return outcome

    def step(self) -> Pause:
        """Go on with the round under way, or begin one if there is anything to run.

        Where rounds overlap, the next one is begun between taking in the tokens of one and booking
        them, so that a device does not wait for text and records. What drafters say meanwhile is to
        be received before every step: most of it while the device computes, which the pauses are
        for, and the rest between a round and the next. Where nobody guesses, the next one is begun
        even before: its tokens are read one round late, and the device never waits.

        Raises:
            EngineBroken: the model fails for everybody.
        """
        if self._flight is None:
            pause = self._begin_and_book()
            if pause is not None:
                return pause
            if self._overlap_from is not None:
                return GO_ON  # what was planned is said while it computes
        assert self._flight is not None
        listening_s = self._listening_s(self._flight)
        if listening_s > 0.0:
            return Pause(listening_s)
        self._follow()
        self._landing = landing = self._land()
        if self._flight is not None or self._overlap_from is None:
            self._book()
        elif len(landing.accepted) < self._overlap_from:
            self._landing = self._tell(landing)  # drafters hear of it now
        return GO_ON

    def _begin_and_book(self) -> Pause | None:
        """Begin the next round, and book the one before while it computes."""
        pause = self._begin()
        self._book()
        if pause is IDLE:
            self._round_end_s = None
        return pause

    def _begin(self) -> Pause | None:
        """Begin the next round; what to do instead, if there is none yet."""
        started_s = self._clock.monotonic_s()
        self._expire()
        rows = self._plan()
        if not rows:
            self._round_end_s = None
            return IDLE
        offers = self._speculation.plan(rows, self._scheduler, self._outcome)
        grace_s = self._speculation.grace_s(rows, offers)
        if grace_s > 0.0:
            return Pause(grace_s)
        copies, self._scheduler.copies = self._scheduler.copies, []
        begun = self._rounds.begin(rows, copies)
        listens = self._overlap_from is not None and not self._speculation.is_quiet(rows)
        listen_s = self._speculation.listen_s(rows) if listens else 0.0
        self._flight = Flight(begun, offers, started_s, listens, started_s + listen_s)
        return None

    def _listening_s(self, flight: Flight) -> float:
        """Seconds to wait for news of drafters before asking again whether a round is over.

        What comes while it computes is taken in while it computes: there are hundreds of messages a
        round, and those that were left until its end would hold up the next one.
        """
        now_s = self._clock.monotonic_s()
        if not flight.listens or now_s - flight.started_s > MAX_LISTENING_S:
            return 0.0
        listening_s = flight.listens_until_s - now_s
        if listening_s > 0.0:
            return listening_s
        return 0.0 if self._rounds.is_over(flight.begun) else POLL_S

    def _follow(self) -> None:
        """Begin the round after the one under way, where its outcome decides nothing but tokens."""
        flight = self._flight
        assert flight is not None
        if not self._speculation.is_quiet(flight.begun.rows):
            return
        self._expire()
        rows = self._scheduler.follow(flight.begun.rows)
        following = self._rounds.prepare_following(flight.begun, rows) if rows else None
        if following is None:
            return
        offers = self._speculation.plan_following(rows, self._outcome)
        copies, self._scheduler.copies = self._scheduler.copies, []
        begun = self._rounds.begin_following(following, copies)
        self._following = Flight(begun, offers, self._clock.monotonic_s())

    def _accept(self, flight: Flight, results: Sequence[Verified]) -> list[Accepted]:
        """Take in the tokens of a round: all that planning the next one needs."""
        accepted = []
        for result, offer in zip(results, flight.offers, strict=True):
            session = result.row.session
            found = self._sessions.get(session.session_id)
            if found is None or found[2] is not session:
                continue  # it has ended, failed with another choice, or begun anew meanwhile
            if result.error is not None:
                self._fail_session(session, result.error)
            elif not result.row.is_sampled:
                self._scheduler.computed(result.row, 0)
            else:
                base_len = len(session.token_ids)
                try:
                    kept = session.accept(result.token_ids)
                except Exception as error:  # noqa: BLE001 -- a text that cannot be decoded fails its session alone
                    self._fail_session(session, error)
                    continue
                self._scheduler.computed(result.row, result.num_accepted)
                accepted.append(Accepted(result, offer, found[0], found[1], base_len, kept))
                if session.reason is not None:
                    self._scheduler.remove(session)
                    del self._sessions[session.session_id]
        return accepted

    def _land(self) -> Landing:
        """Take in the tokens of the round under way. The one begun behind it is under way then."""
        flight, following = self._flight, self._following
        assert flight is not None
        results = self._rounds.finish(flight.begun)
        accepted = self._accept(flight, results)
        landed_s = self._clock.monotonic_s()
        self._flight = self._following = None
        is_usable = any(one.error is None for one in results)
        if following is not None and is_usable and not any(one.is_repeated for one in results):
            self._flight = replace(following, started_s=landed_s)
        began_s = flight.started_s if self._round_end_s is None else self._round_end_s
        return Landing(flight, accepted, landed_s, landed_s - began_s)

    def _tell(self, landing: Landing) -> Landing:
        """Say to drafters what was confirmed, and learn how good their guesses were."""
        for one in landing.accepted:
            if self._jobs.get(one.job.claim.job_id) is one.job:
                self._speculation.confirmed(one.result, one.offer, landing.period_s)
                session = one.result.row.session
                self._speculation.tell(session, one.base_len, one.kept, self._outcome)
        return replace(landing, is_told=True)

    def _book(self) -> None:
        """Say what the last round gave, if that was not said, and learn from it."""
        landing, self._landing = self._landing, None
        if landing is None:
            return
        if not landing.is_told:
            landing = self._tell(landing)
        num_tokens = 0
        for one in landing.accepted:
            if self._jobs.get(one.job.claim.job_id) is one.job:
                num_tokens += self._book_row(one)
        # Where the next round has begun, this one ended before.
        is_late = self._overlap_from is not None
        ended_s = landing.landed_s if is_late else self._clock.monotonic_s()
        late_s = ended_s - landing.landed_s
        self._speculation.observe(
            landing.flight.begun.rows,
            num_tokens=num_tokens,
            took_s=ended_s - landing.flight.started_s,
            period_s=landing.period_s + late_s,
        )
        self._round_end_s = ended_s

    def _book_row(self, one: Accepted) -> int:
        """Say what a round gave one row. Returns the tokens confirmed."""
        job, session = one.job, one.result.row.session
        try:
            records = job.confirmed(one.choice, one.kept, session.text_of(one.kept))
        except Exception as error:  # noqa: BLE001 -- as in _accept
            _log.warning("session_failed", session_id=session.session_id, error=repr(error))
            self._fail(job.claim.job_id, FAILED)
            return 0
        self._count(job, one.result, len(one.kept))
        self._outcome.append(job.claim, records)
        if job.is_over:
            self._end(job, ",".join(job.reasons))
        return len(one.kept)

    def _plan(self) -> list[Row]:
        while True:
            try:
                self._scheduler.start_waiting()
                return self._scheduler.plan()
            except DoesNotFit as error:
                job = self._sessions[error.session.session_id][0]
                self._fail(job.claim.job_id, NO_ROOM)

    def _count(self, job: Job, result: Verified, num_kept: int) -> None:
        if job.first_token_s is None:
            job.first_token_s = self._clock.monotonic_s()
            job.cached_tokens = min(result.row.session.num_cached, job.prompt_len)
        self.totals.num_generation_tokens += num_kept
        num_drafted = len(result.row.draft_token_ids)
        if num_drafted:
            num_accepted = min(
                num_kept, result.num_accepted
            )  # nobody asked for those after the end
            job.count_draft(num_drafted, num_accepted)
            self.totals.count_draft(num_drafted, num_accepted)

    def _expire(self) -> None:
        for job_id in self._deadlines.due(self._clock.unix_ms()):
            self._fail(job_id, EXPIRED)

    def _fail_session(self, session: Session, error: Exception) -> None:
        job = self._sessions[session.session_id][0]
        _log.warning("session_failed", session_id=session.session_id, error=repr(error))
        self._fail(job.claim.job_id, FAILED)

    def _fail(self, job_id: str, error: Failed) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            self._outcome.append(job.claim, [error])
            self._end(job, error.code)

    def _end(self, job: Job, outcome: str) -> None:
        self._outcome.ended.append(job.report(outcome, self._clock.monotonic_s()))
        for session in job.sessions.values():
            if session.session_id in self._sessions:
                self._speculation.dismiss(session, self._outcome)
        self.drop(job.claim.job_id)
