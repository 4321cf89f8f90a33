"""What the kernels of a round read, in one block of memory on each side: one copy a round.

The device's side never moves, so that a captured graph finds the next round where it found the
last.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gpu.attention_work import AttentionBatch
from kernels.gpu.copy_blocks import copy_words
from kernels.gpu.follow_rows import NUM_COLUMNS
from kernels.gpu.take_guesses import KNOWN
from shared.engine.gpu.limits import RoundShape
from shared.engine.gpu.upload import is_over, upload
from shared.engine.spans import Span

Words = NDArray[np.int32]
MAX_COPIES = 128  # a step of a drafter forks some tens of branches at most


class _Fields(NamedTuple):
    """Offsets into the block, in 32-bit words."""

    token_ids: int
    positions: int
    slots: int
    logit_rows: int
    query_starts: int
    context_lens: int
    copies: int
    follows: int
    block_tables: int
    end: int


class RoundBuffers:
    """Rows and sequences of one round. One owner: the runner.

    Args:
        max_rows: rows of a round at most, padding included.
        max_sequences: in a round at most.
        max_blocks: of one sequence at most.
        block_size: tokens a block.
        device: of the kernels.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_sequences: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.max_rows = max_rows
        self.max_sequences = max_sequences
        self._max_blocks = max_blocks
        self._block_size = block_size
        fields = _fields(max_rows, max_sequences, max_blocks)
        is_pinned = device.type == "cuda"
        self._staged = torch.zeros(fields.end, dtype=torch.int32, pin_memory=is_pinned)
        self._words: Words = self._staged.numpy()
        self._follows = self._words[fields.follows : fields.block_tables].reshape(-1, NUM_COLUMNS)
        self._tables = self._words[fields.block_tables :].reshape(max_sequences, max_blocks)
        self._staged_tables: list[list[int]] = [[] for _ in range(max_sequences)]
        self._device = torch.zeros(fields.end, dtype=torch.int32, device=device)
        self._fields = fields
        self._num_rows = self._num_sequences = 0  # of the last round: what is to be cleared
        self._sent: torch.cuda.Event | None = None
        if is_pinned:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        own = self._device
        self.token_ids: Tensor = own[fields.token_ids : fields.positions]
        self.positions: Tensor = own[fields.positions : fields.slots]
        self.slots: Tensor = own[fields.slots : fields.logit_rows]
        # Of a round that picks its logits: those of which rows.
        self.logit_rows: Tensor = own[fields.logit_rows : fields.query_starts]
        self.copies: Tensor = own[fields.copies : fields.follows]
        self.follows: Tensor = own[fields.follows : fields.block_tables].view(-1, NUM_COLUMNS)
        self.attention = AttentionBatch(
            query_starts=own[fields.query_starts : fields.context_lens],
            context_lens=own[fields.context_lens : fields.copies],
            block_tables=own[fields.block_tables :].view(max_sequences, max_blocks),
            positions=self.positions,
        )

    def stage(
        self,
        spans: Sequence[Span],
        shape: RoundShape,
        follows: Sequence[tuple[int, int]] = (),
        copies: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Write a round's rows and send them to the device, in the order of the current stream.

        Waits until the round before has been sent: its copy reads what is written here.

        Args:
            spans: at least one.
            shape: of them.
            follows: where each of them goes on (a `Follow`, or a row of guesses and 0), if the
                device has yet to complete them.
            copies: at most MAX_COPIES blocks to copy before anything is computed.
        """
        if self._sent is not None and not is_over(self._sent):
            self._sent.synchronize()
        fields, words, num_sequences = self._fields, self._words, len(spans)
        for index, span in enumerate(spans):
            if self._staged_tables[index] != span.block_ids:  # of another sequence, or grown
                self._tables[index, : len(span.block_ids)] = span.block_ids
                self._staged_tables[index] = list(span.block_ids)
        counts = np.array([len(span.token_ids) for span in spans])
        starts = np.array([span.start for span in spans])
        ends = counts.cumsum()
        num_rows = shape.num_rows
        sequences = np.arange(num_sequences).repeat(counts)
        positions = np.arange(num_rows) + (starts - ends + counts)[sequences]
        blocks, offsets = np.divmod(positions, self._block_size)
        token_ids = list(itertools.chain.from_iterable(span.token_ids for span in spans))
        words[fields.token_ids : fields.token_ids + num_rows] = token_ids
        words[fields.positions : fields.positions + num_rows] = positions
        slots = self._tables[sequences, blocks] * self._block_size + offsets
        words[fields.slots : fields.slots + num_rows] = slots
        if shape.picks:
            num_logits = np.array([span.num_logits for span in spans])
            is_picked = np.arange(num_rows) >= (ends - num_logits)[sequences]
            self._pick(is_picked.nonzero()[0])
        words[fields.query_starts : fields.query_starts + num_sequences] = ends - counts
        words[fields.context_lens : fields.context_lens + num_sequences] = starts + counts
        if follows:
            self._follows[: len(follows)] = follows
        self._follows[len(follows) :] = KNOWN
        words[fields.copies] = len(copies)
        if copies:
            end = fields.copies + copy_words(len(copies))
            words[fields.copies + 1 : end] = list(itertools.chain.from_iterable(copies))
        self._pad(num_rows, num_sequences)
        used = fields.block_tables + num_sequences * self._max_blocks
        upload(self._device[:used], self._staged[:used])
        if self._sent is not None:
            self._sent.record()

    def _pick(self, rows: NDArray[np.int64]) -> None:
        """Rows whose logits are asked for; a larger graph takes row 0 for the others."""
        fields, words = self._fields, self._words
        words[fields.logit_rows : fields.logit_rows + len(rows)] = rows
        words[fields.logit_rows + len(rows) : fields.query_starts] = 0

    def _pad(self, num_rows: int, num_sequences: int) -> None:
        """Rows and sequences that the last round had and this one has not are nobody's."""
        fields, words = self._fields, self._words
        last = max(self._num_rows, num_rows)
        words[fields.token_ids + num_rows : fields.token_ids + last] = 0
        words[fields.positions + num_rows : fields.positions + last] = 0
        words[fields.slots + num_rows : fields.logit_rows] = -1
        words[fields.query_starts + num_sequences : fields.context_lens] = num_rows
        words[fields.context_lens + num_sequences : fields.copies] = 0
        self._num_rows, self._num_sequences = num_rows, num_sequences


def _fields(max_rows: int, max_sequences: int, max_blocks: int) -> _Fields:
    per_sequence = (max_sequences + 1, max_sequences)
    others = (copy_words(MAX_COPIES), NUM_COLUMNS * max_sequences)
    sizes = (max_rows, max_rows, max_rows, max_rows, *per_sequence, *others)
    starts = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    return _Fields._make([*starts, starts[-1] + max_sequences * max_blocks])
