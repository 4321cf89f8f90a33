"""What a drafter is: anything that guesses tokens for sessions. It knows no Redis, threads or time.

A drafter is fed requests, verdicts and ends, and asked for one batched step at a time. Whatever it
says, the target decides (docs/design.md), so a drafter may be wrong, late or lost at no risk.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from shared.protocol.messages import DraftClosed, DraftPath, DraftRequest, Verdict

Proposal = DraftPath | DraftClosed


class Drafter(Protocol):
    """Guesses for many sessions at once. One caller at a time."""

    counts: Counter[str]  # what it has done so far, by names of its own; logged at the end

    def open(self, request: DraftRequest) -> bool:
        """Start guessing for a session, or fall in step with it again if it is known.

        Returns:
            False when there is no room or the request cannot be served; nobody else is affected.
        """
        ...

    def confirm(self, verdict: Verdict) -> bool:
        """Take in what the target confirmed. Old news changes nothing.

        Returns:
            False when the session cannot follow (a verdict before this one was lost, or the tokens
            are not of this session): its owner should close it.
        """
        ...

    def close(self, session_id: str) -> None:
        """Forget a session; an unknown one is no error."""
        ...

    def step(self) -> Sequence[Proposal]:
        """One batched step: what is worth telling the targets now, possibly nothing.

        A `DraftClosed` says that the drafter dropped that session itself, for lack of room.
        """
        ...

    @property
    def has_work(self) -> bool:
        """Whether a step could achieve anything before the next message."""
        ...

    @property
    def listen_s(self) -> float:
        """Seconds to wait for messages before the next step: it could not begin to compute yet."""
        ...

    @property
    def num_free(self) -> int:
        """How many short new sessions would be taken."""
        ...

    @property
    def usage(self) -> float:
        """How full its memory is, 0 to 1."""
        ...


def unseen(token_ids: Sequence[int], num_confirmed: int, verdict: Verdict) -> Sequence[int] | None:
    """The tokens of a verdict that come after what is already known to be confirmed.

    Args:
        token_ids: of the session; the first `num_confirmed` are confirmed.
        num_confirmed: how many of them are.
        verdict: may overlap with them.
    Returns:
        Possibly nothing (old news); None when there is a gap or the overlap disagrees.
    """
    num_known = num_confirmed - verdict.base_len
    if num_known < 0 or verdict.base_len < 0:
        return None
    overlap = verdict.token_ids[:num_known]
    if tuple(token_ids[verdict.base_len : verdict.base_len + len(overlap)]) != overlap:
        return None
    return verdict.token_ids[num_known:]
