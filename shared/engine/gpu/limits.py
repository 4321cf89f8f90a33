"""Sizes that buffers, graphs and the memory plan agree on. Arithmetic alone."""

from dataclasses import dataclass

from kernels.gpu.attention_work import max_items

DECODE_TILE, VERIFY_TILE, PREFILL_TILE = 16, 32, 128  # query rows x heads a tile of attention
TILES = (DECODE_TILE, VERIFY_TILE, PREFILL_TILE)
# Dense where a row more costs something, sparse where the pass is bound by its weights anyway.
GRAPH_ROWS = (
    *(1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128),
    *(160, 192, 224, 256, 320, 384, 448, 512),
)


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Of the rounds of one model."""

    num_blocks: int
    block_size: int
    max_rows: int  # of a round; more are run in several passes
    max_sequences: int  # of a round
    max_model_len: int
    max_graph_rows: int = GRAPH_ROWS[-1]  # 0: no graphs
    # So many rows in every pass, whatever is asked for: then a row's bits depend on its own
    # sequence alone. None: as many as there are.
    fixed_rows: int | None = None

    @property
    def max_pass_rows(self) -> int:
        """Rows of one pass at most."""
        return self.fixed_rows or self.max_rows

    @property
    def graph_rows(self) -> tuple[int, ...]:
        """Numbers of rows that have graphs, ascending."""
        if self.fixed_rows is not None:
            return (self.fixed_rows,)
        most = min(self.max_graph_rows, self.max_rows)
        return tuple(num_rows for num_rows in GRAPH_ROWS if num_rows <= most)

    @property
    def graph_tiles(self) -> tuple[int, ...]:
        """Tiles of attention that have graphs."""
        return (DECODE_TILE, VERIFY_TILE) if self.fixed_rows is None else (VERIFY_TILE,)

    def tile_of(self, longest: int, group_size: int) -> int:
        """The tile for a round whose longest span has so many rows: for decoding, drafts, prefill.

        Four tiles of a verify round read a context as often as one for prefill computes it.
        """
        if self.fixed_rows is not None:
            return VERIFY_TILE
        if longest * group_size <= DECODE_TILE:
            return DECODE_TILE
        return VERIFY_TILE if longest * group_size <= 4 * VERIFY_TILE else PREFILL_TILE

    def room_for_items(self, tile: int, group_size: int) -> int:
        """Items of attention to set aside: of the longest span alone, and of a full cache's rows.

        Sequences that share a prefix can ask for more than the cache holds; such a round is split.
        """
        longest = self.max_pass_rows
        if self.fixed_rows is None and tile != PREFILL_TILE:
            longest = max(1, 4 * tile // group_size)
        alone = (min(longest, self.max_model_len), self.max_model_len)
        share = self.num_blocks * self.block_size // self.max_sequences
        each = (1, min(self.max_model_len, share))
        return max(
            max_items(lens, group_size=group_size, block_m=tile)
            for lens in ([alone], [each] * self.max_sequences)
        )
