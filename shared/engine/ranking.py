"""A drafter's passes: spans in, the best tokens of each out.

A device that computes by itself need not wait until the host has read what a pass found: the next
one may begin behind it, with tokens that only the device knows yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from kernels.gumbel_top import Top
from shared.engine.adjustments import changes_logits
from shared.engine.samplers import Sampler
from shared.engine.sampling import Row
from shared.engine.spans import Runner, Span

Collect = Callable[[], list[Top]]  # waits for what a pass finds
KNOWN = -1  # instead of a row: the span's tokens are what they say


class Ranker(Protocol):
    """Passes of one model, each with the ranking of its rows. One caller at a time."""

    can_follow: bool  # whether a pass may begin before the one before is collected

    def begin(
        self, spans: Sequence[Span], rows: Sequence[Row], num: int, follows: Sequence[int] = ()
    ) -> Collect:
        """Start a pass. At most two are under way, and they are collected in their order.

        Args:
            spans: at least one.
            rows: one a span that has a logit.
            num: best tokens of each row.
            follows: nothing, or one a span: the row of the pass before whose best token is this
                span's only one, whatever the span says, and comes last before what is chosen here;
                or KNOWN. Such a row has no adjustments.

        Returns:
            What waits for the best tokens, none of a row that is unusable.
        """
        ...

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        ...


class HostRanker(Ranker):
    """A runner and its sampler, by whom everything is done when `begin` returns.

    Args:
        runner: the model.
        sampler: of its logits.
        can_follow: whether callers may begin a pass early; nothing is gained by it here.
    """

    def __init__(self, runner: Runner, sampler: Sampler, *, can_follow: bool = False) -> None:
        self.can_follow = can_follow
        self._runner = runner
        self._sampler = sampler
        self._last: list[Top] = []

    def begin(
        self, spans: Sequence[Span], rows: Sequence[Row], num: int, follows: Sequence[int] = ()
    ) -> Collect:
        """See Ranker."""
        if follows:
            spans, rows = completed(spans, rows, follows, [_best(top) for top in self._last])
        logits = self._runner.run(spans)
        tops = self._last = self._sampler.rank(logits, rows, num)
        return lambda: tops

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._runner.copy_blocks(copies)


def completed(
    spans: Sequence[Span], rows: Sequence[Row], follows: Sequence[int], best: Sequence[int]
) -> tuple[list[Span], list[Row]]:
    """The same pass when it is known what it goes on from.

    Args:
        spans: as those of `Ranker.begin`.
        rows: the same.
        follows: the same.
        best: the best token of each row of the pass before.
    """
    known, all_rows, own = [], [], iter(rows)
    for span, follow in zip(spans, follows, strict=True):
        row = next(own) if span.num_logits else None
        if follow != KNOWN:
            span = replace(span, token_ids=[best[follow]])  # noqa: PLW2901
            assert row is not None
            assert not changes_logits(row.params, 0)
            row = replace(row, token_ids=[*row.token_ids, best[follow]])
        known.append(span)
        if row is not None:
            all_rows.append(row)
    return known, all_rows


def _best(top: Top) -> int:
    """Any token of an unusable row: whoever asked for it drops what comes of it."""
    return top.token_ids[0] if top.token_ids else 0
