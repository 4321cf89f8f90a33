"""Generate token streams: many rows in step, static caches, a CUDA graph per span of the cache.

A stream does not stop at `<|endoftext|>`: the model goes on with another document, as in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from models.recipe.network import Cache, Llama

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SPANS = 4  # cache lengths read: a quarter, a half, three quarters, all of it


class StreamSampler:
    """The state of one batch of streams: tokens so far, forced prompts, caches."""

    def __init__(
        self, model: Llama, prompts: list[list[int]], num_tokens: int, temperatures: Tensor
    ) -> None:
        """Force each row's prompt, then sample to `num_tokens` in all; `temperatures` [B]."""
        device = model.cos.device
        num_rows = len(prompts)
        self.model = model
        self.tokens = torch.full((num_rows, num_tokens), -1, device=device)
        for row, prompt in enumerate(prompts):
            kept = prompt[:num_tokens]
            self.tokens[row, : len(kept)] = torch.tensor(kept, device=device)
        self.temperatures = temperatures.to(device)[:, None]
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.bias = torch.full((num_tokens,), float("-inf"), device=device)
        dtype = model.embed_tokens.weight.dtype
        self.caches = [
            Cache(model.size, num_rows, self.position, self.bias, dtype)
            for _ in range(model.size.num_layers)
        ]

    def step(self) -> None:
        """Read the token at `position`, choose the next unless the prompt has it, and advance."""
        self.bias.index_fill_(0, self.position, 0.0)
        current = self.tokens.index_select(1, self.position)[:, 0]
        logits = self.model.decode(current, self.caches).float()
        noise = (
            torch.empty_like(logits).exponential_().clamp_min_(1e-20).log_()
        )  # minus a Gumbel variable
        chosen = (logits - self.temperatures * noise).argmax(-1)
        self.position += 1
        forced = self.tokens.index_select(1, self.position)[:, 0]
        self.tokens.index_copy_(1, self.position, torch.where(forced >= 0, forced, chosen)[:, None])

    def read_first(self, span: int) -> None:
        """Let attention read only `span` positions of the caches."""
        for cache in self.caches:
            cache.span = span


def captured(sampler: StreamSampler) -> Callable[[], None]:
    """`sampler.step` as a CUDA graph, or itself without a GPU. Leaves the state as it was."""
    if sampler.tokens.device.type != "cuda":
        return sampler.step
    position, bias, tokens = sampler.position.clone(), sampler.bias.clone(), sampler.tokens.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sampler.step()
    torch.cuda.current_stream().wait_stream(side)
    sampler.position.copy_(position)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sampler.step()
    sampler.position.copy_(position)
    sampler.bias.copy_(bias)
    sampler.tokens.copy_(tokens)
    replay: Callable[[], None] = graph.replay
    return replay


@torch.no_grad()
def sample_streams(
    model: Llama, prompts: list[list[int]], num_tokens: int, temperatures: Tensor
) -> Tensor:
    """Streams that start with `prompts`, [B, num_tokens] int16 on the CPU.

    Args:
        model: runs in the dtype of its weights.
        prompts: token ids, any lengths of at least 1.
        num_tokens: of each stream, prompt included.
        temperatures: [B]; 0 is greedy.
    """
    sampler = StreamSampler(model, prompts, num_tokens, temperatures)
    edges = [num_tokens * i // SPANS for i in range(1, SPANS + 1)]
    start = 0
    for span in edges:
        sampler.read_first(span)
        step = captured(sampler)
        stop = min(span, num_tokens - 1)
        for _ in range(start, stop):
            step()
        start = stop
    return sampler.tokens.to(torch.int16).cpu()
