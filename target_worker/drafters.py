"""What one session and its drafter owe each other: who guesses, since when, and when to ask again.

Drafting is soft state. A drafter may never answer, go silent or close; the session decodes plainly
meanwhile, and asks again at a bounded rate.
"""

from enum import StrEnum

ASK_AGAIN_S = 0.5  # after a request without an answer; doubled each time
MAX_ASK_AGAIN_S = 30.0
LOST_AFTER_S = 1.0  # silence, with verdicts to answer, after which a drafter counts as gone
LOST_AFTER_VERDICTS = 8  # it cannot be blamed for silence while nothing happened


class LinkState(StrEnum):
    """Where a session stands with its drafter."""

    IDLE = "idle"
    ASKED = "asked"
    ENGAGED = "engaged"


class DraftLink:
    """One session's drafter. The engine sends what the methods return."""

    __slots__ = (
        "_again_s",
        "_heard_s",
        "_interval_s",
        "_num_unanswered",
        "asked_len",
        "draft_id",
        "state",
    )

    def __init__(self) -> None:
        self.state = LinkState.IDLE
        self.draft_id: str | None = None  # of the drafter while ENGAGED
        self.asked_len = 0  # confirmed tokens in the last request; what came since is owed
        self._interval_s = ASK_AGAIN_S
        self._again_s = 0.0  # not asked before this
        self._heard_s = 0.0
        self._num_unanswered = 0  # verdicts since a path was heard

    def is_due(self, now_s: float) -> bool:
        """Whether to post a draft request now."""
        return self.state is not LinkState.ENGAGED and now_s >= self._again_s

    def is_lost(self, now_s: float) -> bool:
        """Whether an engaged drafter went silent although there was something to say."""
        return (
            self.state is LinkState.ENGAGED
            and self._num_unanswered >= LOST_AFTER_VERDICTS
            and now_s - self._heard_s >= LOST_AFTER_S
        )

    def asked(self, now_s: float, num_tokens: int) -> None:
        """A draft request with `num_tokens` confirmed tokens is on its way."""
        self.state = LinkState.ASKED
        self.asked_len = num_tokens
        self._again_s = now_s + self._interval_s
        self._interval_s = min(2 * self._interval_s, MAX_ASK_AGAIN_S)

    def accepted(self, draft_id: str, now_s: float) -> bool:
        """A drafter offers itself. False: there is a live one already, send this one away."""
        if self.state is LinkState.ENGAGED and self.draft_id != draft_id:
            return False
        self.state = LinkState.ENGAGED
        self.draft_id = draft_id
        self._heard_s = now_s
        self._num_unanswered = 0
        return True

    def heard(self, now_s: float) -> None:
        """A usable path came."""
        self._heard_s = now_s
        self._num_unanswered = 0
        self._interval_s = ASK_AGAIN_S

    def told(self) -> None:
        """A verdict is on its way."""
        self._num_unanswered += 1

    def closed(self, now_s: float) -> None:
        """The drafter is gone, or was sent away."""
        self.state = LinkState.IDLE
        self.draft_id = None
        self._again_s = max(self._again_s, now_s)
