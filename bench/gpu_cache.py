"""What a cache of 8 bits changes: `python -m bench.gpu_cache --out gpu_cache.json`.

Teacher-forced: every variant of the model (float32 or bf16, with a cache of the same dtype or of
float8 e4m3) reads the same texts, and at every position of an answer is asked for its next token.
Two variants agree there if they choose the same one, at T = 0 and with the same noise at T = 0.7.
What bf16 itself changes, beside float32, is the scale to judge by. Texts: stories that the first
variant tells, and with `--corpus` stories that it was not trained on (`models.recipe.corpus`). An
8-bit number ends at 448: the largest key and value say whether anything was cut off.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bench.prompts import MAX_TOKENS, PROMPTS, SEED
from kernels.gpu.rotary_kv_write import FP8
from models.recipe.corpus import Stories, story_documents
from shared.engine.config import ModelConfig
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.runner import GpuRunner
from shared.engine.sampling import Row, sample
from shared.engine.spans import Span
from shared.engine.text import TextTokenizer
from shared.protocol.sampling import SamplingParams

MODEL = Path(__file__).parents[1] / "models" / "storyteller"
BLOCK_SIZE = 16
MAX_ROWS = 512  # of a pass
NUM_TEXTS = 32
TEMPERATURES = (0.0, 0.7)


@dataclass(frozen=True)
class Variant:
    """One way to compute the model."""

    name: str
    dtype: torch.dtype
    cache_dtype: torch.dtype


VARIANTS = (
    Variant("float32", torch.float32, torch.float32),
    Variant("float32 with fp8 cache", torch.float32, FP8),
    Variant("bf16", torch.bfloat16, torch.bfloat16),
    Variant("bf16 with fp8 cache", torch.bfloat16, FP8),
)
PAIRS = (
    ("float32", "bf16"),
    ("float32", "bf16 with fp8 cache"),
    ("float32", "float32 with fp8 cache"),
    ("bf16", "bf16 with fp8 cache"),
)


@dataclass(frozen=True)
class Text:
    """What is read, and from where on choices are asked for."""

    token_ids: Sequence[int]
    prompt_len: int
    seed: int  # of the noise at its positions


@dataclass
class Choices:
    """What one variant makes of some texts, position by position."""

    log_probs: list[float]  # of the text's own token
    token_ids: dict[float, list[int]]  # by temperature: what would be chosen


class Reader:
    """A variant with a cache for some texts."""

    def __init__(self, model: Path, variant: Variant, device: torch.device, num_texts: int) -> None:
        max_model_len = ModelConfig.from_directory(model).max_model_len
        self._blocks_a_text = -(-max_model_len // BLOCK_SIZE)
        limits = GpuLimits(
            num_blocks=num_texts * self._blocks_a_text,
            block_size=BLOCK_SIZE,
            max_rows=MAX_ROWS,
            max_sequences=num_texts,
            max_model_len=max_model_len,
            max_graph_rows=0,
        )
        self._runner = GpuRunner.load(
            model,
            limits,
            device=device,
            dtype=variant.dtype,
            cache_dtype=variant.cache_dtype,
            progress=lambda _event, _done, _total: None,
        )

    def tell(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Text]:
        """Sampled answers to the prompts, all in one batch."""
        params = [
            SamplingParams(seed=SEED + index, temperature=TEMPERATURES[-1])
            for index in range(len(prompts))
        ]
        texts, starts = [list(prompt) for prompt in prompts], [0] * len(prompts)
        for _ in range(num_tokens):
            spans = [
                Span(text[start:], start, self._table(index), 1)
                for index, (text, start) in enumerate(zip(texts, starts, strict=True))
            ]
            rows = [
                Row(own, text, len(prompt))
                for own, text, prompt in zip(params, texts, prompts, strict=True)
            ]
            starts = [len(text) for text in texts]
            for text, token_id in zip(texts, self._sampled(spans, rows), strict=True):
                text.append(token_id)
        return [
            Text(text, len(prompt), SEED + index)
            for index, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        ]

    def read(self, texts: Sequence[Text]) -> Choices:
        """Each text in one pass, or several where it is long."""
        choices = Choices([], {temperature: [] for temperature in TEMPERATURES})
        for text in texts:
            num_asked = len(text.token_ids) - text.prompt_len
            span = Span(text.token_ids[:-1], 0, self._table(0), num_asked)
            logits = self._runner.run([span]).float().cpu()
            named = torch.tensor(text.token_ids[text.prompt_len :])
            scores = logits.log_softmax(dim=-1)[torch.arange(num_asked), named]
            choices.log_probs += scores.tolist()
            for temperature in TEMPERATURES:
                params = SamplingParams(seed=text.seed, temperature=temperature)
                rows = [
                    Row(params, text.token_ids[:position], text.prompt_len)
                    for position in range(text.prompt_len, len(text.token_ids))
                ]
                choices.token_ids[temperature] += sample(logits, rows)
        return choices

    @property
    def largest(self) -> dict[str, float]:
        """Of the keys and of the values that the cache holds, in size."""
        layers = self._runner._cache.layers  # noqa: SLF001  # the bench looks inside
        sizes = [[float(part.float().abs().max()) for part in layer] for layer in layers]
        return {
            "keys": max(keys for keys, _ in sizes),
            "values": max(values for _, values in sizes),
        }

    def _sampled(self, spans: Sequence[Span], rows: Sequence[Row]) -> list[int]:
        return sample(self._runner.run(spans).float().cpu(), rows)

    def _table(self, index: int) -> list[int]:
        return list(range(index * self._blocks_a_text, (index + 1) * self._blocks_a_text))


def compare(one: Choices, other: Choices) -> dict[str, float]:
    """How often two variants choose the same token, and how far their log-probabilities differ."""
    differences = [
        abs(left - right) for left, right in zip(one.log_probs, other.log_probs, strict=True)
    ]
    return {
        **{
            f"agreement_t{temperature:g}": statistics.fmean(
                left == right
                for left, right in zip(
                    one.token_ids[temperature], other.token_ids[temperature], strict=True
                )
            )
            for temperature in TEMPERATURES
        },
        "mean_log_prob_difference": statistics.fmean(differences),
        "max_log_prob_difference": max(differences),
    }


def summary(texts: Sequence[Text], found: dict[str, Choices]) -> dict[str, Any]:
    """One kind of text: nats a token of every variant, and the pairs."""
    return {
        "num_texts": len(texts),
        "num_positions": sum(len(text.token_ids) - text.prompt_len for text in texts),
        "nats": {name: -statistics.fmean(choices.log_probs) for name, choices in found.items()},
        "pairs": [
            {"one": one, "other": other, **compare(found[one], found[other])}
            for one, other in PAIRS
        ],
    }


def held_out(model: Path, corpus: Path, num_texts: int) -> list[Text]:
    """The first stories of a corpus that the bundled models were not trained on."""
    stories = Stories.read(corpus).held_out[:num_texts]
    tokenizer: Any = Tokenizer
    documents = story_documents(tokenizer.from_file(str(model / "tokenizer.json")), stories)
    longest = ModelConfig.from_directory(model).max_model_len
    return [Text(ids[:longest], 1, SEED + index) for index, ids in enumerate(documents)]


def measure(
    model: Path, device: torch.device, *, num_texts: int, num_tokens: int, corpus: Path | None
) -> dict[str, Any]:
    """All variants, one after the other, on all texts; the largest numbers in their caches."""
    tokenizer = TextTokenizer.load(model)
    wanted = itertools.islice(itertools.cycle(PROMPTS), num_texts)
    prompts = [tokenizer.encode_chat([("user", prompt)]) for prompt in wanted]
    texts: dict[str, list[Text]] = {}
    found: dict[str, dict[str, Choices]] = {}
    largest: dict[str, dict[str, float]] = {}
    for variant in VARIANTS:
        started = time.perf_counter()
        reader = Reader(model, variant, device, num_texts)
        if not texts:
            texts["told"] = reader.tell(prompts, num_tokens)
            if corpus is not None:
                texts["held out"] = held_out(model, corpus, num_texts)
        for kind, own in texts.items():
            found.setdefault(kind, {})[variant.name] = reader.read(own)
        largest[variant.name] = reader.largest
        print(f"{variant.name}: {time.perf_counter() - started:.1f} s", flush=True)
    summaries = {kind: summary(own, found[kind]) for kind, own in texts.items()}
    return {"texts": summaries, "largest": largest}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one model and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--corpus", type=Path, help="stories with <|endoftext|> between them")
    parser.add_argument("--texts", type=int, default=NUM_TEXTS)
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS, help="of a story that is told")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    found = measure(
        options.model,
        torch.device(options.device),
        num_texts=options.texts,
        num_tokens=options.tokens,
        corpus=options.corpus,
    )
    is_gpu = options.device == "cuda"
    machine = {
        "gpu": torch.cuda.get_device_name() if is_gpu else "none: Triton's interpreter",
        **{package: version(package) for package in ("torch", "triton")},
        "cuda": torch.version.cuda,
        "command": "python -m bench.gpu_cache" + (" --corpus FILE" if options.corpus else ""),
    }
    result = {"machine": machine, "model": options.model.resolve().name, **found}
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
