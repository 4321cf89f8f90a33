"""Where a reader stands in a job's log, and the cursor that says so to a client.

Offsets are dense, so a position proves by itself whether an entry is the next one, an old one, or
whether something is missing. A cursor is the same thing as text: output tokens of each choice,
joined by commas, an `f` behind a choice whose end was shown, `end` after the last frame:
`0` · `17` · `17f` · `12,9f` · `end`.
"""

import re
from enum import Enum, auto

from shared.common.errors import ClientError
from shared.protocol.records import Done, Failed, Finished, Record, Tokens

END = "end"
_PART = re.compile(r"(?P<length>[0-9]{1,9})(?P<finished>f?)")


class Step(Enum):
    """What an entry means at a position."""

    NEXT = auto()
    STALE = auto()  # known already
    UNPROVEN = auto()  # something is missing before it, or might be: only the log can tell
    DIVERGED = auto()  # begins inside what was shown: not the log that was read before


class Position:
    """How much of each choice is known, and which choices have ended."""

    def __init__(self, num_choices: int) -> None:
        self.lengths = [0] * num_choices  # output tokens
        self.has_finished = [False] * num_choices
        self.is_over = False

    def step(self, record: Record) -> Step:
        """What `record` means here, if it came from a feed, which may have lost entries."""
        if self.is_over:
            return Step.STALE
        if isinstance(record, Done):
            is_complete = sum(self.lengths) == record.usage.completion_tokens and all(
                is_finished or choice == record.choice
                for choice, is_finished in enumerate(self.has_finished)
            )
            return Step.NEXT if is_complete else Step.UNPROVEN
        if isinstance(record, Failed):
            return Step.UNPROVEN
        if not 0 <= record.choice < len(self.lengths):
            return Step.DIVERGED
        if isinstance(record, Finished):
            return Step.STALE if self.has_finished[record.choice] else Step.UNPROVEN
        return self._step_tokens(record)

    def _step_tokens(self, record: Tokens) -> Step:
        length = self.lengths[record.choice]
        if record.offset == length:
            return Step.NEXT if record.token_ids else Step.STALE
        if record.offset > length:
            return Step.UNPROVEN
        return Step.STALE if record.offset + len(record.token_ids) <= length else Step.DIVERGED

    def advance(self, record: Record) -> None:
        """Count `record` as known."""
        match record:
            case Tokens():
                self.lengths[record.choice] = record.offset + len(record.token_ids)
            case Finished():
                self.has_finished[record.choice] = True
            case Done() | Failed():
                self.has_finished = [True] * len(self.lengths)
                self.is_over = True

    @property
    def cursor(self) -> str:
        """The position as text, `end` aside."""
        if len(self.lengths) == 1:  # the common case, once a frame
            return f"{self.lengths[0]}f" if self.has_finished[0] else str(self.lengths[0])
        return ",".join(
            f"{length}f" if is_finished else str(length)
            for length, is_finished in zip(self.lengths, self.has_finished, strict=True)
        )


def parse_cursor(text: str, num_choices: int) -> Position:
    """The position a client says it has reached.

    Raises:
        ClientError: not a cursor of a stream with this many choices.
    """
    position = Position(num_choices)
    if text == END:
        position.advance(Failed("", ""))
        return position
    parts = text.split(",")
    matches = [_PART.fullmatch(part) for part in parts]
    if len(parts) != num_choices or not all(matches):
        raise ClientError(
            f"the cursor must be the id of a frame of this stream: {num_choices} token counts",
            param="starting_after",
            code="invalid_cursor",
        )
    for choice, found in enumerate(matches):
        assert found is not None
        position.lengths[choice] = int(found["length"])
        position.has_finished[choice] = bool(found["finished"])
    return position
