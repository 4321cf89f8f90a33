"""Rounds as CUDA graphs: one replay instead of some three hundred launches.

A graph is keyed by its number of rows and the tile of its attention. What varies from round to
round (tokens, lengths, tables) is read from device memory, so a round of fewer rows runs in the
next larger graph, the rest of its rows being nobody's.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Launch = Callable[[int, int, Tensor], None]  # number of rows, tile, where logits go


class RoundGraphs:
    """Captured rounds of one model.

    Args:
        launch: runs a round eagerly; only launches, and writes to the given logits.
        logits: [max_rows, V], shared by all graphs: a round is over before the next one starts.
        sizes: numbers of rows, ascending, at most max_rows.
        tiles: of attention, each of which gets its own graphs.
    """

    def __init__(
        self, launch: Launch, logits: Tensor, sizes: Sequence[int], tiles: Sequence[int]
    ) -> None:
        self._launch = launch
        self._logits = logits
        self._tiles = tuple(tiles)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._sizes = tuple(sizes)

    def capture(self, progress: Callable[[int, int], None]) -> None:
        """Capture all of them, the largest first, in one pool of memory.

        Args:
            progress: called with how many are done, and of how many.
        """
        keys = [(size, tile) for size in reversed(self._sizes) for tile in self._tiles]
        pool = None
        for number, (size, tile) in enumerate(keys, 1):
            out = self._logits[:size]
            self._warm_up(size, tile, out)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._launch(size, tile, out)
            pool = pool or graph.pool()
            self._graphs[size, tile] = graph
            progress(number, len(keys))

    def replay(self, num_rows: int, tile: int) -> Tensor | None:
        """Run the round that is in the buffers; its logits [num_rows, V], or None if none fits."""
        index = bisect_left(self._sizes, num_rows)
        if index == len(self._sizes):
            return None
        graph = self._graphs.get((self._sizes[index], tile))
        if graph is None:
            return None
        graph.replay()
        return self._logits[:num_rows]

    def _warm_up(self, size: int, tile: int, out: Tensor) -> None:
        """Compile, load and choose algorithms on another stream, as captures ask for."""
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._launch(size, tile, out)
        torch.cuda.current_stream().wait_stream(side)
