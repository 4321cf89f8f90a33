"""The sampler: one definition of the next token, for the target to decide and drafters to guess.

The choice is a pure function of one row of logits, the parameters and the tokens before it; no
generator, no batch, no order enters (docs/design.md). float32 logits, then everything in float64:

1. penalties, bias, ids not allowed yet (shared/engine/adjustments.py);
2. temperature 0: the best, the lowest id on ties;
3. else values = (logit - best logit) / temperature, filters (shared/engine/filters.py), and the
   best of value + G(seed, position, token id) among what is kept (kernels/gumbel.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.gumbel import MAX_NOISE, gumbel
from kernels.philox import MASK, philox4x32_reference, round_keys
from shared.engine.adjustments import Adjustments, changes_logits
from shared.engine.filters import LOWEST, has_filters, keep_threshold
from shared.protocol.sampling import SamplingParams

Logits = NDArray[np.float32]
Values = NDArray[np.float64]
Ids = NDArray[np.int64]

# The winner's score is at least this but once in a thousand times; then the rest is computed too.
_LIKELY_SCORE = -2.0


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
    values = logits.numpy(force=True)
    assert len(values) == len(rows)
    best = _best_of_rows(values, rows)
    return [
        _plain_choice(best[index], index)
        if _is_plain(row)
        else _choose(
            values[index], row.params, len(row.token_ids), _adjustments(row, values), index
        )
        for index, row in enumerate(rows)
    ]


def rank(
    logits: Tensor, rows: Sequence[Row], num: int
) -> tuple[list[list[int]], list[list[float]]]:
    """The best `num` tokens of each row with their scores, best first; the first is `sample`'s.

    Fewer where filters leave fewer. Scores are values plus noise relative to the row's best logit
    (natural logarithm; plain logits at temperature 0): only their differences mean anything.

    Raises:
        UnusableLogits: as `sample`.
    """
    values = logits.numpy(force=True)
    token_ids, scores = [], []
    for index, row in enumerate(rows):
        adjusted = _adjusted(values[index], _adjustments(row, values), index)
        kept, score = _scores(adjusted, row.params, len(row.token_ids), num)
        best = _order(kept, score, num)
        token_ids.append(kept[best].tolist())
        scores.append(score[best].tolist())
    return token_ids, scores


def verify(logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
    """What a verify round confirms: accepted draft tokens, then the corrected or the bonus token.

    Row j of a request is sampled as if its first j draft tokens were confirmed, and only if they
    are: what follows the first mismatch is never looked at.

    Args:
        logits: [sum of len(draft_token_ids) + 1, V] float32, the requests' rows one after another.
        requests: in the order of the rows.

    Returns:
        The confirmed tokens of each request. One whose rows are unusable (UnusableLogits)
        gets those before the first such row, and so none if it cannot go on at all.
    """
    values = logits.numpy(force=True)
    best = _best_of_rows(values, requests)
    confirmed, start = [], 0
    for request in requests:
        end = start + len(request.draft_token_ids) + 1
        if _is_plain(request):
            confirmed.append(_match(best[start:end], request.draft_token_ids))
        else:
            confirmed.append(_verify_one(values[start:end], request))
        start = end
    assert start == len(values)
    return confirmed


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice `choice` of a job: of the first the job's own, of others derived.

    The counter's last word, 0 for noise, keeps the two uses of Philox apart.
    """
    if choice == 0:
        return seed
    words = philox4x32_reference(np.array([[choice], [0], [0], [1]], np.uint64), seed)
    return int(words[0, 0]) | int(words[1, 0]) << 32


def _verify_one(rows: Logits, request: VerifyRequest) -> list[int]:
    adjustments = _adjustments(request, rows)
    confirmed: list[int] = []
    try:
        for index, draft in enumerate((*request.draft_token_ids, None)):
            position = len(request.token_ids) + index
            token_id = _choose(rows[index], request.params, position, adjustments, index)
            confirmed.append(token_id)
            if token_id != draft:
                break
            if adjustments is not None:
                adjustments.accept(token_id)
    except UnusableLogits:
        pass  # said by what is missing from the result
    return confirmed


def _is_plain(row: Row | VerifyRequest) -> bool:
    """Whether the choice is the argmax of the logits as they are."""
    num_output = len(row.token_ids) - row.prompt_len
    return row.params.temperature == 0 and not changes_logits(row.params, num_output)


def _best_of_rows(values: Logits, rows: Sequence[Row | VerifyRequest]) -> list[int]:
    """The argmax of every row, -1 of unusable ones; nothing if no row is plain."""
    if not any(map(_is_plain, rows)):
        return []
    best = values.argmax(axis=-1)  # the lowest id on ties; a NaN's, if there is one
    is_usable = np.isfinite(values[np.arange(len(values)), best])
    choices: list[int] = np.where(is_usable, best, -1).tolist()
    return choices


def _plain_choice(best: int, row: int) -> int:
    if best < 0:
        raise UnusableLogits(row)
    return best


def _match(best: Sequence[int], draft_token_ids: Sequence[int]) -> list[int]:
    """The tokens up to the first mismatch, it included; up to an unusable row without it."""
    confirmed: list[int] = []
    for token_id, draft in zip(best, (*draft_token_ids, None), strict=True):
        if token_id < 0:
            break
        confirmed.append(token_id)
        if token_id != draft:
            break
    return confirmed


def _adjustments(row: Row | VerifyRequest, logits: Logits) -> Adjustments | None:
    if not changes_logits(row.params, len(row.token_ids) - row.prompt_len):
        return None
    return Adjustments(row.params, row.token_ids, row.prompt_len, logits.shape[-1])


def _adjusted(logits: Logits, adjustments: Adjustments | None, row: int) -> Logits | Values:
    """Checked and adjusted: [V], the best value finite, none NaN."""
    if not np.isfinite(logits.max()):
        raise UnusableLogits(row)
    if adjustments is None:
        return logits
    values = adjustments.apply(logits)
    if values.max() == -np.inf:
        raise UnusableLogits(row)
    return values


def _choose(
    logits: Logits, params: SamplingParams, position: int, adjustments: Adjustments | None, row: int
) -> int:
    values = _adjusted(logits, adjustments, row)
    if params.temperature == 0:
        return int(values.argmax())
    kept, scores = _scores(values, params, position, 1)
    return int(kept[scores.argmax()])


def _scores(
    values: Logits | Values, params: SamplingParams, position: int, num: int
) -> tuple[Ids, Values]:
    """Tokens, ascending, and what decides between them; the best `num` of all are among them."""
    best = np.float64(values.max())
    if params.temperature == 0:
        return np.arange(len(values)), values - best
    with np.errstate(over="ignore"):  # to -inf, at temperatures near the smallest float
        scaled = (values - best) / params.temperature
    if has_filters(params):
        return _noisy(scaled, keep_threshold(scaled, params), params.seed, position)
    # Noise has an upper bound: a token far behind cannot win, and needs none. This is exact: should
    # the winner be weaker than expected, those left out are taken in after all.
    kept, scores = _noisy(scaled, _LIKELY_SCORE - MAX_NOISE, params.seed, position)
    if len(kept) < len(scaled) and _score_of(scores, num) < _LIKELY_SCORE:
        return _noisy(scaled, LOWEST, params.seed, position)
    return kept, scores


def _score_of(scores: Values, num: int) -> float:
    """The score of the `num`-th best, -inf if there are fewer."""
    if num == 1:
        return float(scores.max())
    return float(np.partition(scores, -num)[-num]) if num <= len(scores) else -np.inf


def _order(kept: Ids, scores: Values, num: int) -> Ids:
    """Indices of the best `num`, best first, the lower id first on ties."""
    few = np.flatnonzero(scores >= _score_of(scores, num))
    best: Ids = few[np.lexsort((kept[few], -scores[few]))[:num]]
    return best


def _noisy(scaled: Values, threshold: float, seed: int, position: int) -> tuple[Ids, Values]:
    """What reaches the threshold, with noise added."""
    kept = np.flatnonzero(scaled >= threshold)
    scores = scaled[kept]
    if len(kept) > 1:
        keys = round_keys(seed)[:, :, None]
        positions = np.array([position & MASK], np.uint64)
        scores += gumbel(keys, positions, kept.view(np.uint64))
    return kept, scores
