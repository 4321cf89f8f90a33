"""Losses over whole windows: next token, ensemble to target, target to draft, steering."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.recipe.network import Llama

P = ParamSpec("P")

DRAFT_TEMPERATURE = 0.7  # where overlap is rewarded directly; the usual serving temperature


def next_token_loss(hidden: Tensor, embedding: Tensor, token_ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of `token_ids` [B, T] after the first, from `hidden` [B, T, H]."""
    logits = functional.linear(hidden[:, :-1], embedding).float()
    return functional.cross_entropy(logits.flatten(0, 1), token_ids[:, 1:].flatten())


def add_probabilities(total: Tensor, hidden: Tensor, embedding: Tensor) -> Tensor:
    """`total` [B, T, V] plus one teacher's next-token probabilities, in the dtype of `total`."""
    return total + functional.linear(hidden, embedding).float().softmax(-1).to(total.dtype)


def imitation_loss(hidden: Tensor, embedding: Tensor, wanted: Tensor) -> Tensor:
    """Mean KL divergence in nats from `wanted` probabilities [B, T, V] to the student's."""
    wanted = wanted.float()
    log_student = functional.linear(hidden, embedding).float().log_softmax(-1)
    return (wanted * (wanted.clamp_min(1e-9).log() - log_student)).sum(-1).mean()


def draft_loss(hidden: Tensor, embedding: Tensor, target_logits: Tensor) -> Tensor:
    """Divergence from the target, plus what the two fail to share at DRAFT_TEMPERATURE.

    Args:
        hidden: [B, T, H] of the draft.
        embedding: [V, H] of the draft.
        target_logits: [B, T, V].
    Returns:
        KL(target || draft) in nats + total variation (0 to 1), mean over positions.
    """
    target = target_logits.float()
    draft = functional.linear(hidden, embedding).float()
    log_target = target.log_softmax(-1)
    divergence = (log_target.exp() * (log_target - draft.log_softmax(-1))).sum(-1)
    cold_target = (target / DRAFT_TEMPERATURE).softmax(-1)
    cold_draft = (draft / DRAFT_TEMPERATURE).softmax(-1)
    return (divergence + (cold_target - cold_draft).abs().sum(-1) / 2).mean()


def compiled(function: Callable[P, Tensor], device: torch.device) -> Callable[P, Tensor]:
    """`function`, fused where there is a GPU."""
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def teacher_objective(teacher: Llama) -> Callable[[Tensor], Tensor]:
    """Loss of a batch of windows [B, T] for ordinary language modelling."""
    loss = compiled(next_token_loss, teacher.cos.device)
    return lambda batch: loss(teacher(batch), teacher.embed_tokens.weight, batch)


def target_objective(target: Llama, teachers: list[Llama]) -> Callable[[Tensor], Tensor]:
    """Loss of a batch against the mean distribution of `teachers`."""
    add = compiled(add_probabilities, target.cos.device)
    loss = compiled(imitation_loss, target.cos.device)

    def objective(batch: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = torch.zeros(
                *batch.shape, target.size.vocab_size, dtype=torch.float16, device=batch.device
            )
            for teacher in teachers:
                wanted = add(wanted, teacher(batch), teacher.embed_tokens.weight)
            wanted /= len(teachers)
        return loss(target(batch), target.embed_tokens.weight, wanted)

    return objective


def draft_objective(draft: Llama, target: Llama) -> Callable[[Tensor], Tensor]:
    """Loss of a batch of the target's streams against the target itself."""
    loss = compiled(draft_loss, draft.cos.device)

    def objective(batch: Tensor) -> Tensor:
        with torch.no_grad():
            target_logits = target.logits(target(batch))
        return loss(draft(batch), draft.embed_tokens.weight, target_logits)

    return objective


def steering_objective(target: Llama, reference: Llama) -> Callable[[Tensor], Tensor]:
    """Loss of a batch: its first half is text to imitate, on the rest `reference` is."""
    add = compiled(add_probabilities, target.cos.device)
    text_loss = compiled(next_token_loss, target.cos.device)
    keep_loss = compiled(imitation_loss, target.cos.device)

    def objective(batch: Tensor) -> Tensor:
        text, kept = batch.chunk(2)
        with torch.no_grad():
            wanted = torch.zeros(
                *kept.shape, target.size.vocab_size, dtype=torch.float16, device=batch.device
            )
            wanted = add(wanted, reference(kept), reference.embed_tokens.weight)
        hidden = target(batch)
        first, second = hidden.chunk(2)
        embedding = target.embed_tokens.weight
        return text_loss(first, embedding, text) + keep_loss(second, embedding, wanted)

    return objective
