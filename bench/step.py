"""What one pass of the engine costs, by sequences, rows and context, beside transformers.

    python -m bench.step --model models/storyteller
    python -m bench.step --random-target

One thread. All settings take turns, round after round, so that a machine that slows down slows all
of them; the table gives the median and, in brackets, the 10th and 90th percentile, in milliseconds.
On a machine that does other things too, `--cpu-time` leaves out the time spent waiting for a core.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig
from transformers.utils import logging

from shared.engine.runner import ModelRunner
from shared.engine.spans import Span

BLOCK_SIZE = 16
SHAPES = [(1, 1), (1, 2), (1, 3), (1, 5), (1, 8), (4, 1), (4, 5), (16, 1), (16, 5)]
CONTEXTS = [100, 400]
WARM_UP = 2  # brings weights and cache near: a worker runs one model, not all settings in turn
# Of the bundled target, for measuring before it is trained. Saved in 16 bits, as it will be.
RANDOM_TARGET = LlamaConfig(
    vocab_size=4_096,
    hidden_size=384,
    intermediate_size=1_024,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=1_024,
    tie_word_embeddings=True,
)
AUTO_MODEL: Any = AutoModelForCausalLM  # transformers' own annotations are not strict
LOGGING: Any = logging

Step = Callable[[], object]
Setting = tuple[str, int, int, int]  # who, sequences, rows, context


def our_steps(model_dir: Path) -> Iterator[tuple[Setting, Step]]:
    """Our passes. Blocks lie scattered, as they do after the pool has been in use for a while."""
    num_blocks = max(b for b, _ in SHAPES) * -(-max(CONTEXTS) // BLOCK_SIZE)
    runner = ModelRunner.load(model_dir, num_blocks=num_blocks, block_size=BLOCK_SIZE)
    chance = random.Random(1)  # noqa: S311  # not a secret
    for num_sequences, num_rows in SHAPES:
        for context in CONTEXTS:
            block_ids = chance.sample(range(num_blocks), num_blocks)
            per_table = -(-context // BLOCK_SIZE)
            spans = [
                Span(
                    token_ids=chance.choices(range(runner.config.vocab_size), k=num_rows),
                    start=context - num_rows,
                    block_ids=block_ids[index * per_table : (index + 1) * per_table],
                    num_logits=num_rows,
                )
                for index in range(num_sequences)
            ]
            yield ("outrider", num_sequences, num_rows, context), partial(runner.run, spans)


def their_steps(model_dir: Path) -> Iterator[tuple[Setting, Step]]:
    """transformers' passes of one sequence: SDPA and the default cache, rolled back each time."""
    LOGGING.disable_progress_bar()
    model = AUTO_MODEL.from_pretrained(model_dir, dtype=torch.float32).eval()

    def step(token_ids: Tensor, cache: DynamicCache) -> None:
        model(token_ids, past_key_values=cache)
        cache.crop(-token_ids.shape[1])

    for num_rows in (1, 5):
        for context in CONTEXTS:
            cache = DynamicCache(config=model.config)
            model(torch.zeros(1, context - num_rows, dtype=torch.int64), past_key_values=cache)
            token_ids = torch.zeros(1, num_rows, dtype=torch.int64)
            yield ("transformers", 1, num_rows, context), partial(step, token_ids, cache)


def measure(
    steps: dict[Setting, Step], num_rounds: int, clock: Callable[[], float]
) -> dict[Setting, list[float]]:
    """Milliseconds of every step, one of each a round."""
    samples: dict[Setting, list[float]] = {setting: [] for setting in steps}
    for _ in range(num_rounds):
        for setting, step in steps.items():
            for _ in range(WARM_UP):
                step()
            begin = clock()
            step()
            samples[setting].append((clock() - begin) * 1e3)
    return samples


def table(samples: dict[Setting, list[float]]) -> Iterator[str]:
    """Markdown, a line at a time."""
    yield "| | sequences x rows | context | ms | of our 1 x 1 |"
    yield "|---|---|---|---|---|"
    for (who, num_sequences, num_rows, context), times in samples.items():
        middle = statistics.median(times)
        cuts = statistics.quantiles(times, n=10)
        base = statistics.median(samples["outrider", 1, 1, context])
        yield (
            f"| {who} | {num_sequences} x {num_rows} | {context} "
            f"| {middle:.2f} ({cuts[0]:.2f}-{cuts[-1]:.2f}) | {middle / base:.2f} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="a Hugging Face directory")
    source.add_argument("--random-target", action="store_true", help="random weights instead")
    parser.add_argument("--rounds", type=int, default=50, help="samples a setting (default 50)")
    parser.add_argument("--cpu-time", action="store_true", help="not the time on the wall")
    arguments = parser.parse_args()
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        model_dir = arguments.model or Path(directory)
        if arguments.random_target:
            AUTO_MODEL.from_config(RANDOM_TARGET, dtype=torch.float16).save_pretrained(directory)
        steps = dict([*our_steps(model_dir), *their_steps(model_dir)])
        for line in table(measure(steps, arguments.rounds, clock)):
            print(line)


if __name__ == "__main__":
    main()
