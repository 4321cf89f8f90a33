"""A model on this machine: spans in, logits out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kernels.attention_plan import AttentionSpan, plan_attention
from shared.engine.cache import PagedCache
from shared.engine.config import ModelConfig
from shared.engine.decoder import Batch, Decoder, Layers
from shared.engine.shape import ModelShape
from shared.engine.spans import Runner, Span
from shared.engine.weights import load_weights


class ModelRunner(Runner):
    """Decoder and paged cache of one model. One caller at a time."""

    def __init__(self, config: ModelShape, decoder: Layers, cache: PagedCache) -> None:
        self.config = config
        self._decoder = decoder
        self._cache = cache
        self._windows = frozenset(config.windows)

    @classmethod
    def load(cls, model_dir: Path, *, num_blocks: int, block_size: int = 16) -> "ModelRunner":
        """Load a Hugging Face directory and allocate a cache of `num_blocks` blocks.

        Raises:
            ConfigError: the directory does not hold a model of the supported kinds.
        """
        config = ModelConfig.from_directory(model_dir)
        weights = load_weights(model_dir, config)
        cache = PagedCache(config, num_blocks=num_blocks, block_size=block_size)
        return cls(config, Decoder(config, weights, cache), cache)

    @torch.inference_mode()
    def run(self, spans: Sequence[Span]) -> Tensor:
        """See Runner. Needs at least one span; no two of them of one sequence.

        Logits are an inference tensor: torch refuses to change them in place outside such a mode.
        """
        return self._decoder.forward(self._batch(spans))

    @torch.inference_mode()
    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._cache.copy_blocks(copies)

    def _batch(self, spans: Sequence[Span]) -> Batch:
        block_size = self._cache.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slot_mapping: list[int] = []
        logit_rows: list[int] = []
        attention_spans: list[AttentionSpan] = []
        for span in spans:
            num_rows = len(span.token_ids)
            end = span.start + num_rows
            assert 0 <= span.num_logits <= num_rows
            assert 0 < num_rows <= end <= self.config.max_model_len
            assert end <= len(span.block_ids) * block_size
            attention_spans.append(AttentionSpan(len(token_ids), num_rows, end, span.block_ids))
            token_ids += span.token_ids
            logit_rows += range(len(token_ids) - span.num_logits, len(token_ids))
            positions += range(span.start, end)
            slot_mapping += [
                span.block_ids[position // block_size] * block_size + position % block_size
                for position in range(span.start, end)
            ]
        num_rows = len(token_ids)
        return Batch(
            token_ids=_int64(token_ids),
            positions=_int64(positions),
            slot_mapping=_int64(slot_mapping),
            plan=plan_attention(
                attention_spans,
                cache=self._cache.layers[0],
                layout=self.config.layout,
                windows=self._windows,
            ),
            logit_rows=None if len(logit_rows) == num_rows else _int64(logit_rows),
        )


def _int64(values: list[int]) -> Tensor:
    """Four times faster than torch.tensor on a list of 400."""
    return torch.from_numpy(np.array(values, dtype=np.int64))
