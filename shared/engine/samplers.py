"""The sampler as workers use it: one interface, wherever the logits are.

The definition is `shared.engine.sampling`; an implementation for another device gives the same
tokens for the same logits.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from kernels.gumbel_top import Top
from shared.engine import sampling
from shared.engine.sampling import Row, VerifyRequest

Collect = Callable[[], list[list[int]]]  # waits for what `verify` returns


class Sampler(Protocol):
    """Chooses tokens from the logits of the runner that it belongs to. One caller at a time."""

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See `shared.engine.sampling.verify`."""
        ...

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        """Start a `verify`; its tokens are waited for when they are asked for, once.

        Whatever runs between is not held up by a GPU. One at a time.
        """
        ...

    def is_over(self) -> bool:
        """Whether the last `begin_verify` can be collected without waiting."""
        ...

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """A drafter's ranking: `shared.engine.sampling.rank` with `only_near`."""
        ...


class HostSampler(Sampler):
    """On the CPU."""

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See Sampler."""
        return sampling.verify(logits, requests)

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        """See Sampler. There is nothing to wait for here."""
        confirmed = sampling.verify(logits, requests)
        return lambda: confirmed

    def is_over(self) -> bool:
        """See Sampler. It is when it has begun."""
        return True

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """See Sampler."""
        return sampling.rank(logits, rows, num, only_near=True)
