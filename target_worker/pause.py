"""What the caller of an engine does before its next step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pause:
    """What to do before the next step: nothing (0), wait so long, or until something comes."""

    seconds: float | None  # None: until something comes


POLL_S = 0.00005  # a GPU says when it is done to those who ask, or to one who does nothing else
# For so long a round is asked, then it is waited for: an engine that asks is alive to those who
# watch it, and one whose GPU hangs must not be. Less than the least `--hang-s`.
MAX_LISTENING_S = 0.5
GO_ON = Pause(0.0)
IDLE = Pause(None)
