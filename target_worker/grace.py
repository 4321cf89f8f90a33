"""How long the only session of a round may wait for its drafter after a correction.

Waiting pays if the answer comes before plain decoding would have caught up. Let T be the seconds of
a plain round, R the session's tokens per second, p the chance that a plain token is what the
drafter will guess first. Decoding plainly without guesses is worth V(empty) = 1 - T R + p V(full) +
(1 - p) V(empty), hence V(full) - V(empty) = (T R - 1) / p. Waiting g seconds costs g R. So wait if

    g < (T - 1 / R) / p
"""

_SMOOTHING = 0.2  # weight of the newest measurement
_MAX_SHARE = 0.5  # of a plain round: the most that one correction may cost
_MEMORY = 0.95  # of older rounds per new one, for the session's own speed
_MARGIN = 1.25  # over the mean answer time: few answers are much later than their mean


class Grace:
    """Measures how fast a drafter answers a correction, and bounds the wait for it."""

    def __init__(self) -> None:
        self._answer_s: float | None = None  # mean from correction to the first usable path
        self._asked_s: float | None = None
        self._num_tokens = self._seconds = 0.0  # of late: the session's speed

    def confirmed(self, num_tokens: int, seconds: float) -> None:
        """A round gave the session `num_tokens` tokens, `seconds` after the one before."""
        self._num_tokens = self._num_tokens * _MEMORY + num_tokens
        self._seconds = self._seconds * _MEMORY + seconds

    def corrected(self, now_s: float) -> None:
        """A round left the session without guesses. The answer is timed from the first of them."""
        if self._asked_s is None:
            self._asked_s = now_s

    def forget(self) -> None:
        """The drafter is gone; another one may be faster or slower."""
        self._answer_s = self._asked_s = None

    def answered(self, now_s: float) -> None:
        """A usable path came."""
        if self._asked_s is None:
            return
        answer_s = now_s - self._asked_s
        old_s = self._answer_s
        self._answer_s = answer_s if old_s is None else old_s + _SMOOTHING * (answer_s - old_s)
        self._asked_s = None

    def wait_s(self, now_s: float, *, plain_s: float, chance: float) -> float:
        """Seconds still to wait now; 0 to go on without.

        Args:
            now_s: time.
            plain_s: of a round with one row, for this session alone.
            chance: that the first guess is right; above 0.
        """
        if self._asked_s is None or self._answer_s is None or not self._num_tokens:
            return 0.0
        per_token_s = self._seconds / self._num_tokens
        worth_s = min((plain_s - per_token_s) / chance, _MAX_SHARE * plain_s)
        if self._answer_s > worth_s:
            return 0.0
        return max(0.0, self._asked_s + min(_MARGIN * self._answer_s, worth_s) - now_s)
