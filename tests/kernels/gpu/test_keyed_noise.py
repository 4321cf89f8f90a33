import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.keyed_noise import gumbel_noise, lowest_arrival, random_words
from kernels.gumbel import gumbel_reference, noise_of_words
from kernels.philox import philox4x32_reference


@triton.jit  # type: ignore[untyped-decorator]
def _words_kernel(
    ids_ptr: tl.tensor, key_ptr: tl.tensor, words_ptr: tl.tensor, size: tl.constexpr
) -> None:
    ids = tl.load(ids_ptr + tl.arange(0, size))
    words = random_words(ids, tl.load(key_ptr + 1), tl.load(key_ptr))
    tl.store(words_ptr + tl.arange(0, size), words.to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _noise_kernel(
    words_ptr: tl.tensor, noise_ptr: tl.tensor, arrival_ptr: tl.tensor, size: tl.constexpr
) -> None:
    words = tl.load(words_ptr + tl.arange(0, size)).to(tl.uint32)
    tl.store(noise_ptr + tl.arange(0, size), gumbel_noise(words))
    tl.store(arrival_ptr + tl.arange(0, size), lowest_arrival(words))


def noise_and_arrival(words: Tensor) -> tuple[Tensor, Tensor]:
    """Both of each word, NaN where the kernel wrote nothing."""
    noise = torch.full(words.shape, torch.nan, dtype=torch.float64, device=words.device)
    arrival = torch.full(words.shape, torch.nan, device=words.device)
    _noise_kernel[(1,)](words, noise, arrival, size=len(words))
    return noise.cpu(), arrival.cpu()


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 1009, 2**32 - 1])
def test_words_are_philox(seed: int, position: int, device: str) -> None:
    """Bit for bit, for all 64 bits of the seed."""
    ids = torch.tensor([0, 1, 63, 1009, 128_255, 2**31 - 1, 7, 8], dtype=torch.int32)
    words = torch.zeros(8, dtype=torch.int64, device=device)
    key = torch.tensor([seed - 2**64 if seed >= 2**63 else seed, position], device=device)
    _words_kernel[(1,)](ids.to(device), key, words, size=8)
    counter = np.zeros((4, 8), np.uint64)
    counter[0], counter[1] = ids.numpy(), position
    assert words.tolist() == philox4x32_reference(counter, seed)[0].tolist()


WORDS = [0, 1, 2**31, 2**32 - 1, 2**32 - 2, 2**32 - 500, *range(3, 2**32, 2**32 // 57)]


def test_noise_is_the_definition_at_both_ends(device: str) -> None:
    """The smallest and the largest word, and all between, to the last bits."""
    words = torch.tensor(WORDS, device=device)[:64]
    noise, _ = noise_and_arrival(words)
    expected = noise_of_words(np.array(WORDS[:64], np.uint64))
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-14, atol=1e-14)
    assert gumbel_reference(5, 9, np.arange(3, dtype=np.uint64)).max() <= 22.88


def test_an_arrival_is_a_tight_lower_bound(device: str) -> None:
    """Its negative logarithm is above the noise, and close to it where noise is large."""
    words = torch.tensor(WORDS, device=device)[:64]
    noise, arrival = noise_and_arrival(words)
    excess = -arrival.double().log() - noise
    assert excess.min() > -1e-5
    assert excess[noise > 3].max() < 1e-5
    assert excess[noise > 0].max() < 0.1
