"""What the pair is worth: held-out loss, agreement, and whether stories are what was asked for.

Agreement is measured in float32 on the rounded weights, on the target's own continuations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from models.recipe.generate import sample_streams
from models.recipe.vocabulary import END_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer
    from torch import Tensor

    from models.recipe.network import Llama

EVALUATION_ROWS = 64
OPENING_TOKENS = 32  # of a held-out story, before the target goes on
IGNORED = -1


def padded(documents: list[list[int]], num_tokens: int) -> Tensor:
    """Rows [N, T] int64, cut at `num_tokens` and filled with IGNORED."""
    width = min(num_tokens, max(len(document) for document in documents))
    rows = torch.full((len(documents), width), IGNORED)
    for row, document in enumerate(documents):
        kept = document[:width]
        rows[row, : len(kept)] = torch.tensor(kept)
    return rows


@torch.no_grad()
def loss_on(
    log_probabilities: Callable[[Tensor], Tensor], rows: Tensor, device: torch.device
) -> float:
    """Mean loss in nats a token of padded `rows`, each predicted from its own start only."""
    total, count = 0.0, 0
    with torch.compiler.set_stance("force_eager"):
        for part in torch.split(rows, EVALUATION_ROWS):
            ids = part.to(device)
            scores = log_probabilities(ids.clamp_min(0))[:, :-1]
            wanted = ids[:, 1:]
            picked = scores.gather(-1, wanted.clamp_min(0)[..., None])[..., 0]
            total -= picked[wanted != IGNORED].sum().item()
            count += int((wanted != IGNORED).sum())
    return total / count


def of_one(model: Llama) -> Callable[[Tensor], Tensor]:
    """Log-probabilities [B, T, V] of one model, float32."""
    return lambda ids: model.logits(model(ids)).float().log_softmax(-1)


def of_mean(models: list[Llama]) -> Callable[[Tensor], Tensor]:
    """Log-probabilities [B, T, V] of the mean distribution of several models."""

    def log_mean(ids: Tensor) -> Tensor:
        mean: Tensor | float = 0.0
        for model in models:
            mean = model.logits(model(ids)).float().softmax(-1) / len(models) + mean
        assert isinstance(mean, torch.Tensor)
        return mean.log()

    return log_mean


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the draft's token is the target's, at one temperature.

    The ranks are shares of the tokens that the draft missed.
    """

    num_positions: int
    optimal: float  # 1 - total variation: no coupling can do better
    shared_noise: float  # both choose argmax(logits / T + the same Gumbel noise)
    greedy_draft: float  # the draft proposes its most likely token
    truth_at_rank_2: float  # by the draft's noisy score
    truth_at_rank_2_to_3: float
    truth_at_rank_2_to_4: float


def count_agreement(target_logits: Tensor, draft_logits: Tensor, temperature: float) -> Tensor:
    """Sums over positions [N, V] float32, in Agreement's order. Greedy takes no noise."""
    scale = temperature or 1.0
    target, draft = target_logits / scale, draft_logits / scale
    noise = (
        -torch.empty_like(target).exponential_().clamp_min_(1e-20).log_() if temperature else 0.0
    )
    truth = (target + noise).argmax(-1, keepdim=True)
    noisy = draft + noise
    rank = (noisy > noisy.gather(-1, truth)).sum(-1)
    agreed = rank == 0
    shared = torch.minimum(target.softmax(-1), draft.softmax(-1)).sum(-1) if temperature else agreed
    greedy = draft.argmax(-1, keepdim=True) == truth
    sums = [
        torch.tensor(len(rank)),
        shared.sum(),
        agreed.sum(),
        greedy.sum(),
        *((rank == n).sum() for n in (1, 2, 3)),
    ]
    return torch.stack([value.double().cpu() for value in sums])


@torch.no_grad()
def measure_agreement(
    target: Llama, draft: Llama, prompts: list[list[int]], num_tokens: int, temperature: float
) -> Agreement:
    """Let `target` continue `prompts`, up to `<|endoftext|>` or `num_tokens`; compare there."""
    longest = max(len(prompt) for prompt in prompts) + num_tokens
    width = min(longest, target.size.max_positions)
    streams = sample_streams(
        target, prompts, width, torch.full((len(prompts),), temperature)
    ).long()
    counts = torch.zeros(7, dtype=torch.float64)
    with torch.compiler.set_stance("force_eager"):
        for first in range(0, len(prompts), EVALUATION_ROWS):
            ids = streams[first : first + EVALUATION_ROWS].to(target.cos.device)
            chosen = torch.zeros_like(
                ids, dtype=torch.bool
            )  # positions whose next token the target chose
            for row, prompt in enumerate(prompts[first : first + EVALUATION_ROWS]):
                chosen[row, len(prompt) - 1 : min(len(prompt) - 1 + num_tokens, width - 1)] = True
                ends = (ids[row, len(prompt) :] == END_ID).nonzero()
                if len(ends):
                    chosen[row, len(prompt) + int(ends[0]) :] = False
            counts += count_agreement(
                target.logits(target(ids)[chosen]).float(),
                draft.logits(draft(ids)[chosen]).float(),
                temperature,
            )
    size, optimal, agreed, greedy, *ranks = counts.tolist()
    missed = max(1.0, size - agreed)
    first_ranks = [sum(ranks[: n + 1]) / missed for n in range(3)]
    return Agreement(int(size), optimal / size, agreed / size, greedy / size, *first_ranks)


def agreement_table(
    target: Llama, draft: Llama, openings: dict[str, list[list[int]]], num_tokens: int
) -> dict[str, dict[str, float]]:
    """One row for each kind of opening and temperature (0 is greedy)."""
    return {
        f"{kind}, T = {temperature}": asdict(
            measure_agreement(target, draft, prompts, num_tokens, temperature)
        )
        for kind, prompts in openings.items()
        for temperature in (0.0, 0.7, 1.0)
    }


def story_openings(documents: list[list[int]], limit: int) -> list[list[int]]:
    """The first tokens of at most `limit` story documents."""
    return [document[:OPENING_TOKENS] for document in documents[:limit]]


def answer_ids(model: Llama, prompts: list[list[int]], temperatures: Tensor) -> list[list[int]]:
    """The model's answers, each with its `<|endoftext|>` if it came within half the context."""
    rows = sample_streams(model, prompts, model.size.max_positions // 2, temperatures).tolist()
    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        said = row[len(prompt) :]
        found.append(said[: said.index(END_ID) + 1] if END_ID in said else said)
    return found


def answers(
    model: Llama, tokenizer: Tokenizer, prompts: list[list[int]], temperature: float
) -> list[str]:
    """The model's answers to `prompts`, as text."""
    texts: list[str] = tokenizer.decode_batch(
        answer_ids(model, prompts, torch.full((len(prompts),), temperature)),
        skip_special_tokens=True,
    )
    return texts


def mention_share(texts: list[str], wanted: list[tuple[str, ...]]) -> float:
    """Share of the `wanted` words that the text asked for them does contain."""
    found = [word in text for text, words in zip(texts, wanted, strict=True) for word in words]
    return sum(found) / len(found)
