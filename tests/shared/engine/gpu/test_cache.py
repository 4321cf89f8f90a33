"""The cache of a GPU: blocks copied in all layers at once."""

import dataclasses

import torch

from shared.engine.gpu.cache import MAX_COPIES, GpuCache
from tests.shared.engine.configs import make_config

NUM_BLOCKS = 2 * MAX_COPIES + 10


def make_cache(device: str) -> GpuCache:
    """Every number says whose layer, half and block it is."""
    config = dataclasses.replace(make_config(), num_layers=3, num_kv_heads=1, head_dim=32)
    cache = GpuCache(
        config,
        num_blocks=NUM_BLOCKS,
        block_size=16,
        dtype=torch.float32,
        device=torch.device(device),
    )
    blocks = torch.arange(NUM_BLOCKS, device=device, dtype=torch.float32).view(-1, 1, 1, 1)
    for index, layer in enumerate(cache.layers):
        for half, numbers in enumerate(layer):
            numbers.copy_(blocks + 10_000 * (2 * index + half))
    return cache


def test_a_block_is_copied_in_all_layers(device: str) -> None:
    """Keys and values each from their own, and nothing else changes."""
    cache, before = make_cache(device), make_cache(device)
    cache.copy_blocks([(3, 7), (3, 1)])
    for layer, other in zip(cache.layers, before.layers, strict=True):
        for numbers, old in zip(layer, other, strict=True):
            old[[1, 7]] = old[3].clone()
            assert torch.equal(numbers, old)


def test_more_copies_than_a_launch_takes_are_all_made(device: str) -> None:
    """In several launches, of which none overwrites what another still reads."""
    cache = make_cache(device)
    cache.copy_blocks([(0, block) for block in range(2, NUM_BLOCKS)])
    cache.copy_blocks([])
    for layer in cache.layers:
        for numbers in layer:
            assert (numbers[2:] == numbers[0]).all()
            assert (numbers[1] == numbers[0] + 1).all()
