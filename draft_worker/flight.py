"""A step under way: which chains wait for which of its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from draft_worker.batch import Growth
from draft_worker.chain import Chain
from kernels.gumbel_top import Top
from shared.engine.ranking import KNOWN, Collect, Ranker


@dataclass(frozen=True, slots=True)
class Flight:
    """What was begun, until it is collected."""

    growths: Sequence[Growth]  # those that a guess comes of, in the order of its rows
    rows: Mapping[Chain, int]
    collect: Collect

    @classmethod
    def begin(cls, growths: Sequence[Growth], ranker: Ranker, num_ranks: int) -> "Flight":
        """Begin a pass over all growths."""
        growing = [growth for growth in growths if growth.span.num_logits]
        follows = [growth.follow for growth in growths]
        collect = ranker.begin(
            [growth.span for growth in growths],
            [growth.chain.row for growth in growing],
            num_ranks,
            () if all(follow == KNOWN for follow in follows) else follows,
        )
        return cls(growing, {growth.chain: row for row, growth in enumerate(growing)}, collect)

    def usable(self, tops: Sequence[Top]) -> Iterator[tuple[Growth, Top]]:
        """The growths that no news have overtaken, with what was found for them.

        A chain may have ended with a guess that was not known when this step was begun; what comes
        behind it is dropped.
        """
        for growth, top in zip(self.growths, tops, strict=True):
            if growth.generation != growth.chain.generation:
                continue
            if growth.follow != KNOWN and growth.session.has_ended(growth.chain):
                growth.chain.num_awaited -= 1
                continue
            yield growth, top
