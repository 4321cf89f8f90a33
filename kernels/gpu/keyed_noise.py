"""Keyed Gumbel noise on a GPU: kernels/gumbel.py for the kernels beside this one.

`gumbel_noise` is the definition in float64. `lowest_arrival` is what most tokens need instead: a
lower bound of -log(u), in float32 and without a logarithm. With c = 1 - u,

    -log(u) = c + c^2/2 + c^3/3 + ...  >=  its first four terms,

which is tight where noise is large: within 1e-6 of its size for noise above 3. A product of 32-bit
words is taken in 64 bits: one instruction on a GPU, and exact in Triton's interpreter too.

Source: Philox4x32-10, see kernels/philox.py; Gumbel noise as an exponential race, Maddison 2016.
"""

import triton
import triton.language as tl

from kernels import philox

_M0, _M1 = tl.constexpr(philox.M0), tl.constexpr(philox.M1)
_W0, _W1 = tl.constexpr(philox.W0), tl.constexpr(philox.W1)
_NUM_ROUNDS = tl.constexpr(philox.NUM_ROUNDS)
_STEP = tl.constexpr(2.0**-32)


@triton.jit  # type: ignore[untyped-decorator]
def random_words(token_ids: tl.tensor, position: tl.tensor, seed: tl.tensor) -> tl.tensor:
    """The first word of Philox4x32-10 of the counters (token id, position, 0, 0), uint32.

    Args:
        token_ids: [N] int32.
        position: scalar, its low 32 bits count.
        seed: scalar int64, the bits of an unsigned one.
    """
    k0, k1 = seed.to(tl.uint32), (seed.to(tl.uint64) >> 32).to(tl.uint32)
    c0 = token_ids.to(tl.uint32)
    c2 = tl.zeros_like(c0)
    c1, c3 = c2 + position.to(tl.uint32), c2
    for _ in tl.static_range(_NUM_ROUNDS):
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = k0 + _W0, k1 + _W1
    return c0


@triton.jit  # type: ignore[untyped-decorator]
def gumbel_noise(words: tl.tensor) -> tl.tensor:
    """-log(-log(u)) with u = (word + 0.5) / 2**32, in float64."""
    u = (words.to(tl.float64) + 0.5) * _STEP
    return -tl.log(-tl.log(u))


@triton.jit  # type: ignore[untyped-decorator]
def lowest_arrival(words: tl.tensor) -> tl.tensor:
    """At most -log(u), but for rounding of 1e-6 of its size; float32, never 0."""
    c = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _STEP
    return c * (1.0 + c * (1.0 / 2 + c * (1.0 / 3 + c * (1.0 / 4))))
