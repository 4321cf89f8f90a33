"""Philox4x32-10: random words that are a pure function of a counter and a key.

Ten rounds of (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
the key growing by (W0, W1) after each.

Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; the test
vectors are those of its library, Random123.
"""

import functools

import numpy as np
from numpy.typing import NDArray

M0, M1 = 0xD251_1F53, 0xCD9E_8D57
W0, W1 = 0x9E37_79B9, 0xBB67_AE85
NUM_ROUNDS = 10
MASK = 0xFFFF_FFFF

Words = NDArray[np.uint64]  # 32-bit values in 64 bits: the products need the room

_INCREMENTS = np.arange(NUM_ROUNDS, dtype=np.uint64)[:, None] * np.array([W0, W1], np.uint64)


@functools.lru_cache(maxsize=4_096)  # one a live session
def round_keys(seed: int) -> Words:
    """[NUM_ROUNDS, 2]: the key of each round, from the low and high half of a 64-bit seed."""
    halves = np.array([seed & MASK, seed >> 32 & MASK], np.uint64)
    keys: Words = (halves + _INCREMENTS) & np.uint64(MASK)
    keys.flags.writeable = False
    return keys


def philox4x32_reference(counter: Words, seed: int) -> Words:
    """The four output words of each counter.

    Args:
        counter: [4, N], values below 2**32.
        seed: the key, low half first.

    Returns:
        [4, N], values below 2**32.
    """
    c0, c1, c2, c3 = counter
    for k0, k1 in round_keys(seed):
        p0, p1 = c0 * np.uint64(M0), c2 * np.uint64(M1)
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & np.uint64(MASK)
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & np.uint64(MASK)
    return np.stack([c0, c1, c2, c3])
