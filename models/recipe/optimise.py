"""The training loop: Muon on matrices, AdamW on the rest, bfloat16 autocast.

Source: Muon, Jordan et al. 2024 (torch.optim.Muon); strong weight decay and ensembles for little
data, Kim et al. 2025, arXiv:2509.14786.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from models.recipe.log import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from models.recipe.network import Llama
    from models.recipe.sizes import Plan

WARMUP_SHARE = 0.03
MAX_GRADIENT_NORM = 1.0
EMBEDDING_DECAY = 0.1  # AdamW's, multiplied by its learning rate


@dataclass(frozen=True, slots=True)
class LossPoint:
    """After `step` steps: the mean training loss since the last point, and the run's measure."""

    step: int
    training: float
    measured: float


def make_optimisers(model: Llama, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for everything else."""
    matrices = [weight for weight in model.layers.parameters() if weight.ndim > 1]
    norms = [weight for weight in model.parameters() if weight.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=plan.muon_lr, weight_decay=plan.weight_decay, momentum=0.95
    )
    adam = torch.optim.AdamW(
        [
            {"params": [model.embed_tokens.weight], "weight_decay": EMBEDDING_DECAY},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=plan.adam_lr,
        betas=(0.9, 0.95),
        fused=model.cos.is_cuda,
    )
    return [muon, adam]


def rate_factor(step: int, num_steps: int) -> float:
    """Linear warm-up to 1, then linear to 0."""
    num_warmup = max(1, int(WARMUP_SHARE * num_steps))
    return min((step + 1) / num_warmup, (num_steps - step) / max(1, num_steps - num_warmup))


def fit(
    model: Llama,
    plan: Plan,
    source: Iterator[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    *,
    measure: Callable[[], float],
    label: str,
) -> list[LossPoint]:
    """Train `model` in place.

    Args:
        model: left in evaluation mode.
        plan: steps, rates, decay.
        source: endless batches [B, T] int64.
        loss_of: scalar loss of a batch.
        measure: a figure for the log, `plan.num_evaluations` times.
        label: names the run in the log.
    """
    optimisers = make_optimisers(model, plan)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_factor(step, plan.num_steps))
        for optimiser in optimisers
    ]
    total = torch.zeros((), device=model.cos.device)
    points: list[LossPoint] = []
    every = max(1, plan.num_steps // plan.num_evaluations)
    num_summed = 0
    started_s = time.monotonic()
    model.train()
    for step in range(1, plan.num_steps + 1):
        with torch.autocast(model.cos.device.type, torch.bfloat16):
            loss = loss_of(next(source))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        total += loss.detach()
        num_summed += 1
        if step % every == 0 or step == plan.num_steps:
            model.eval()
            point = LossPoint(step, (total / num_summed).item(), measure())
            model.train()
            points.append(point)
            report(
                label,
                step=step,
                training=point.training,
                measured=point.measured,
                elapsed_s=time.monotonic() - started_s,
            )
            total.zero_()
            num_summed = 0
    model.eval()
    return points
