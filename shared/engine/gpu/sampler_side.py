"""One of a sampler's two sides on the host: a round is staged while the other is under way."""

import torch
from torch import Tensor

from shared.engine.gpu.sampler_buffers import SamplerInputs, SamplerResults
from shared.engine.gpu.upload import is_over


class SamplerSide:
    """The host's part of one round: what is sent, what comes back, and when it has.

    Args:
        rows: on the device, as `SamplerInputs` has them.
        filters: the same.
        device_results: bytes on the device.
    """

    def __init__(self, rows: Tensor, filters: Tensor, device_results: Tensor) -> None:
        self.inputs = SamplerInputs(rows, filters)
        self._device_bytes = device_results
        self._host_bytes = torch.empty(
            len(device_results), dtype=torch.uint8, pin_memory=device_results.is_cuda
        )
        self._results: dict[tuple[int, int], SamplerResults] = {}  # by rows and ranks: views
        self._done: torch.cuda.Event | None = None
        if device_results.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def results(self, num_rows: int, num: int) -> SamplerResults:
        """Where a launch of this shape leaves what it finds."""
        results = self._results.get((num_rows, num))
        if results is None:
            results = SamplerResults(self._device_bytes, self._host_bytes, num_rows, num)
            self._results[num_rows, num] = results
        return results

    def note_launch(self) -> None:
        """All of the round is in the stream."""
        if self._done is not None:
            self._done.record()

    def is_over(self) -> bool:
        """Whether `wait` would not."""
        return self._done is None or is_over(self._done)

    def wait(self) -> None:
        """Until the last round of this side is over."""
        if self._done is not None and not is_over(self._done):
            self._done.synchronize()
