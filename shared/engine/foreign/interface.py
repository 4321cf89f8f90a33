"""Our attention function among transformers' own, and whom it serves.

Two names are registered. Under SERVING models make no masks: our attention knows who sees what.
Under SURVEY a mask is a `MaskShape`, from which `survey` learns what a layer's tokens see.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

SERVING, SURVEY = "outrider", "outrider_survey"
EAGER = "eager"  # a model's own attention, in plain PyTorch

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class MaskShape:
    """Who sees whom, as a function of (batch, head, query position, key position)."""

    function: MaskFunction
    device: torch.device | str


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's call for T tokens, flattened: a batch of one to transformers."""

    layer: int
    queries: Tensor  # [num_heads, T, key_dim], rotated
    keys: Tensor  # [num_kv_heads, T, key_dim], rotated
    values: Tensor  # [num_kv_heads, T, value_dim]
    mask: object
    options: Mapping[str, object]  # scaling, sliding_window, softcap, ...


class Attend(Protocol):
    """Answers the calls of one pass."""

    def __call__(self, call: AttentionCall) -> Tensor:
        """Attend; [T, num_heads, value_dim]."""
        ...


_attend: ContextVar[Attend] = ContextVar("attend")


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Let `attend` answer for all models that are run within, on this thread."""
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    **options: object,
) -> tuple[Tensor, None]:
    """What transformers calls, with a batch of one: [1, heads, T, D] to [1, T, heads, D]."""
    layer: Any = module.layer_idx
    call = AttentionCall(layer, query[0], key[0], value[0], attention_mask, options)
    return _attend.get()(call).unsqueeze(0), None


def _mask_shape(
    *,
    mask_function: MaskFunction,
    device: torch.device | str = "cpu",
    **_of_this_pass: object,
) -> MaskShape:
    return MaskShape(mask_function, device)


AttentionInterface.register(SERVING, _attention)
AttentionInterface.register(SURVEY, _attention)
AttentionMaskInterface.register(SURVEY, _mask_shape)


def logits_of(
    model: Any,  # noqa: ANN401  # a module of transformers
    token_ids: Tensor,
    positions: Tensor,
    rows: Tensor | None,
) -> Tensor:
    """A pass over T flattened tokens.

    Args:
        model: a causal language model.
        token_ids: [T] int64.
        positions: [T] int64, each within its own sequence.
        rows: int64 rows whose logits are asked for; None for all.

    Returns:
        [rows asked for, V], of the model's dtype.
    """
    logits: Tensor = model(
        input_ids=token_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        use_cache=False,
        logits_to_keep=0 if rows is None else rows,
    ).logits
    return logits[0]
