"""A job as the engine sees it: its choices, and the records that its rounds write.

The log's grammar is kept here: tokens* finished* (done | error), one terminal record, the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.bus.jobs import Claim
from shared.protocol.limits import MAX_SPECULATIVE_TOKENS
from shared.protocol.records import (
    Done,
    Finished,
    FinishReason,
    Record,
    SpeculationStats,
    Tokens,
    Usage,
)
from target_worker.session import Session


@dataclass(frozen=True, slots=True)
class Ended:
    """What there is to say of a job that ended here, for the log and the metrics."""

    job_id: str
    outcome: str  # the finish reasons, or the code of an error
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    num_drafted: int
    num_accepted: int
    ttft_s: float | None  # None: it ended before its first token, or was taken over
    duration_s: float


class Job:
    """One claimed job in the engine.

    Args:
        claim: the right to write its log.
        sessions: the choices that go on, in order of choice.
        reasons: per choice why it ended already, None for those in `sessions`.
        num_logged: per choice output tokens in the log already.
        prompt_len: tokens.
        deadline_ms: Unix time after which nobody waits.
        now_s: monotonic time of admission.
    """

    __slots__ = (
        "_accepted",
        "_by_choice",
        "_drafted",
        "_num_drafted",
        "_num_logged",
        "_num_rounds",
        "_reasons",
        "_started_s",
        "cached_tokens",
        "claim",
        "deadline_ms",
        "first_token_s",
        "is_over",
        "prompt_len",
        "sessions",
    )

    def __init__(
        self,
        claim: Claim,
        sessions: dict[int, Session],
        *,
        reasons: Sequence[FinishReason | None],
        num_logged: Sequence[int],
        prompt_len: int,
        deadline_ms: int | None,
        now_s: float,
    ) -> None:
        self.claim = claim
        self.sessions = sessions
        self.prompt_len = prompt_len
        self.deadline_ms = deadline_ms
        self.cached_tokens = 0
        self.is_over = False
        self.first_token_s: float | None = None
        self._reasons = list(reasons)
        self._num_logged = list(num_logged)
        self._started_s = now_s
        self._num_rounds = self._num_drafted = 0
        self._drafted = [0] * MAX_SPECULATIVE_TOKENS
        self._accepted = [0] * MAX_SPECULATIVE_TOKENS

    def count_draft(self, num_drafted: int, num_accepted: int) -> None:
        """A verify round held `num_drafted` > 0 guesses, of which the first ones were right."""
        self._num_rounds += 1
        self._num_drafted += num_drafted
        for position in range(num_drafted):
            self._drafted[position] += 1
        for position in range(num_accepted):
            self._accepted[position] += 1

    def confirmed(self, choice: int, token_ids: Sequence[int], text: str) -> list[Record]:
        """The records of what a round confirmed for one choice, its end included."""
        session = self.sessions[choice]
        records: list[Record] = []
        if token_ids:
            offset = self._num_logged[choice]
            records.append(Tokens(choice, offset, tuple(token_ids), text))
            self._num_logged[choice] += len(token_ids)
        if session.reason is not None:
            self._reasons[choice] = session.reason
            records.append(self._end_record(choice, session))
        return records

    @property
    def reasons(self) -> list[FinishReason]:
        """Why its choices ended, those that did."""
        return [reason for reason in self._reasons if reason is not None]

    def report(self, outcome: str, now_s: float) -> Ended:
        """What to log of it at its end."""
        first = self.first_token_s
        return Ended(
            job_id=self.claim.job_id,
            outcome=outcome,
            prompt_tokens=self.prompt_len,
            cached_tokens=self.cached_tokens,
            completion_tokens=sum(self._num_logged),
            num_drafted=self._num_drafted,
            num_accepted=sum(self._accepted),
            ttft_s=None if first is None else first - self._started_s,
            duration_s=now_s - self._started_s,
        )

    def _end_record(self, choice: int, session: Session) -> Record:
        text = session.text.flush()
        reason = session.reason
        assert reason is not None
        reasons = self.reasons
        if len(reasons) < len(self._reasons):
            return Finished(choice, text, reason)
        self.is_over = True
        return Done(
            choice=choice,
            text=text,
            reasons=tuple(reasons),
            seed=self.claim.seed,
            usage=Usage(self.prompt_len, self.cached_tokens, sum(self._num_logged)),
            speculation=self._speculation(),
        )

    def _speculation(self) -> SpeculationStats:
        longest = MAX_SPECULATIVE_TOKENS - self._drafted.count(0)  # [K] as far as drafts went
        return SpeculationStats(
            num_rounds=self._num_rounds,
            num_draft_tokens=self._num_drafted,
            num_accepted_tokens=sum(self._accepted),
            drafted_per_position=tuple(self._drafted[:longest]),
            accepted_per_position=tuple(self._accepted[:longest]),
        )
