"""What the stages of one run share: corpus, tokenizer, stage files, new models, streams.

A stage whose file is there is loaded instead of run, so a stopped run goes on where it was.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from models.recipe import evaluate, prompts
from models.recipe.corpus import Stories, batches, chat_prompt, epochs, render, story_documents
from models.recipe.export import load_weights, save_weights
from models.recipe.generate import sample_streams
from models.recipe.log import report
from models.recipe.network import Llama
from models.recipe.vocabulary import END_ID, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from models.recipe.optimise import LossPoint
    from models.recipe.sizes import LlamaSize, Plan, Recipe

NUM_TRAIN_MEASURED = 300  # stories, for the loss on seen text
STREAM_TEMPERATURES = (1.0, 0.7)
SEEDS_APART = 1000  # between runs, so that no two stages share random numbers


@dataclass(frozen=True)
class Run:
    """One run of the recipe on one corpus."""

    recipe: Recipe
    seed: int
    folder: Path
    device: torch.device
    stories: Stories
    tokenizer: Tokenizer
    nouns: prompts.Nouns

    @classmethod
    def prepare(cls, recipe: Recipe, corpus: Path, folder: Path, seed: int) -> Run:
        """Read the corpus and train the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stories = Stories.read(corpus)
        tokenizer = train_tokenizer(stories.train, recipe.target.vocab_size)
        nouns = prompts.Nouns.of(stories.train)
        report(
            "corpus",
            stories=len(stories.train),
            held_out=len(stories.held_out),
            nouns=len(nouns.phrases),
        )
        return cls(recipe, seed, folder, device, stories, tokenizer, nouns)

    @cached_property
    def renderings(self) -> list[list[np.ndarray]]:
        """The corpus as documents, prompted differently each time."""
        numbers = range(self.recipe.num_renderings)
        return [
            render(self.stories.train, self.nouns, self.tokenizer, self.seed + number)
            for number in numbers
        ]

    @cached_property
    def held_out(self) -> list[list[int]]:
        """Held-out stories as plain documents."""
        return story_documents(self.tokenizer, self.stories.held_out)

    def new_model(self, size: LlamaSize, seed: int, dropout: float = 0.0) -> Llama:
        """A fresh network, compiled where that pays."""
        torch.manual_seed(self.seed * SEEDS_APART + seed)
        return self.compiled(Llama(size, dropout).to(self.device))

    def compiled(self, model: Llama) -> Llama:
        """`model` itself, with compiled blocks on a GPU."""
        if self.device.type == "cuda":
            model.compile_blocks()
        return model

    def held_out_loss(self, *models: Llama) -> float:
        """Nats a token on the held-out stories, of the mean distribution of `models`."""
        scores = evaluate.of_mean(list(models)) if len(models) > 1 else evaluate.of_one(models[0])
        return evaluate.loss_on(
            scores, evaluate.padded(self.held_out, self.recipe.window_tokens), self.device
        )

    def seen_loss(self, model: Llama) -> float:
        """Nats a token on stories that were trained on."""
        seen = story_documents(self.tokenizer, self.stories.train[:NUM_TRAIN_MEASURED])
        rows = evaluate.padded(seen, self.recipe.window_tokens)
        return evaluate.loss_on(evaluate.of_one(model), rows, self.device)

    def request_prompts(
        self, number: int, seed: int
    ) -> tuple[list[list[int]], list[tuple[str, ...]]]:
        """`number` conversations that ask for nouns, up to the answer; and those nouns."""
        rng = random.Random(seed)  # noqa: S311  # reproducible, not secret
        topics = [prompts.random_topics(self.nouns, rng) for _ in range(number)]
        ids = [chat_prompt(self.tokenizer, prompts.request(topic, rng)) for topic in topics]
        return ids, [topic.words for topic in topics]

    def corpus_batches(self, plan: Plan, seed: int) -> Iterator[Tensor]:
        """Batches of corpus windows."""
        return batches(
            epochs(self.renderings, self.recipe.window_tokens, seed), plan.num_windows, self.device
        )

    def record(self, name: str, facts: dict[str, object]) -> None:
        """Write what a stage measured."""
        (self.folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")

    def recorded(self) -> dict[str, dict[str, object]]:
        """What every finished stage measured, by stage."""
        files = sorted(self.folder.glob("*.json"))
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def trained(self, name: str, model: Llama, train: Callable[[], list[LossPoint]]) -> Llama:
        """`model` after `train`, or as the stage's file has it."""
        path = self.folder / f"{name}.safetensors"
        started_s = time.monotonic()
        if path.exists():
            load_weights(model, path)
        else:
            curve = [asdict(point) for point in train()]
            save_weights(model, path, torch.float32)
            self.record(name, {"seconds": time.monotonic() - started_s, "curve": curve})
        return model.eval().requires_grad_(requires_grad=False)

    def writer(self, model: Llama) -> Llama:
        """A copy of `model` for generating text: bfloat16 on a GPU."""
        return model.as_dtype(torch.bfloat16 if self.device.type == "cuda" else torch.float32)

    def temperatures(self, number: int) -> Tensor:
        """STREAM_TEMPERATURES in turn, two rows each, [number]."""
        return (
            torch.tensor(STREAM_TEMPERATURES).repeat_interleave(2).repeat(number // 4 + 1)[:number]
        )

    def streams(self, name: str, model: Llama, num_batches: int, seed: int) -> Tensor:
        """Windows [N, T] int16 of `model`'s own; every other one starts with a request."""
        path = self.folder / f"{name}.safetensors"
        started_s = time.monotonic()
        if not path.exists():
            writer = self.writer(model)
            torch.manual_seed(self.seed * SEEDS_APART + seed)
            parts = []
            for number in range(num_batches):
                asked, _ = self.request_prompts(self.recipe.stream_rows // 2, seed + number)
                openings = [opening for prompt in asked for opening in (prompt, [END_ID])]
                temperatures = self.temperatures(len(openings))
                parts.append(
                    sample_streams(writer, openings, self.recipe.window_tokens, temperatures)
                )
            save_file({"streams": torch.cat(parts)}, path)
            self.record(
                name, {"seconds": time.monotonic() - started_s, "windows": sum(map(len, parts))}
            )
        windows = load_file(path)["streams"]
        report(name, windows=len(windows), elapsed_s=time.monotonic() - started_s)
        return windows
