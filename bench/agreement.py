"""The offline figure: how often the draft, given the target's own text, names its next token.

No processes, no network, no timing: both models on the same tokens with the same noise. The chain
survival it prints says how many tokens of a draft of given length should be accepted; the running
system is held to it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.prompts import MAX_TOKENS, PROMPTS, SEED
from shared.engine.blocks import BlockPool
from shared.engine.runner import ModelRunner
from shared.engine.sampling import Row, sample
from shared.engine.spans import Span
from shared.engine.text import TextTokenizer
from shared.protocol.sampling import SamplingParams

BLOCK_SIZE = 16
NUM_BLOCKS = 128
MAX_LENGTH = 16  # longest draft whose survival is worth knowing


@dataclass(frozen=True)
class Agreement:
    """What the pair does on its own text."""

    rate: float  # of single tokens
    survival: tuple[float, ...]  # [MAX_LENGTH]: how often the next i tokens are all named


def measure(
    target_dir: Path, draft_dir: Path, *, num_prompts: int, temperature: float
) -> Agreement:
    """Generate with the target alone, then ask the draft for every position of that text."""
    target, draft = (
        ModelRunner.load(path, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
        for path in (target_dir, draft_dir)
    )
    tokenizer = TextTokenizer.load(target_dir)
    runs: list[list[bool]] = []
    for index, prompt in enumerate(PROMPTS[:num_prompts]):
        params = SamplingParams(seed=SEED + index, temperature=temperature)
        token_ids = tokenizer.encode_chat([("user", prompt)])
        prompt_len = len(token_ids)
        token_ids = generate(target, token_ids, params)
        runs.append(named_by(draft, token_ids, prompt_len, params))
    flat = [hit for run in runs for hit in run]
    survival = tuple(_survival(runs, length) for length in range(1, MAX_LENGTH + 1))
    return Agreement(sum(flat) / len(flat), survival)


def generate(runner: ModelRunner, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """Prompt and MAX_TOKENS of plain decoding."""
    token_ids, computed = list(prompt), 0
    table = BlockPool(NUM_BLOCKS, BLOCK_SIZE).open(token_ids)
    for _ in range(MAX_TOKENS):
        table.extend(len(token_ids))
        logits = runner.run([Span(token_ids[computed:], computed, table.block_ids, 1)])
        computed = len(token_ids)
        token_ids.extend(sample(logits, [Row(params, token_ids, len(prompt))]))
    return token_ids


def named_by(
    runner: ModelRunner, token_ids: Sequence[int], prompt_len: int, params: SamplingParams
) -> list[bool]:
    """For every output position: whether the draft, given all before it, names the token there."""
    table = BlockPool(NUM_BLOCKS, BLOCK_SIZE).open(token_ids)
    table.extend(len(token_ids))
    num_output = len(token_ids) - prompt_len
    span = Span(token_ids[:-1], 0, table.block_ids, num_output)
    rows = [
        Row(params, token_ids[:position], prompt_len)
        for position in range(prompt_len, len(token_ids))
    ]
    named = sample(runner.run([span]), rows)
    return [guess == token for guess, token in zip(named, token_ids[prompt_len:], strict=True)]


def _survival(runs: Sequence[Sequence[bool]], length: int) -> float:
    windows = [
        run[start : start + length] for run in runs for start in range(len(run) - length + 1)
    ]
    return sum(map(all, windows)) / len(windows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.7)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(
        options.target, options.draft, num_prompts=options.prompts, temperature=options.temperature
    )
    print(json.dumps({"rate": result.rate, "survival": result.survival}))


if __name__ == "__main__":
    main()
