"""What transformers calls, and who answers."""

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shared.engine.foreign.interface import (
    SERVING,
    SURVEY,
    AttentionCall,
    MaskShape,
    attending,
    logits_of,
)
from tests.checkpoints import AUTO_MODEL
from tests.shared.engine.foreign.architectures import foreign


def test_names_are_known_to_transformers() -> None:
    """Serving makes no masks: that name must not be among those of masks."""
    assert {SERVING, SURVEY} <= set(ALL_ATTENTION_FUNCTIONS)
    assert SURVEY in ALL_MASK_ATTENTION_FUNCTIONS
    assert SERVING not in ALL_MASK_ATTENTION_FUNCTIONS


class Listener:
    """Answers with its own number, and remembers."""

    def __init__(self, number: float) -> None:
        self._number = number
        self.calls: list[AttentionCall] = []

    def __call__(self, call: AttentionCall) -> Tensor:
        self.calls.append(call)
        num_heads, num_tokens, _ = call.queries.shape
        return torch.full((num_tokens, num_heads, call.values.shape[2]), self._number)


@torch.inference_mode()
def test_every_layer_asks_whoever_attends() -> None:
    """With its index, its heads, and no mask; within another pass the inner one answers."""
    model: nn.Module = AUTO_MODEL.from_config(foreign("olmo2"), attn_implementation=SERVING).eval()
    outer, inner = Listener(1.0), Listener(2.0)
    tokens, positions = torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9, 10, 0, 1, 2])
    with attending(outer):
        with attending(inner):
            wanted = logits_of(model, tokens, positions, torch.tensor([1, 4]))
        everything = logits_of(model, tokens, positions, None)
    assert [call.layer for call in inner.calls] == [0, 1, 2] == [c.layer for c in outer.calls]
    first = inner.calls[0]
    assert first.queries.shape == (6, 5, 8)
    assert first.keys.shape == first.values.shape == (2, 5, 8)
    assert first.mask is None
    assert first.options["scaling"] == 8**-0.5
    assert wanted.shape == (2, 97)
    assert everything.shape == (5, 97)


@torch.inference_mode()
def test_a_survey_gets_the_shape_of_masks() -> None:
    """As a function of positions, not written out."""
    model: nn.Module = AUTO_MODEL.from_config(foreign("olmo2"), attn_implementation=SURVEY).eval()
    listener = Listener(0.0)
    tokens = torch.arange(4)
    with attending(listener):
        logits_of(model, tokens, tokens, None)
    mask = listener.calls[0].mask
    assert isinstance(mask, MaskShape)
    zero = tokens[0]
    assert mask.function(zero, zero, torch.tensor(1), tokens).tolist() == [True, True, False, False]
