"""Holds our way through a model against the model's own, before anybody is served.

Two short random prompts go through the paged cache in one pass and in pieces, side by side, and
through the model's own eager attention; a model whose logits differ is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.common.errors import ConfigError
from shared.engine.foreign.config import ForeignConfig
from shared.engine.foreign.interface import EAGER, SERVING
from shared.engine.spans import Runner, Span

NUM_TOKENS = 24  # of a prompt; pieces of it end within blocks
SEED = 20
# Of the largest logit of a row. A float32 model differs by 1e-6 or so; in 16 bits rounding alone
# comes to some percent of the largest where many layers, or experts chosen closely, amplify it.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@torch.inference_mode()
def probe(
    model: Any,  # noqa: ANN401  # transformers' own
    runner: Runner,
    config: ForeignConfig,
    *,
    num_blocks: int,
    block_size: int,
) -> None:
    """Leave the model with our attention, proven; its cache holds rubbish then.

    Args:
        model: what `runner` runs.
        runner: computes with it and its cache.
        config: of the model.
        num_blocks: of the cache.
        block_size: tokens.

    Raises:
        ConfigError: logits differ, or the cache has not even two blocks.
    """
    room = num_blocks // 2 * block_size
    length = min(NUM_TOKENS, config.max_model_len, room)
    if length < 3:  # noqa: PLR2004  # a prompt in three pieces
        raise ConfigError(
            f"the cache has {num_blocks} blocks of {block_size} tokens, a sequence "
            f"{config.max_model_len} at most: must be at least 2 blocks and 3 tokens"
        )
    generator = torch.Generator().manual_seed(SEED)
    prompts = torch.randint(config.vocab_size, (2, length), generator=generator)
    model.set_attn_implementation(EAGER)
    expected = [model(input_ids=prompt[None].to(model.device)).logits[0] for prompt in prompts]
    model.set_attn_implementation(SERVING)
    # By turns, from the end of the cache: neither in order nor next to one another.
    blocks = range(num_blocks // 2 * 2 - 1, -1, -1)[: 2 * -(-length // block_size)]
    sequences = [
        _Sequence(prompt.tolist(), blocks[first::2], logits)
        for first, prompt, logits in zip((1, 0), prompts, expected, strict=True)
    ]
    name, tolerance = type(model).__name__, TOLERANCES[model.dtype]
    one_pass = [[sequences[0].piece(0, length)]]
    _compare(runner, one_pass, tolerance, f"{name} in one pass")
    in_pieces = list(_pieces(sequences, length))
    _compare(runner, in_pieces, tolerance, f"{name} in pieces")


Piece = tuple[Span, Tensor]  # and the logits it must have


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A prompt with the model's own logits."""

    token_ids: Sequence[int]
    block_ids: Sequence[int]
    logits: Tensor  # [T, V]

    def piece(self, start: int, end: int) -> Piece:
        span = Span(self.token_ids[start:end], start, self.block_ids, end - start)
        return span, self.logits[start:end]


def _pieces(sequences: Sequence[_Sequence], length: int) -> Iterator[list[Piece]]:
    """Passes in which one sequence gets one token and the other one many."""
    half = length // 2
    for cuts in (((0, half), (0, 1)), ((half, half + 1), (1, half + 1)), ((half + 1, length),) * 2):
        yield [
            sequence.piece(start, end)
            for sequence, (start, end) in zip(sequences, cuts, strict=True)
        ]


def _compare(
    runner: Runner, passes: Sequence[Sequence[Piece]], tolerance: float, what: str
) -> None:
    worst = 0.0
    for pieces in passes:
        logits = runner.run([span for span, _ in pieces]).float()
        expected = torch.cat([rows for _, rows in pieces]).float()
        errors = (logits - expected).abs().amax(1) / expected.abs().amax(1)
        worst = max(worst, float(errors.nan_to_num(torch.inf).max()))
    if worst > tolerance:
        raise ConfigError(
            f"{what}: logits differ by {worst:.2g} of the largest from those of the model's own "
            f"attention, {tolerance:g} is allowed; it keeps or computes something that is not "
            "supported"
        )
