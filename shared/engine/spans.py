"""The interface of a model pass: ragged spans of tokens in, logits of their last rows out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence to be computed in this pass.

    A prefill chunk, a plain decode (one token) or the rows of a verify round: to the model they are
    the same, so one pass mixes them freely.
    """

    token_ids: Sequence[int]
    start: int  # absolute position of the first; everything before it is in the cache
    block_ids: Sequence[int]  # the sequence's block table, with room for start + len(token_ids)
    num_logits: int  # of the last so many tokens; 0 for a prefill chunk that is not the last


class Runner(Protocol):
    """A model with its paged cache. One caller at a time."""

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Compute all spans in one pass, writing their keys and values into the cache.

        Returns:
            [sum of num_logits, V] float32, in the order of the spans.
        """
        ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole cache blocks, (source, destination) each: the partial block of a fork."""
        ...
