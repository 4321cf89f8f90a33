"""Speculation as the engine sees it: which guesses to verify, whom to ask for them, when to stop.

Joins the parts that decide (tree, lengths, goodput, grace, links); decides nothing about tokens:
whatever happens here, the text stays the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from shared.common.clock import Clock
from shared.protocol.limits import MAX_SPECULATIVE_TOKENS
from shared.protocol.messages import DraftAccepted, DraftClosed, DraftPath, DraftRequest, Verdict
from target_worker.acceptance import Acceptance
from target_worker.cost import Measured, RoundCost, least_s
from target_worker.drafters import LinkState
from target_worker.goodput import Goodput, Mode, Policy
from target_worker.lengths import draft_lengths, predicted_gain
from target_worker.outcome import Outcome
from target_worker.rounds import Verified
from target_worker.scheduler import Row, Scheduler
from target_worker.session import Session

_log = structlog.get_logger()

SETTLE_S = 0.05  # after drafters were sent away, until rounds count as undisturbed
RAMP_S = 0.3  # after they were asked, until rounds count although some have not answered
IDLE_ROUNDS = 64  # in a row with guesses not worth a row: the session's drafter is sent away
OFF_S = 2.0  # for so long, doubled each time
MAX_OFF_S = 60.0
LISTEN_SHARE = 0.9  # of a round's least time: guesses are awaited so long,
LISTEN_MARGIN_S = 0.0004  # less this much: who waits is not woken on the dot
# A round that the system held up (a collection of garbage, a busy machine) says little of a mode,
# but an unlucky one could decide a short trial. So it counts at most so many times what plain
# decoding takes: more than a round can have tokens, so that no mode looks better than plain by it.
STALL = MAX_SPECULATIVE_TOKENS + 2.0
GRACE_CHANCE = 0.05  # the least chance of a right guess that the grace reckons with

Offers = list[list[int]]  # guesses that might be verified, one list a row of the round


@dataclass(frozen=True, slots=True)
class Identity:
    """What drafters are told of this worker."""

    worker_id: str
    vocabulary: str  # fingerprint of the tokenizer


class Speculation:
    """The policy of one worker. One owner, the engine."""

    def __init__(
        self, policy: Policy, identity: Identity, *, profile: Sequence[Measured], clock: Clock
    ) -> None:
        self._policy = policy
        self._identity = identity
        self._clock = clock
        self._profile = tuple(profile)
        self.cost = RoundCost(profile)
        self._plain = RoundCost(profile)  # never changed: the unit in which speed is measured
        self.acceptance = Acceptance()
        self.goodput = Goodput(policy, clock)
        self._mode = Mode.PLAIN
        self._switched_s = clock.monotonic_s()

    def plan(self, rows: Sequence[Row], scheduler: Scheduler, outcome: Outcome) -> Offers:
        """Choose the mode, tend the drafters and add guesses to the rows that decode.

        Returns:
            Per row, what its session's drafter had to offer.
        """
        self._tend_all(rows, outcome)
        offers = [[] if self._mode is Mode.PLAIN else _offer(row) for row in rows]
        if any(offers):
            self._add_drafts(rows, offers, scheduler)
        return offers

    def is_quiet(self, rows: Sequence[Row]) -> bool:
        """Whether nobody guesses for these rows' sessions, so that they need not wait for news."""
        return not any(row.session.link.state is LinkState.ENGAGED for row in rows)

    def listen_s(self, rows: Sequence[Row]) -> float:
        """How long after its start a round surely computes; 0 for what was not profiled."""
        if not all(row.num_tokens == 1 for row in rows):
            return 0.0
        num_rows = len(rows) + sum(len(row.draft_token_ids) for row in rows)
        return LISTEN_SHARE * least_s(self._profile, len(rows), num_rows) - LISTEN_MARGIN_S

    def plan_following(self, rows: Sequence[Row], outcome: Outcome) -> Offers:
        """As `plan`, for a quiet round that begins before the one before is known: no guesses."""
        self._tend_all(rows, outcome)
        return [[] for _ in rows]

    def grace_s(self, rows: Sequence[Row], offers: Offers) -> float:
        """Seconds to wait for a drafter before this round; 0 nearly always."""
        if len(rows) != 1 or offers[0] or self._mode is Mode.PLAIN:
            return 0.0
        session = rows[0].session
        if session.link.state is not LinkState.ENGAGED or not session.is_decoding:
            return 0.0
        return session.grace.wait_s(
            self._clock.monotonic_s(),
            plain_s=self.cost.predict(1, 1),
            chance=max(session.acceptance.rates(1)[0], GRACE_CHANCE),
        )

    def confirmed(self, result: Verified, offer: Sequence[int], period_s: float) -> None:
        """Learn from what a row confirmed, `period_s` after the round before; with its offer."""
        session, num_drafted = result.row.session, len(result.row.draft_token_ids)
        if num_drafted:
            session.acceptance.observe(num_drafted, result.num_accepted)
            session.num_idle_rounds = 0
        elif offer:
            # What was not verified can still be compared, so a session sees when guesses get good.
            session.acceptance.observe(1, int(offer[0] == result.token_ids[0]))
            session.num_idle_rounds += 1
        session.grace.confirmed(len(result.token_ids), period_s)
        if not session.tree and session.link.state is LinkState.ENGAGED:
            session.grace.corrected(self._clock.monotonic_s())

    def tell(self, session: Session, base_len: int, kept: Sequence[int], outcome: Outcome) -> None:
        """The verdict of a round for its drafter, or its farewell."""
        link = session.link
        if link.state is not LinkState.ENGAGED or link.draft_id is None:
            return
        if session.reason is not None:
            outcome.send(link.draft_id, DraftClosed(session.session_id))
        else:
            outcome.send(link.draft_id, Verdict(session.session_id, base_len, tuple(kept)))
            link.told()

    def observe(
        self, rows: Sequence[Row], *, num_tokens: int, took_s: float, period_s: float
    ) -> None:
        """Learn from a whole round.

        Args:
            rows: of it.
            num_tokens: confirmed, all sessions together.
            took_s: from its own start to its end.
            period_s: from the end of the round before, or took_s after a pause.
        """
        if not all(row.num_tokens == 1 and row.is_sampled for row in rows):
            return  # prefill: another price a row, and no speed of decoding
        num_streams = len(rows)
        num_rows = num_streams + sum(len(row.draft_token_ids) for row in rows)
        self.cost.observe(num_streams, num_rows, took_s)
        mode = self._measured_mode(rows)
        if mode is not None:
            plain_s = self._plain.predict(num_streams, num_streams)
            worth_s = num_tokens / num_streams * plain_s
            self.goodput.observe(mode, worth_s=worth_s, seconds=min(period_s, STALL * plain_s))

    def receive(self, session: Session, message: DraftPath, received_s: float) -> None:
        """Take in a guess."""
        if session.tree.insert(message.base_len, message.token_ids):
            session.link.heard(received_s)
            session.grace.answered(received_s)

    def engage(self, session: Session | None, offer: DraftAccepted, outcome: Outcome) -> None:
        """A drafter offers itself for a session, which may be over by now (None)."""
        now_s = self._clock.monotonic_s()
        if session is None or not self._wants(session, now_s):
            outcome.send(offer.draft_id, DraftClosed(offer.session_id))
            return
        link = session.link
        if not link.accepted(offer.draft_id, now_s):
            outcome.send(offer.draft_id, DraftClosed(offer.session_id))
            return
        missed = session.token_ids[link.asked_len :]
        if missed and link.asked_len:
            outcome.send(offer.draft_id, Verdict(session.session_id, link.asked_len, tuple(missed)))

    def disengage(self, session: Session) -> None:
        """Its drafter says that it is gone."""
        session.link.closed(self._clock.monotonic_s())
        session.grace.forget()

    def dismiss(self, session: Session, outcome: Outcome) -> None:
        """Send its drafter away, if it has one."""
        link = session.link
        if link.state is LinkState.ENGAGED and link.draft_id is not None:
            outcome.send(link.draft_id, DraftClosed(session.session_id))
        if link.state is not LinkState.IDLE:
            link.closed(self._clock.monotonic_s())
            session.grace.forget()

    def _tend_all(self, rows: Sequence[Row], outcome: Outcome) -> None:
        """Choose the mode, and tend every session's drafter."""
        now_s = self._clock.monotonic_s()
        mode = self.goodput.choose(len(rows), lambda: self._predicted_gain(len(rows)))
        if mode is not self._mode:
            self._mode = mode
            self._switched_s = now_s
            _log.info("speculation_switched", mode=mode, num_streams=len(rows))
        for row in rows:
            self._tend(row.session, now_s, outcome)

    def _predicted_gain(self, num_streams: int) -> float:
        survival = self.acceptance.survival(MAX_SPECULATIVE_TOKENS)
        return predicted_gain(survival, num_streams=num_streams, cost=self.cost)

    def _wants(self, session: Session, now_s: float) -> bool:
        return (
            self._mode is Mode.SPECULATIVE
            and session.max_drafts > 0
            and now_s >= session.off_until_s
            and session.max_len - len(session.token_ids) > 1
        )

    def _tend(self, session: Session, now_s: float, outcome: Outcome) -> None:
        if session.num_idle_rounds >= IDLE_ROUNDS and self._policy is Policy.AUTO:
            session.num_idle_rounds = 0
            session.off_for_s = min(2 * session.off_for_s or OFF_S, MAX_OFF_S)
            session.off_until_s = now_s + session.off_for_s
            session.acceptance.forget()
        if not self._wants(session, now_s) or session.link.is_lost(now_s):
            self.dismiss(session, outcome)
        elif session.link.is_due(now_s):
            session.link.asked(now_s, len(session.token_ids))
            outcome.requests.append(
                DraftRequest(
                    session_id=session.session_id,
                    target_id=self._identity.worker_id,
                    epoch=session.epoch,
                    vocabulary=self._identity.vocabulary,
                    prompt_len=session.prompt_len,
                    max_len=session.max_len,
                    token_ids=tuple(session.token_ids),
                    sampling=session.params,
                )
            )

    def _add_drafts(self, rows: Sequence[Row], offers: Offers, scheduler: Scheduler) -> None:
        max_rows = scheduler.max_drafts(rows)
        if self._policy is Policy.ON:
            lengths = [len(offer) for offer in offers]
        else:
            survivals = [
                row.session.acceptance.survival(len(offer))
                for row, offer in zip(rows, offers, strict=True)
            ]
            lengths = draft_lengths(
                survivals,
                num_sequences=len(rows),
                num_rows=sum(row.num_tokens for row in rows),
                cost=self.cost,
                max_rows=max_rows,
            )
        for row, offer, length in zip(rows, offers, lengths, strict=True):
            if length and max_rows > 0:
                scheduler.add_draft(row, offer[: min(length, max_rows)])
                max_rows -= len(row.draft_token_ids)

    def _measured_mode(self, rows: Sequence[Row]) -> Mode | None:
        """What a round says something about: one mode, or neither while drafters come or go."""
        since_s = self._clock.monotonic_s() - self._switched_s
        num_engaged = sum(row.session.link.state is LinkState.ENGAGED for row in rows)
        if num_engaged == 0:
            return Mode.PLAIN if since_s >= SETTLE_S else None
        if self._mode is Mode.PLAIN:
            return None
        return Mode.SPECULATIVE if num_engaged == len(rows) or since_s >= RAMP_S else None


def _offer(row: Row) -> list[int]:
    """The guesses that may be verified in this row."""
    session = row.session
    if not row.is_sampled or not session.tree:
        return []
    # The last token of a session is always the target's own, so no guess reaches so far.
    room = session.max_len - len(session.token_ids) - 1
    return session.tree.best_path(min(session.max_drafts, room))
