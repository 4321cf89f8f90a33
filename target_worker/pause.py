"""What the caller of an engine does before its next step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pause:
    """What to do before the next step: nothing (0), wait so long, or until something comes."""

    seconds: float | None  # None: until something comes


POLL_S = 0.00005  # a GPU says when it is done to those who ask, or to one who does nothing else
GO_ON = Pause(0.0)
IDLE = Pause(None)
