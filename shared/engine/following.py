"""Rounds that begin before the round before is known: its tokens stay on the device.

A device that computes by itself need not wait until the host has read what a round confirmed, if
nobody has guesses for the next one: that one computes one token a sequence, the last confirmed.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shared.engine.samplers import Collect
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span


class Follow(NamedTuple):
    """Where a sequence goes on: its request in the round under way."""

    first_row: int  # of its rows, among all whose logits that round has
    num_drafts: int


class Follower(Protocol):
    """Begins such rounds for one runner and its sampler. One caller at a time."""

    def has_room(self, spans: Sequence[Span]) -> bool:
        """Whether such a round can be computed: in one pass."""
        ...

    def begin(
        self,
        spans: Sequence[Span],
        requests: Sequence[VerifyRequest],
        follows: Sequence[Follow],
    ) -> Collect:
        """Start a round behind the one whose `begin_verify`, or `begin`, was the last.

        That one is to be collected first. Its logits are overwritten.

        Args:
            spans: one token each, whatever it is, staged as though every draft token of the round
                under way had been accepted: `start` and the room in the block table reckon so.
            requests: one a span, without drafts or adjustments; tokens as the host knows them.
            follows: one a span.

        Returns:
            What waits for the tokens of all requests.
        """
        ...
