import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.philox import philox4x32_reference

WORD = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        pytest.param("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8", id="zeros"),
        pytest.param(
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
            id="ones",
        ),
        pytest.param(
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
            id="pi",
        ),
    ],
)
def test_the_published_vectors(counter: str, key: str, expected: str) -> None:
    """Random123's known answers for ten rounds of Philox4x32."""
    words = np.array([[int(word, 16)] for word in counter.split()], np.uint64)
    low, high = (int(word, 16) for word in key.split())
    found = philox4x32_reference(words, low | high << 32)[:, 0]
    assert [f"{word:08x}" for word in found] == expected.split()


def philox_of_one(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """The definition, word by word, in Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), max_size=9), st.integers(0, 2**64 - 1))
def test_every_counter_is_on_its_own(counters: list[tuple[int, int, int, int]], seed: int) -> None:
    """Many counters at once give what each gives alone, by the definition."""
    words = np.array(counters, np.uint64).reshape(-1, 4).T
    found = philox4x32_reference(words, seed)
    assert found.T.tolist() == [list(philox_of_one(counter, seed)) for counter in counters]
