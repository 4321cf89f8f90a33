"""Rounds on a GPU that begin before the host has read the one before."""

from collections.abc import Sequence

import torch

from shared.engine.following import Follow, Follower
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.samplers import Collect
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams

# Both ways through the sampler's kernels: as they are, and filtered.
_WARM_UP_PARAMS = tuple(
    SamplingParams(seed=0, temperature=0.7, top_p=top_p) for top_p in (1.0, 0.9)
)


class GpuFollower(Follower):
    """Joins a runner and its sampler: what one chooses, the other computes next."""

    def __init__(self, runner: GpuRunner, sampler: GpuSampler) -> None:
        self._runner = runner
        self._sampler = sampler

    def has_room(self, spans: Sequence[Span]) -> bool:
        """See Follower."""
        return self._runner.has_room(spans)

    @torch.inference_mode()
    def begin(
        self,
        spans: Sequence[Span],
        requests: Sequence[VerifyRequest],
        follows: Sequence[Follow],
    ) -> Collect:
        """See Follower."""
        before = self._sampler.launched
        logits, positions = self._runner.run_following(spans, follows, before)
        return self._sampler.begin_following(logits, requests, positions)

    def warm_up(self) -> None:
        """Compile and load what these rounds need; block 0 is nobody's yet, and left empty."""
        for params in _WARM_UP_PARAMS:
            request = VerifyRequest(params, [0], 1, ())
            self._sampler.verify(self._runner.run([Span([0], 0, [0], 1)]), [request])
            self.begin([Span([0], 0, [0], 1)], [request], [Follow(0, 0)])()
        self._runner.clear_block(0)


def ready_follower(runner: GpuRunner, sampler: GpuSampler) -> GpuFollower:
    """A follower of both, after they were warmed up, with everything compiled and loaded."""
    follower = GpuFollower(runner, sampler)
    follower.warm_up()
    return follower
