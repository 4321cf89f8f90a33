"""Penalties, bias and ids not allowed yet, for rows of logits on a GPU.

The definition is shared/engine/adjustments.py. The host knows which tokens a row changes and how;
the device forms, in float64 and in the same order, `logit / or * repetition - penalty + bias`, or
-inf, in a copy of the row. Row j of a verify request is changed as if its first j draft tokens were
confirmed.

Room for the copies is set aside once: a round with more adjusted rows is adjusted in pieces.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.engine.sampling import Row, VerifyRequest

Ids = NDArray[np.int64]
Values = NDArray[np.float64]
Changes = tuple[Ids, Values]  # of one row: token ids [N], and [N, 4] what happens to them

MAX_ROWS = 64  # of a piece: 66 MB of float64 at a vocabulary of 128,256
MAX_CHANGES = 2**17  # tokens of a piece, unless a single row has more
# What a changed token takes while its piece is formed: place, changes, and five numbers on the way.
CHANGE_BYTES = 8 + 32 + 5 * 8

_REPETITION, _PENALTY, _BIAS, _MASK = range(4)  # columns of an entry


class Piece(NamedTuple):
    """Some adjusted rows of a round."""

    rows: Sequence[int]  # index of each among the rows of the logits, ascending
    # Of each row, the ids [N] it changes and how, [N, 4] float64: what a logit is divided by (if
    # positive) or multiplied with, what is subtracted, what is added, and 0 or -inf.
    changes: Sequence[Changes]


class AdjustedRows:
    """Room for the adjusted rows of a piece. One owner: the sampler.

    Args:
        max_rows: of the sampler; a piece has at most MAX_ROWS of them.
        vocab_size: V.
        device: of the logits.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        shape = (min(max_rows, MAX_ROWS), vocab_size)
        self._values = torch.empty(shape, dtype=torch.float64, device=device)

    @staticmethod
    def num_bytes(max_rows: int, vocab_size: int) -> int:
        """On the device, with what forming a piece takes at most."""
        num_changes = max(MAX_CHANGES, vocab_size)
        return min(max_rows, MAX_ROWS) * vocab_size * 8 + num_changes * CHANGE_BYTES

    def apply(self, logits: Tensor, piece: Piece) -> Tensor:
        """Changed float64 copies of a piece's rows of [T, V] logits; until the next call."""
        copies = self._values[: len(piece.rows)]
        for place, start, end in _runs(piece.rows):
            copies[place : place + end - start].copy_(logits[start:end])
        vocab_size, device = copies.shape[1], copies.device
        places = [index * vocab_size + ids for index, (ids, _) in enumerate(piece.changes)]
        entries = torch.from_numpy(np.concatenate(places)).to(device)
        numbers = np.concatenate([changes for _, changes in piece.changes])
        repetition, penalty, bias, mask = torch.from_numpy(numbers).to(device).unbind(dim=1)
        flat = copies.view(-1)
        values = flat[entries]
        values = torch.where(values > 0, values / repetition, values * repetition)
        flat[entries] = torch.where(mask < 0, mask, values.sub_(penalty).add_(bias))
        return copies


def pieces_of(rows: Sequence[int], changes: Sequence[Changes], max_changes: int) -> Iterator[Piece]:
    """Cut adjusted rows so that each piece has room: MAX_ROWS rows, `max_changes` or one row."""
    start = num_changes = 0
    for index, (ids, _) in enumerate(changes):
        if index - start == MAX_ROWS or (index > start and num_changes + len(ids) > max_changes):
            yield Piece(rows[start:index], changes[start:index])
            start, num_changes = index, 0
        num_changes += len(ids)
    if start < len(rows):
        yield Piece(rows[start:], changes[start:])


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Consecutive rows: (index of the first, first row, row after the last)."""
    place = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[index - 1] + 1:
            yield place, rows[place], rows[index - 1] + 1
            place = index


def changes_of_rows(request: Row | VerifyRequest, drafts: Ids, vocab_size: int) -> list[Changes]:
    """What each row of a request changes.

    Args:
        request: any; its draft tokens are not read.
        drafts: them, with any other negative number for what does not fit 64 bits.
        vocab_size: V; ids beyond it change nothing.
    """
    params, num_known = request.params, len(request.token_ids)
    history = np.concatenate([np.array(request.token_ids, np.int64), drafts])
    bias = {i: value for i, value in params.logit_bias if 0 <= i < vocab_size}
    stop_ids = [i for i in params.stop_token_ids if 0 <= i < vocab_size]
    ids, places = np.unique(
        np.concatenate([history, np.array([*bias, *stop_ids], np.int64)]),
        return_inverse=True,
    )
    history_places = places[: len(history)]
    base = np.zeros((len(ids), 4))
    base[:, _BIAS] = [bias.get(token_id, 0.0) for token_id in ids.tolist()]
    is_stop = np.isin(ids, np.array(stop_ids, np.int64))
    is_known = (ids >= 0) & (ids < vocab_size)
    rows = []
    for num_confirmed in range(len(drafts) + 1):
        changes = base.copy()
        seen = history_places[: num_known + num_confirmed]
        output = seen[request.prompt_len :]
        changes[:, _REPETITION] = 1.0
        changes[seen, _REPETITION] = params.repetition_penalty
        counts = np.bincount(output, minlength=len(ids))
        penalties = params.presence_penalty + params.frequency_penalty * counts
        changes[:, _PENALTY] = np.where(counts > 0, penalties, 0.0)
        if len(output) < params.min_tokens:
            changes[is_stop, _MASK] = -np.inf
        rows.append((ids[is_known], changes[is_known]))
    return rows
