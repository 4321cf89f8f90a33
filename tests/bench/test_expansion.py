"""The parts of a grown model: random numbers that do not repeat in step, the mask of new ids."""

import dataclasses
from pathlib import Path

import pytest
import torch

from bench.expand import SHAPES
from bench.expansion import MAX_WEIGHT, NUM_RANDOM, RANDOM_LIMIT, Expansion, Tape
from shared.engine.config import ModelConfig

MODELS = Path(__file__).parents[2] / "models"


@pytest.mark.parametrize("shape", [(1,), (63, 1), (1009, 17)])
def test_the_tape_goes_on_where_it_was(shape: tuple[int, ...]) -> None:
    """Two tensors are what one of both sizes would have been."""
    size = int(torch.tensor(shape).prod())
    tape = Tape(3, torch.float32)
    apart = torch.cat([tape.tensor(shape).flatten(), tape.tensor(shape).flatten()])
    assert torch.equal(apart, Tape(3, torch.float32).tensor((2 * size,)))


def test_the_tape_begins_again_at_its_end() -> None:
    """A tensor longer than the tape has all of it, and then its start."""
    numbers = Tape(3, torch.bfloat16).tensor((NUM_RANDOM + 63,))
    assert torch.equal(numbers[:63], numbers[-63:])
    assert float(numbers.float().std()) == pytest.approx(0.02, rel=1e-3)
    assert float(numbers.abs().max()) <= RANDOM_LIMIT * 1.01


@pytest.mark.parametrize("model", ["storyteller", "storyteller-draft"])
def test_the_bundled_pair_can_be_masked(model: str) -> None:
    """Bounds hold with weights that 16 bits can store."""
    source = ModelConfig.from_directory(MODELS / model)
    target = dataclasses.replace(
        source,
        hidden_size=SHAPES["llama-3-8b"].hidden_size,
        vocab_size=SHAPES["llama-3-8b"].vocab_size,
    )
    expansion = Expansion(MODELS / model, source, target)
    norm = expansion.tensor("model.norm.weight", (4096,), Tape(0, torch.float16), torch.float16)
    mask_weight = float(norm[source.hidden_size])
    assert 1 < mask_weight <= MAX_WEIGHT
    assert float(norm[source.hidden_size + 1]) == 1
