"""Passes of a drafter on a GPU, one behind another: see `shared.engine.ranking`."""

from collections.abc import Callable, Sequence

import torch

from kernels.gumbel_top import Top
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.ranking import KNOWN, Ranker, completed
from shared.engine.sampling import Row
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams

_WARM_UP_PARAMS = SamplingParams(seed=0, temperature=0.7)


class GpuRanker(Ranker):
    """Joins a runner and its sampler: what one finds best, the other computes next.

    Args:
        runner: of a drafter.
        sampler: leaves the best tokens in the runner's `guesses`.
    """

    can_follow = True

    def __init__(self, runner: GpuRunner, sampler: GpuSampler) -> None:
        self._runner = runner
        self._sampler = sampler

    @torch.inference_mode()
    def begin(
        self, spans: Sequence[Span], rows: Sequence[Row], num: int, follows: Sequence[int] = ()
    ) -> Callable[[], list[Top]]:
        """See Ranker."""
        if not follows:
            return self._sampler.begin_rank(self._runner.run(spans), rows, num)
        logits = self._runner.run_guessed(spans, follows)
        if logits is None:  # not in one pass; what it goes on from is waited for
            known, all_rows = completed(spans, rows, follows, self._sampler.read_best())
            return self._sampler.begin_rank(self._runner.run(known), all_rows, num)
        pairs = zip(spans, follows, strict=True)
        unread = [int(follow != KNOWN) for span, follow in pairs if span.num_logits]
        return self._sampler.begin_rank(logits, rows, num, unread)

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._runner.copy_blocks(copies)

    def warm_up(self, num: int) -> None:
        """Compile and load what a pass behind another needs; block 0 is nobody's, and left empty.

        Args:
            num: best tokens of each row.
        """
        rows = [Row(_WARM_UP_PARAMS, [0], 1)]
        before = self.begin([Span([0], 0, [0], 1)], rows, num)
        behind = self.begin([Span([0], 1, [0], 1)], rows, num, [0])
        for collect in (before, behind):
            collect()
        self._runner.clear_block(0)
