"""Counts since the worker started: what its heartbeat says of it."""

from shared.protocol.limits import MAX_SPECULATIVE_TOKENS
from shared.protocol.workers import SpeculationTotals


class Totals:
    """Written by the engine thread, read by the event loop; each count by itself is right."""

    def __init__(self) -> None:
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._accepted = [0] * MAX_SPECULATIVE_TOKENS

    def count_draft(self, num_drafted: int, num_accepted: int) -> None:
        """A verify round held a draft, of which the first `num_accepted` tokens were right."""
        self._num_drafts += 1
        self._num_draft_tokens += num_drafted
        for position in range(num_accepted):
            self._accepted[position] += 1

    def speculation(self) -> SpeculationTotals:
        """As the heartbeat carries them."""
        return SpeculationTotals(
            num_drafts=self._num_drafts,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=sum(self._accepted),
            accepted_per_position=tuple(self._accepted),
        )
