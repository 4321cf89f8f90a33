"""The sampler: one definition of the next token, for the target to decide and drafters to guess.

The choice is a pure function of one row of logits, the parameters and the tokens before it; no
generator, no batch, no order enters (docs/design.md). float32 logits, then everything in float64:

1. penalties, bias, ids not allowed yet (shared/engine/adjustments.py);
2. temperature 0: the best, the lowest id on ties;
3. else values = (logit - best logit) / temperature, filters (shared/engine/filters.py), and the
   best of value + G(seed, position, token id) among what is kept (kernels/gumbel_top.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.gumbel_top import Top, gumbel_top
from kernels.philox import MASK, philox4x32_reference
from shared.engine.adjustments import Adjustments, changes_logits
from shared.engine.filters import LOWEST, has_filters, keep_threshold
from shared.protocol.sampling import SamplingParams

Logits = NDArray[np.float32]
Values = NDArray[np.float64]

NOTHING = Top([], [])  # the ranking of a row with NaN or +inf, or with no token left to choose


class UnusableLogits(ValueError):
    """A row with NaN or +inf, or with no token left to choose. The others are fine.

    Args:
        row: index of the row in the call.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row}: NaN, infinity or nothing to choose from among the logits")
        self.row = row


@dataclass(frozen=True, slots=True)
class Row:
    """One token to choose."""

    params: SamplingParams
    token_ids: Sequence[int]  # everything before it, prompt included; its position is their number
    prompt_len: int  # tokens


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """Draft tokens of one sequence to be checked against the target's own choices."""

    params: SamplingParams
    token_ids: Sequence[int]  # confirmed, prompt included
    prompt_len: int
    draft_token_ids: Sequence[int]  # any integers at all; what is no token id never matches


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The next token of each row.

    Args:
        logits: [T, V] float32.
        rows: T, of any sequences in any order.

    Returns:
        T token ids. The same row gives the same id in any batch.

    Raises:
        UnusableLogits: one row cannot be sampled; the caller may leave it out and call again.
    """
    requests = [VerifyRequest(row.params, row.token_ids, row.prompt_len, ()) for row in rows]
    confirmed = verify(logits, requests)
    for index, token_ids in enumerate(confirmed):
        if not token_ids:
            raise UnusableLogits(index)
    return [token_id for (token_id,) in confirmed]


def rank(logits: Tensor, rows: Sequence[Row], num: int, *, only_near: bool = False) -> list[Top]:
    """The best `num` tokens of each row with their scores, best first; the first is `sample`'s.

    Fewer where filters leave fewer; NOTHING for a row that is unusable. Scores are values plus
    noise relative to the row's best logit (natural logarithm; plain logits at temperature 0): only
    their differences mean anything. With `only_near` tokens far behind the best are left out: a
    drafter's guess, at a fraction of the price.
    """
    values = logits.numpy(force=True)
    return [
        _rank(
            _adjust(values[index], _adjustments(row, values)),
            row.params,
            len(row.token_ids),
            num=num,
            only_near=only_near,
        )
        for index, row in enumerate(rows)
    ]


def verify(logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
    """What a verify round confirms: accepted draft tokens, then the corrected or the bonus token.

    Row j of a request is sampled as if its first j draft tokens were confirmed, and only if they
    are.

    Args:
        logits: [sum of len(draft_token_ids) + 1, V] float32, the requests' rows one after another.
        requests: in the order of the rows.

    Returns:
        The confirmed tokens of each request. One whose rows are unusable (UnusableLogits)
        gets those before the first such row, and so none if it cannot go on at all.
    """
    values = logits.numpy(force=True)
    best = _best_of_rows(values, requests)
    checks, start = [], 0
    for request in requests:
        checks.append(_Check(request, start, _adjustments(request, values)))
        start = checks[-1].end
    assert start == len(values)
    for check in checks:
        if check.is_plain:
            check.match(best[check.start : check.end])
        else:
            check.sample(values)
    return [check.confirmed for check in checks]


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` of a job: of the first the job's own, of others derived.

    The counter's last word, 0 for noise, keeps the two uses of Philox apart.
    """
    if choice == 0:
        return seed
    words = philox4x32_reference(np.array([[choice], [0], [0], [1]], np.uint64), seed)
    return int(words[0, 0]) | int(words[1, 0]) << 32


@dataclass(slots=True)
class _Check:
    """One request while it is verified."""

    request: VerifyRequest
    start: int  # its first row
    adjustments: Adjustments | None
    confirmed: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.request.draft_token_ids) + 1

    @property
    def is_plain(self) -> bool:
        return _is_plain(self.request)

    def sample(self, values: Logits) -> None:
        """Choose row after row, as long as the drafts agree."""
        params, is_going_on = self.request.params, True
        while is_going_on:
            row = _adjust(values[self.start + len(self.confirmed)], self.adjustments)
            position = len(self.request.token_ids) + len(self.confirmed)
            best = _rank(row, params, position, num=1).token_ids
            is_going_on = bool(best) and self.confirm(best[0])

    def confirm(self, token_id: int) -> bool:
        """Take the token chosen at the next row; whether the row after it counts."""
        drafts, index = self.request.draft_token_ids, len(self.confirmed)
        self.confirmed.append(token_id)
        if self.adjustments is not None:
            self.adjustments.accept(token_id)
        return index < len(drafts) and token_id == drafts[index]

    def match(self, best: Sequence[int]) -> None:
        """Confirm the argmax of all rows, up to one that is unusable (-1)."""
        for token_id in best:
            if token_id < 0 or not self.confirm(token_id):
                break


def _is_plain(row: Row | VerifyRequest) -> bool:
    """Whether the choice is the argmax of the logits as they are."""
    num_output = len(row.token_ids) - row.prompt_len
    return row.params.temperature == 0 and not changes_logits(row.params, num_output)


def _best_of_rows(values: Logits, requests: Sequence[VerifyRequest]) -> list[int]:
    """The argmax of every row, -1 of unusable ones; nothing if no request is plain."""
    if not any(map(_is_plain, requests)):
        return []
    best = values.argmax(axis=-1)  # the lowest id on ties; a NaN's, if there is one
    is_usable = np.isfinite(values[np.arange(len(values)), best])
    choices: list[int] = np.where(is_usable, best, -1).tolist()
    return choices


def _adjustments(row: Row | VerifyRequest, values: Logits) -> Adjustments | None:
    if not changes_logits(row.params, len(row.token_ids) - row.prompt_len):
        return None
    return Adjustments(row.params, row.token_ids, row.prompt_len, values.shape[-1])


def _adjust(row: Logits, adjustments: Adjustments | None) -> Values:
    return row.astype(np.float64) if adjustments is None else adjustments.apply(row)


def _rank(
    values: Values, params: SamplingParams, position: int, *, num: int, only_near: bool = False
) -> Top:
    """Temperature, filters and noise over [V] values after penalties and bias."""
    best = values.max()
    if not np.isfinite(best):
        return NOTHING
    min_value = LOWEST
    if params.temperature > 0 and has_filters(params):
        with np.errstate(over="ignore"):  # to -inf, at temperatures near the smallest float
            min_value = keep_threshold((values - best) / params.temperature, params)
    return gumbel_top(
        values,
        temperature=params.temperature,
        min_value=min_value,
        seed=params.seed,
        position=position & MASK,
        num=num,
        only_near=only_near,
    )
