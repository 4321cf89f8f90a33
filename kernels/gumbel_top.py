"""The best few tokens of one row by value plus keyed Gumbel noise: the sampler's inner loop.

score(i) = (logit(i) - best logit) / temperature + G(seed, position, i), over the tokens that
filters keep; at temperature 0 the noise is left out. The lowest id wins a tie. The noise is that of
`kernels.gumbel`; compiled, because numpy's overhead was more than half of a draft step.

Most tokens need no noise: it has an upper bound, and a token far behind the best needs so much of
it that its random word alone, without two logarithms, tells that it has less.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from kernels.gumbel import MAX_NOISE, gumbel_reference
from kernels.philox import M0, M1, NUM_ROUNDS, W0, W1

Values = NDArray[np.float64]

NEAR = 8.0  # values above -NEAR are scored first; one below wins less than once in 3,000 times

_M0, _M1, _W0, _W1 = np.uint64(M0), np.uint64(M1), np.uint32(W0), np.uint32(W1)
_SHIFT = np.uint64(32)
_STEP = 2.0**-32


class Top(NamedTuple):
    """Best first, fewer than asked for where fewer may be chosen."""

    token_ids: list[int]
    scores: list[float]


def gumbel_top_reference(
    logits: Values, *, temperature: float, min_value: float, seed: int, position: int, num: int
) -> Top:
    """By definition; arguments as `gumbel_top`."""
    with np.errstate(over="ignore"):
        values = (logits - logits.max()) / (temperature or 1.0)
    ids = np.flatnonzero(values >= min_value)
    scores = values[ids]
    if temperature:
        scores = scores + gumbel_reference(seed, position, ids.astype(np.uint64))
    order = np.lexsort((ids, -scores))[:num]
    return Top(ids[order].tolist(), scores[order].tolist())


def gumbel_top(
    logits: Values,
    *,
    temperature: float,
    min_value: float,
    seed: int,
    position: int,
    num: int,
    only_near: bool = False,
) -> Top:
    """The best `num` tokens of a row.

    Args:
        logits: [V] float64, contiguous; the best is finite, there is no NaN.
        temperature: 0 for none, and no noise.
        min_value: what (logit - best) / temperature has to reach, above -inf.
        seed: unsigned, 64 bits.
        position: absolute index of the token being chosen, below 2**32.
        num: at least 1.
        only_near: score only values above -NEAR, for a guess at a tenth of the price.
    """
    ids, scores = np.empty(num, np.int64), np.empty(num)
    found = _gumbel_top_kernel(
        logits, logits.max(), temperature, min_value, only_near, seed, position, ids, scores
    )
    return Top(ids[:found].tolist(), scores[:found].tolist())


@njit(inline="always")
def _first_word(
    token_id: np.uint32, position: np.uint32, k0: np.uint32, k1: np.uint32
) -> np.uint32:
    """The first word of Philox4x32-10 of the counter (token id, position, 0, 0)."""
    c0, c1, c2, c3 = token_id, position, np.uint32(0), np.uint32(0)
    for _ in range(NUM_ROUNDS):
        p0, p1 = np.uint64(c0) * _M0, np.uint64(c2) * _M1
        c0, c1 = np.uint32(p1 >> _SHIFT) ^ c1 ^ k0, np.uint32(p1)
        c2, c3 = np.uint32(p0 >> _SHIFT) ^ c3 ^ k1, np.uint32(p0)
        k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
    return c0


@njit(inline="always")
def _insert(ids: NDArray[np.int64], scores: Values, found: int, token_id: int, score: float) -> int:
    """Put a token where it belongs among the best; how many there are then."""
    num = len(ids)
    place = found
    if found == num:
        place = num - 1
        is_worse = score < scores[place] or (score == scores[place] and token_id > ids[place])
        if is_worse:
            return found
    while place > 0 and (
        scores[place - 1] < score or (scores[place - 1] == score and ids[place - 1] > token_id)
    ):
        scores[place], ids[place] = scores[place - 1], ids[place - 1]
        place -= 1
    scores[place], ids[place] = score, token_id
    return min(found + 1, num)


@njit(
    "i8(f8[::1], f8, f8, f8, b1, u8, u8, i8[::1], f8[::1])",
    nogil=True,
    cache=True,  # beside this file, or in NUMBA_CACHE_DIR: compiling takes a second
    error_model="numpy",
)
def _gumbel_top_kernel(  # noqa: PLR0917 -- same
    logits: Values,  # [V]
    best: float,
    temperature: float,
    min_value: float,
    only_near: bool,  # noqa: FBT001 -- compiled functions take no keywords
    seed: int,
    position: int,
    ids: NDArray[np.int64],  # [num], written
    scores: Values,  # [num], written
) -> int:
    """How many of `ids` and `scores` were filled."""
    k0, k1, place = np.uint32(seed), np.uint32(seed >> _SHIFT), np.uint32(position)
    is_noisy = temperature > 0.0
    scale = temperature if is_noisy else 1.0
    near = best - NEAR * scale if is_noisy else -np.inf
    found = 0
    for token_id in range(len(logits)):
        logit = logits[token_id]
        if logit >= near:
            value = (logit - best) / scale
            if value >= min_value:
                if is_noisy:
                    u = (_first_word(np.uint32(token_id), place, k0, k1) + 0.5) * _STEP
                    value -= math.log(-math.log(u))
                found = _insert(ids, scores, found, token_id, value)
    if not is_noisy or only_near or min_value >= -NEAR:
        return found
    # The others need noise above `lead`: 1 - u <= -log(u) <= exp(-lead), so u has to be near 1.
    lowest, min_word = -np.inf, 0.0
    if found == len(ids):
        lowest = best + (scores[found - 1] - MAX_NOISE) * scale
        lead = scores[found - 1] + NEAR
        min_word = (1.0 - math.exp(-lead)) / _STEP - 2.0
    for token_id in range(len(logits)):
        logit = logits[token_id]
        if lowest <= logit < near:
            word = _first_word(np.uint32(token_id), place, k0, k1)
            value = (logit - best) / scale
            if word >= min_word and value >= min_value:
                value -= math.log(-math.log((word + 0.5) * _STEP))
                found = _insert(ids, scores, found, token_id, value)
    return found
