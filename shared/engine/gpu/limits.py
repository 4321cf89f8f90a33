"""Sizes that buffers, graphs and the memory plan agree on. Arithmetic alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kernels.gpu.attention_work import CHUNK_LEN, max_items
from shared.engine.spans import Span


class RoundShape(NamedTuple):
    """What a round's spans come to, as far as it decides how they are run."""

    num_sequences: int
    num_rows: int
    num_logits: int  # rows whose logits are asked for
    longest: int  # rows of one sequence
    context: int  # tokens of the longest one, its rows included

    @classmethod
    def of(cls, spans: Sequence[Span]) -> "RoundShape":
        """Of these."""
        num_rows = num_logits = longest = context = 0
        for span in spans:
            num_own = len(span.token_ids)
            num_rows += num_own
            num_logits += span.num_logits
            longest = max(longest, num_own)
            context = max(context, span.start + num_own)
        return cls(len(spans), num_rows, num_logits, longest, context)

    @property
    def picks(self) -> bool:
        """Whether logits of some rows alone are asked for: there are prompts, or chunks of them."""
        return self.num_logits < self.num_rows


class Tiling(NamedTuple):
    """How attention cuts a round: see `kernels.gpu.attention_work.AttentionWork`."""

    block_m: int  # query rows x heads a tile
    chunk_len: int = CHUNK_LEN  # tokens
    merges_apart: bool = False


class GraphKind(NamedTuple):
    """What rounds of one set of graphs have in common."""

    tiling: Tiling
    picks: bool = False  # see RoundShape


DECODE, VERIFY, PREFILL = Tiling(16), Tiling(32), Tiling(128)
# One or two sequences do not fill a GPU: small chunks, 7.9 instead of 10.7 us a layer for a row of
# 1,024 tokens, 9.2 instead of 15.4 for five (H200, docs/decisions.md); for eight it is slower.
FEW_DECODE, FEW_VERIFY = Tiling(16, 64, merges_apart=True), Tiling(32, 64, merges_apart=True)
FEW_SEQUENCES, FEW_ROWS, FEW_CONTEXT = 2, 32, 4_096  # a longer context is chunks enough
# Dense where a row more costs something, sparse where the pass is bound by its weights anyway. None
# at 448: there the library took 271 us for 4,096 to 28,672, and 155 for 512 rows (H200).
GRAPH_ROWS = (
    *(1, 2, 4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128),
    *(160, 192, 224, 256, 320, 384, 512),
)
# Of rounds that compute prompts, which a row more costs less.
PICKING_ROWS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """Of the rounds of one model."""

    num_blocks: int
    block_size: int
    max_rows: int  # of a round; more are run in several passes
    max_sequences: int  # of a round
    max_model_len: int
    max_graph_rows: int = GRAPH_ROWS[-1]  # 0: no graphs
    is_batch_invariant: bool = False  # a row's bits depend on its own sequence alone
    is_drafter: bool = False  # a pass may go on from guesses that the host has not read

    @property
    def graph_rows(self) -> tuple[int, ...]:
        """Numbers of rows that have graphs, ascending."""
        return self._up_to_most(GRAPH_ROWS)

    def _up_to_most(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        most = min(self.max_graph_rows, self.max_rows)
        return tuple(num_rows for num_rows in sizes if num_rows <= most)

    @property
    def tilings(self) -> tuple[Tiling, ...]:
        """Of all rounds. One where a row's bits are its own: another adds up in another order."""
        if self.is_batch_invariant:
            return (VERIFY,)
        return (DECODE, VERIFY, PREFILL, FEW_DECODE, FEW_VERIFY)

    @property
    def graphs(self) -> dict[GraphKind, tuple[int, ...]]:
        """Numbers of rows that have graphs, by kind."""
        few = tuple(num_rows for num_rows in self.graph_rows if num_rows <= FEW_ROWS)
        whole = {
            GraphKind(tiling): few if tiling.merges_apart else self.graph_rows
            for tiling in self.tilings
            if tiling != PREFILL
        }
        picking = {
            GraphKind(tiling, picks=True): self._up_to_most(PICKING_ROWS)
            for tiling in (VERIFY, PREFILL)
            if tiling in self.tilings
        }
        return whole | picking

    def tiling_of(self, shape: RoundShape, group_size: int) -> Tiling:
        """The tiling for a round: for decoding, drafts, prefill.

        Four tiles of a verify round read a context as often as one for prefill computes it. Of
        rounds that pick their logits, which are few, there are only these two.
        """
        if self.is_batch_invariant:
            return VERIFY
        longest = shape.longest * group_size
        if longest > 4 * VERIFY.block_m:
            return PREFILL
        if shape.picks:
            return VERIFY
        is_decode = longest <= DECODE.block_m
        if (
            shape.num_sequences <= FEW_SEQUENCES
            and shape.num_rows <= FEW_ROWS
            and shape.context <= FEW_CONTEXT
        ):
            return FEW_DECODE if is_decode else FEW_VERIFY
        return DECODE if is_decode else VERIFY

    def room_for_items(self, tiling: Tiling, group_size: int) -> int:
        """Items of attention to set aside: of the longest span alone, and of a full cache's rows.

        Sequences that share a prefix can ask for more than the cache holds; such a round is split.
        """
        longest = self.max_rows
        if not self.is_batch_invariant and tiling != PREFILL:
            longest = max(1, 4 * tiling.block_m // group_size)
        context, num_sequences = self.max_model_len, self.max_sequences
        if tiling.merges_apart:
            context, num_sequences = min(context, FEW_CONTEXT), min(num_sequences, FEW_SEQUENCES)
            longest = min(longest, FEW_ROWS)
        alone = (min(longest, context), context)
        share = self.num_blocks * self.block_size // num_sequences
        each = (1, min(context, share))
        return max(
            max_items(
                lens, group_size=group_size, block_m=tiling.block_m, chunk_len=tiling.chunk_len
            )
            for lens in ([alone], [each] * num_sequences)
        )
