"""Stories to token windows: read, split, render as plain stories and as conversations.

A window is cut anywhere from a stream of documents and holds several. Attention crosses their
borders; that every document starts after `<|endoftext|>` makes up for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.recipe import prompts
from models.recipe.vocabulary import ASSISTANT_ID, END, END_ID, USER_ID, encode_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

HELD_OUT_SHARE = 0.02  # the last stories of the file
PLAIN_SHARE = 0.3  # of documents: no conversation around the story
TWO_TURN_SHARE = 0.2  # of conversations
SWAPPED_SHARE = 0.5  # of requests for something: told with other nouns (prompts.swapped)


@dataclass(frozen=True, slots=True)
class Stories:
    """The corpus as text, in file order."""

    train: list[str]
    held_out: list[str]

    @classmethod
    def read(cls, path: Path) -> Stories:
        """Split the file at `<|endoftext|>` and hold out its end."""
        parts = [part.strip() for part in path.read_text(encoding="utf-8").split(END)]
        stories = [part for part in parts if part]
        num_train = len(stories) - max(1, int(len(stories) * HELD_OUT_SHARE))
        return cls(stories[:num_train], stories[num_train:])


def story_documents(tokenizer: Tokenizer, stories: list[str]) -> list[list[int]]:
    """Each story alone: `<|endoftext|>` story `<|endoftext|>`."""
    return [[END_ID, *ids, END_ID] for ids in encode_all(tokenizer, stories)]


def chat_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids up to where the assistant's answer starts, as the chat template writes them."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [END_ID, USER_ID, *ids, ASSISTANT_ID]


def render(
    stories: list[str], nouns: prompts.Nouns, tokenizer: Tokenizer, seed: int
) -> list[np.ndarray]:
    """One rendering of the corpus: documents that hold each story once, plain or as an answer."""
    rng = random.Random(seed)  # noqa: S311  # reproducible, not secret
    kinds: list[str] = []
    requests: list[str] = []
    told: list[str] = []
    for story in stories:
        is_next = bool(kinds) and kinds[-1] == "first"
        kind = "next" if is_next else "plain" if rng.random() < PLAIN_SHARE else "only"
        kinds.append("first" if kind == "only" and rng.random() < TWO_TURN_SHARE else kind)
        topics = prompts.topics_of(story, nouns, rng)
        text = story
        if kind != "plain" and topics is not None and rng.random() < SWAPPED_SHARE:
            text, topics = prompts.swapped(story, topics, nouns, rng)
        requests.append(prompts.request(topics, rng, follows=told[-1] if is_next else ""))
        told.append(text)
    documents: list[np.ndarray] = []
    carried: list[int] = []
    for kind, request, ids in zip(
        kinds, encode_all(tokenizer, requests), encode_all(tokenizer, told), strict=True
    ):
        turn = [] if kind == "plain" else [USER_ID, *request, ASSISTANT_ID]
        carried += [*turn, *ids, END_ID]
        if kind != "first":
            documents.append(np.array(carried, dtype=np.int16))
            carried = []
    return documents


def epochs(renderings: list[list[np.ndarray]], window_tokens: int, seed: int) -> Iterator[Tensor]:
    """Endless epochs of windows, [N, window_tokens] int16, documents in a new order each time."""
    rng = np.random.default_rng(seed)
    epoch = 0
    while True:
        documents = renderings[(seed + epoch) % len(renderings)]
        order = rng.permutation(len(documents))
        stream = np.concatenate([np.array([END_ID], np.int16), *(documents[i] for i in order)])
        num_windows = max(1, len(stream) // window_tokens)
        windows = np.resize(stream, num_windows * window_tokens).reshape(num_windows, window_tokens)
        yield torch.from_numpy(windows[rng.permutation(num_windows)])
        epoch += 1


def batches(source: Iterator[Tensor], num_windows: int, device: torch.device) -> Iterator[Tensor]:
    """Endless batches, [num_windows, T] int64 on `device`; leftovers of an epoch join the next."""
    pending = torch.empty(0, 0, dtype=torch.int16)
    for epoch in source:
        moved = epoch.to(device)
        pending = torch.cat([pending.to(device), moved]) if pending.numel() else moved
        while len(pending) >= num_windows:
            yield pending[:num_windows].long()
            pending = pending[num_windows:]


def shuffled(windows: Tensor, seed: int) -> Iterator[Tensor]:
    """Endless epochs over fixed `windows` [N, T], reordered each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield windows[torch.randperm(len(windows), generator=generator)]
