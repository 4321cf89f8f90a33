"""Penalties, bias and ids not allowed yet, for rows of logits on a GPU.

The definition is shared/engine/adjustments.py. The host knows which tokens a row changes and how;
the device forms, in float64 and in the same order, `logit / or * repetition - penalty + bias`, or
-inf, in a copy of the row. Row j of a verify request is changed as if its first j draft tokens were
confirmed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.gpu.gumbel_choice import Adjusted
from shared.engine.sampling import VerifyRequest

Ids = NDArray[np.int64]
Values = NDArray[np.float64]
Changes = tuple[Ids, Values]  # of one row: token ids [N], and [N, 4] what happens to them

_REPETITION, _PENALTY, _BIAS, _MASK = range(4)  # columns of an entry


class AdjustedRows:
    """The adjusted rows of one round.

    Args:
        rows: index of each among the rows of the logits.
        tokens: of each row, the ids [N] it changes and how, [N, 4] float64: what a logit is divided
            by (if positive) or multiplied with, what is subtracted, what is added, and 0 or -inf.
        vocab_size: V.
        device: of the logits.
    """

    def __init__(
        self,
        rows: Sequence[int],
        tokens: Sequence[Changes],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        places = [index * vocab_size + ids for index, (ids, _) in enumerate(tokens)]
        numbers = np.concatenate([changes for _, changes in tokens])
        self._rows = torch.tensor(rows, device=device)
        self._places = torch.from_numpy(np.concatenate(places)).to(device)
        self._changes = torch.from_numpy(numbers).to(device)
        self._owners = self._rows.int()

    def apply(self, logits: Tensor) -> Adjusted:
        """Changed float64 copies of the rows of [T, V] logits."""
        copies = logits[self._rows].double()
        values = copies.view(-1)[self._places]
        repetition, penalty, bias, mask = self._changes.unbind(dim=1)
        values = torch.where(values > 0, values / repetition, values * repetition)
        values = torch.where(mask < 0, mask, values - penalty + bias)
        copies.view(-1)[self._places] = values
        return Adjusted(copies, self._owners)


def changes_of_rows(request: VerifyRequest, drafts: Ids, vocab_size: int) -> list[Changes]:
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
