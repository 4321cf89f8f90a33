"""Keyed Gumbel noise: G(seed, position, token id) = -log(-log(u)), the same everywhere.

u = (x + 0.5) / 2**32 with x the first word of Philox4x32-10 of the counter (token id, position, 0,
0) under the key `seed`; u is exact in float64, and so the noise is between -3.14 and 22.88.

`gumbel` is the CPU path: `gumbel_reference` less the work that such counters do not need, in few
calls, since numpy's overhead is about half the cost at 4,096 ids.

Source: Gumbel-max; one noise for target and drafter after Daliri et al. 2024, arXiv:2408.07978.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.philox import M0, M1, MASK, NUM_ROUNDS, Words, philox4x32_reference

MAX_NOISE = 22.88  # -log(-log(1 - 2**-33)) = 22.874, rounded up

# Arrays of one element: numpy converts a scalar again in every call.
_M0, _M1 = np.array([M0], np.uint64), np.array([M1], np.uint64)
_MASK, _SHIFT = np.array([MASK], np.uint64), np.array([32], np.uint64)


def gumbel_reference(seed: int, position: int, token_ids: Words) -> NDArray[np.float64]:
    """The noise of each token id at one position, by definition.

    Args:
        seed: unsigned, 64 bits.
        position: absolute index of the token being chosen, prompt included.
        token_ids: [N], below 2**32.

    Returns:
        [N] float64. A token's noise does not depend on the others.
    """
    counter = np.zeros((4, len(token_ids)), np.uint64)
    counter[0] = token_ids
    counter[1] = position & MASK
    return noise_of_words(philox4x32_reference(counter, seed)[0])


def gumbel(keys: Words, positions: Words, token_ids: Words) -> NDArray[np.float64]:
    """The noise of token ids, each with its row's seed and position.

    Args:
        keys: [NUM_ROUNDS, 2, *R], `round_keys` of the rows' seeds.
        positions: [*R], below 2**32.
        token_ids: [*S], below 2**32, with as many dimensions as R, which broadcasts to S.

    Returns:
        [*S] float64, equal to `gumbel_reference` bit for bit.
    """
    return noise_of_words(_first_words(keys, positions, token_ids))


def noise_of_words(words: Words) -> NDArray[np.float64]:
    """-log(-log(u)) for random 32-bit words."""
    noise = words.astype(np.float64)
    noise += 0.5
    noise *= 2.0**-32
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise


def _first_words(keys: Words, positions: Words, token_ids: Words) -> Words:
    """The first output word of each counter (token id, position, 0, 0).

    c1 and c3 are never stored: they are the low halves of the products of the round before, as the
    terms of c0 and c2 are the high halves of this round's.
    """
    # Rounds 1 and 2 start from c2 = c3 = 0: half of their products are the same for a whole row.
    row_product = (positions ^ keys[0, 0]) * _M0
    p0 = token_ids * _M0
    c2 = p0 & _MASK
    c2 ^= (row_product >> _SHIFT) ^ keys[1, 1]
    p1 = p0 >> _SHIFT
    p1 ^= keys[0, 1]
    p1 *= _M1
    c0 = p1 >> _SHIFT
    c0 ^= keys[1, 0]
    p0[...] = row_product
    # The products of the last round and of this one, taking turns; views made once, being slow.
    old0, old1, new0, new1 = map(_Halves, (p0, p1, np.empty_like(p0), np.empty_like(p1)))
    c0_low, c2_low = _Halves(c0).low, _Halves(c2).low
    for index in range(2, NUM_ROUNDS - 2):
        np.multiply(c0, _M0, new0.words)
        np.multiply(c2, _M1, new1.words)
        np.bitwise_xor(new1.high, old1.low, c0_low)
        np.bitwise_xor(c0, keys[index, 0], c0)
        np.bitwise_xor(new0.high, old0.low, c2_low)
        np.bitwise_xor(c2, keys[index, 1], c2)
        old0, old1, new0, new1 = new0, new1, old0, old1
    # The ninth round's c0 and c3, and all but c0 of the tenth, are of no use.
    np.multiply(c0, _M0, new0.words)
    np.multiply(c2, _M1, new1.words)
    np.bitwise_xor(new0.high, old0.low, c2_low)
    c2 ^= keys[-2, 1]
    c2 *= _M1
    c2 >>= _SHIFT
    np.bitwise_xor(c2_low, new1.low, c2_low)
    c2 ^= keys[-1, 0]
    return c2


class _Halves:
    """Words, and their two halves in place (numpy runs on little-endian machines only)."""

    __slots__ = ("high", "low", "words")

    def __init__(self, words: Words) -> None:
        halves = words.view(np.uint32)
        self.words, self.low, self.high = words, halves[..., ::2], halves[..., 1::2]
