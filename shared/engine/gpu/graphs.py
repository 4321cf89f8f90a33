"""Rounds as CUDA graphs: one replay instead of some three hundred launches.

A graph is keyed by its number of rows and its kind. What varies from round to round (tokens,
lengths, tables, rows whose logits are asked for) is read from device memory, so a round of fewer
rows runs in the next larger graph, the rest of its rows being nobody's.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from shared.engine.gpu.limits import GraphKind

Launch = Callable[[int, GraphKind, Tensor], None]  # number of rows, where logits go


class RoundGraphs:
    """Captured rounds of one model.

    Args:
        launch: runs a round eagerly; only launches, and writes to the given logits.
        logits: [max_rows, V], shared by all graphs: a round is over before the next one starts.
        sizes: of each kind, numbers of rows, ascending, at most max_rows.
    """

    def __init__(
        self, launch: Launch, logits: Tensor, sizes: Mapping[GraphKind, Sequence[int]]
    ) -> None:
        self._launch = launch
        self._logits = logits
        self._graphs: dict[tuple[int, GraphKind], torch.cuda.CUDAGraph] = {}
        self._sizes = dict(sizes)

    @property
    def logits(self) -> Tensor:
        """Where every round leaves its own, from the first row on."""
        return self._logits

    def capture(self, progress: Callable[[int, int], None]) -> None:
        """Capture all of them, the largest first, in one pool of memory.

        Args:
            progress: called with how many are done, and of how many.
        """
        keys = [(size, kind) for kind, sizes in self._sizes.items() for size in sizes]
        pool = None
        for number, (size, kind) in enumerate(sorted(keys, reverse=True), 1):
            out = self._logits[:size]
            self._warm_up(size, kind, out)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._launch(size, kind, out)
            pool = pool or graph.pool()
            self._graphs[size, kind] = graph
            progress(number, len(keys))

    def replay(self, num_rows: int, kind: GraphKind) -> Tensor | None:
        """Run the round that is in the buffers; its logits [num_rows, V], or None if none fits."""
        sizes = self._sizes.get(kind, ())
        index = bisect_left(sizes, num_rows)
        if index == len(sizes):
            return None
        self._graphs[sizes[index], kind].replay()
        return self._logits[:num_rows]

    def _warm_up(self, size: int, kind: GraphKind, out: Tensor) -> None:
        """Compile, load and choose algorithms on another stream, as captures ask for."""
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._launch(size, kind, out)
        torch.cuda.current_stream().wait_stream(side)
