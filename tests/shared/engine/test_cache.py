"""The paged cache's memory."""

import torch

from shared.engine.cache import PagedCache
from tests.shared.engine.configs import make_config


def test_every_layer_has_tensors_of_its_own() -> None:
    """No stacked tensor: each layer's keys and values are separate memory."""
    cache = PagedCache(make_config(num_layers=3), num_blocks=4, block_size=5)
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 6
    assert all(part.shape == (20, 2, 8) for part in parts)


def test_copies_happen_all_at_once() -> None:
    """Swapping two blocks needs no third one, in every layer, and leaves the others alone."""
    cache = PagedCache(make_config(num_layers=2), num_blocks=4, block_size=2)
    for layer in cache.layers:
        for blocks in (layer.key_blocks, layer.value_blocks):
            blocks.copy_(torch.arange(4.0).unsqueeze(1).expand_as(blocks))
    cache.copy_blocks([(0, 1), (1, 0), (0, 3)])
    for layer in cache.layers:
        for blocks in (layer.key_blocks, layer.value_blocks):
            assert blocks[:, 0].tolist() == [1.0, 0.0, 2.0, 0.0]


def test_no_copies_are_fine() -> None:
    """An empty list changes nothing."""
    PagedCache(make_config(), num_blocks=1, block_size=1).copy_blocks([])
