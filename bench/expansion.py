"""The tensors of a grown Llama, one at a time: algebra and reasons are in bench/expand.py."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared.common.errors import ConfigError
from shared.engine.checkpoint import expected_shapes, read_tensors
from shared.engine.config import ModelConfig

NUM_RANDOM = 16_777_213  # the largest prime below 2^24: drawn in a tenth of a second
RANDOM_LIMIT = 0.02 * math.sqrt(3)  # uniform, with the deviation that Llama starts from
MIN_DISTANCE = 100.0  # of new logits below old ones: 124,160 x exp(-100 / 2) is below 1e-16
MAX_WEIGHT = 2.0**15  # fits float16


class Tape:
    """Endless random numbers: one block of them, over and over."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.empty(NUM_RANDOM).uniform_(-RANDOM_LIMIT, RANDOM_LIMIT, generator=generator)
        self._numbers = numbers.to(dtype)
        self._position = 0

    def tensor(self, shape: Sequence[int]) -> Tensor:
        """The next numbers, as a tensor of this shape."""
        filled = torch.empty(shape, dtype=self._numbers.dtype)
        flat, done = filled.view(-1), 0
        while done < flat.numel():
            piece = self._numbers[self._position : self._position + flat.numel() - done]
            flat[done : done + len(piece)] = piece
            done += len(piece)
            self._position = (self._position + len(piece)) % NUM_RANDOM
        return filled


@dataclasses.dataclass(frozen=True, slots=True)
class Mask:
    """How new ids are kept from being chosen. All three are powers of two: exact in any dtype."""

    constant: float  # a, in every embedding
    norm_weight: float  # of the final norm, where a is
    head_weight: float  # in the head's rows of new ids, where a is


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Where numbers of the source's heads go. Lists of rows or columns, [source heads x D] each."""

    heads: list[int]  # [source heads], each one's head of the result
    queries: Tensor
    outputs: Tensor
    keys: Tensor  # key heads may be repeated: [copies of key heads x D]
    values: Tensor
    kv_sources: Tensor  # which row of the source is at `keys` and `values`


class Expansion:
    """The tensors of the result, one at a time."""

    def __init__(self, source_dir: Path, source: ModelConfig, target: ModelConfig) -> None:
        """`target` must be as `expand` makes it."""
        self._source, self._target = source, target
        self._tensors = read_tensors(source_dir, expected_shapes(source))
        self._places = _places(source, target)
        is_padded = target.vocab_size > source.vocab_size
        self._mask = _mask(self._tensors, source, target) if is_padded else None
        # Columns that are not 0 in y: what must not reach an old logit is 0 there.
        self._live = source.hidden_size + is_padded
        # What each puts into a random weight (o_proj: into zeros); None: a layer of no source.
        self._fillers: dict[str, Callable[[Tensor, Tensor | None], None]] = {
            "q_proj": self._fill_queries,
            "k_proj": self._fill_keys,
            "v_proj": self._fill_values,
            "o_proj": self._fill_output,
            "gate_proj": self._fill_gate,
            "up_proj": self._fill_up,
            "down_proj": self._fill_down,
        }

    def tensor(self, name: str, shape: tuple[int, ...], tape: Tape, dtype: torch.dtype) -> Tensor:
        """One tensor of the result by its Hugging Face name."""
        if name == "model.embed_tokens.weight":
            return self._embedding(shape, tape, dtype)
        if name == "lm_head.weight":
            return self._head(shape, tape)
        old = self._tensors.get(name)
        if len(shape) == 1:
            return self._norm(name, shape, old, dtype)
        kind = name.split(".")[-2]
        weight = torch.zeros(shape, dtype=dtype) if kind == "o_proj" else tape.tensor(shape)
        self._fillers[kind](weight, old)
        return weight

    def _embedding(self, shape: tuple[int, ...], tape: Tape, dtype: torch.dtype) -> Tensor:
        num_old, hidden = self._source.vocab_size, self._source.hidden_size
        weight = torch.zeros(shape, dtype=dtype)
        weight[:num_old, :hidden] = self._tensors["model.embed_tokens.weight"].to(dtype)
        weight[num_old:, :hidden] = tape.tensor((shape[0] - num_old, hidden))
        if self._mask is not None:
            weight[:, hidden] = self._mask.constant
        return weight

    def _head(self, shape: tuple[int, ...], tape: Tape) -> Tensor:
        num_old, hidden = self._source.vocab_size, self._source.hidden_size
        tied = self._tensors["model.embed_tokens.weight"]
        weight = tape.tensor(shape)
        _place(weight[:num_old], self._tensors.get("lm_head.weight", tied), self._live)
        if self._mask is not None:
            weight[num_old:, hidden] = -self._mask.head_weight
        return weight

    def _norm(
        self, name: str, shape: tuple[int, ...], old: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        hidden = self._source.hidden_size
        weight = torch.ones(shape, dtype=dtype)
        scale = math.sqrt(hidden / self._target.hidden_size)
        weight[:hidden] = scale if old is None else (old * scale).to(dtype)
        if name == "model.norm.weight" and self._mask is not None:
            weight[hidden] = self._mask.norm_weight
        return weight

    def _fill_queries(self, weight: Tensor, old: Tensor | None) -> None:
        if old is None:
            return
        by_head = weight.view(self._target.num_heads, self._target.head_dim, -1)
        by_head[self._places.heads, :, : self._live] = 0  # new pairs of old heads
        scale = math.sqrt(self._target.head_dim / self._source.head_dim)
        weight[self._places.queries, : old.shape[1]] = (old * scale).to(weight.dtype)

    def _fill_keys(self, weight: Tensor, old: Tensor | None) -> None:
        self._place_kv(weight, old, self._places.keys)

    def _fill_values(self, weight: Tensor, old: Tensor | None) -> None:
        self._place_kv(weight, old, self._places.values)

    def _place_kv(self, weight: Tensor, old: Tensor | None, rows: Tensor) -> None:
        if old is not None:
            weight[rows, : self._live] = 0
            old = old[self._places.kv_sources]
            weight[rows, : old.shape[1]] = old.to(weight.dtype)

    def _fill_output(self, weight: Tensor, old: Tensor | None) -> None:
        if old is not None:
            weight[: len(old), self._places.outputs] = old.to(weight.dtype)

    def _fill_gate(self, weight: Tensor, old: Tensor | None) -> None:
        if old is not None:
            _place(weight[: len(old)], old, self._live)

    def _fill_up(self, weight: Tensor, old: Tensor | None) -> None:
        weight[:, : self._live] = 0  # new units multiply by 0
        if old is not None:
            weight[: len(old), : old.shape[1]] = old.to(weight.dtype)

    def _fill_down(self, weight: Tensor, old: Tensor | None) -> None:
        if old is not None:
            weight[:, : old.shape[1]] = 0
            weight[: len(old), : old.shape[1]] = old.to(weight.dtype)


def _place(weight: Tensor, old: Tensor, num_live: int) -> None:
    """Old rows: their numbers, and 0 up to column `num_live`."""
    weight[:, :num_live] = 0
    weight[:, : old.shape[1]] = old.to(weight.dtype)


def _places(source: ModelConfig, target: ModelConfig) -> Places:
    group, room = source.layout.group_size, target.layout.group_size
    copies = -(-group // room)  # of each key head, where fewer queries share one
    heads = [
        (key_head * copies + member // room) * room + member % room
        for key_head in range(source.num_kv_heads)
        for member in range(group)
    ]
    half, stride = source.head_dim // 2, target.head_dim // source.head_dim
    pairs = torch.arange(half) * stride
    turned = torch.cat([pairs, pairs + target.head_dim // 2])  # pair i is (i, i + D / 2)
    straight = torch.arange(source.head_dim)
    kv_heads = torch.arange(source.num_kv_heads * copies)

    def rows(of_heads: Tensor, within: Tensor, head_dim: int) -> Tensor:
        return (of_heads[:, None] * head_dim + within).flatten()

    return Places(
        heads=heads,
        queries=rows(torch.tensor(heads), turned, target.head_dim),
        outputs=rows(torch.tensor(heads), straight, target.head_dim),
        keys=rows(kv_heads, turned, target.head_dim),
        values=rows(kv_heads, straight, target.head_dim),
        kv_sources=rows(kv_heads // copies, straight, source.head_dim),
    )


def mask_constant(source: ModelConfig) -> float:
    """a: the largest power of two whose square is at most half of eps H."""
    return 2.0 ** math.floor(math.log2(source.rms_norm_eps * source.hidden_size / 2) / 2)


def _mask(tensors: dict[str, Tensor], source: ModelConfig, target: ModelConfig) -> Mask:
    """Weights that hold for every input, by bounds on the final hidden state and on old logits."""
    constant, hidden = mask_constant(source), source.hidden_size
    final_norm = tensors["model.norm.weight"]
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    largest_old = float((head * final_norm).norm(dim=1).max()) * math.sqrt(hidden)
    largest_random = RANDOM_LIMIT * hidden * float(final_norm.abs().max())
    # What the final norm makes of a, times the root mean square of x: |x| / sqrt(H), eps included.
    reading = constant * math.sqrt(target.hidden_size / hidden)
    rms = _largest_hidden(tensors, source) / math.sqrt(hidden) + math.sqrt(source.rms_norm_eps)
    product = (largest_old + largest_random + MIN_DISTANCE) * rms / reading
    exponent = math.ceil(math.log2(product))
    mask = Mask(constant, 2.0 ** (exponent // 2), 2.0 ** (exponent - exponent // 2))
    if mask.head_weight > MAX_WEIGHT:
        raise ConfigError(f"vocab_size cannot grow: masking needs weights of {mask.head_weight:g}")
    return mask


def _largest_hidden(tensors: dict[str, Tensor], source: ModelConfig) -> float:
    """A bound on |x| after the last layer: embedding, heads and MLP at their largest, added."""
    root = math.sqrt(source.hidden_size)  # a norm's output, before its weights, is no longer
    random_embedding = RANDOM_LIMIT * root
    largest = max(float(tensors["model.embed_tokens.weight"].norm(dim=1).max()), random_embedding)
    for index in range(source.num_layers):
        layer = f"model.layers.{index}."
        norm = tensors[layer + "input_layernorm.weight"]
        values = (tensors[layer + "self_attn.v_proj.weight"] * norm).view(
            source.num_kv_heads, source.head_dim, -1
        )
        # A head is a mean of values: no longer than the longest of them.
        lengths = torch.linalg.matrix_norm(values, 2) * root
        heads = float(lengths.norm()) * math.sqrt(source.layout.group_size)
        largest += heads * _gain(tensors[layer + "self_attn.o_proj.weight"])
        norm = tensors[layer + "post_attention_layernorm.weight"]
        gate = (tensors[layer + "mlp.gate_proj.weight"] * norm).norm(dim=1) * root
        up = (tensors[layer + "mlp.up_proj.weight"] * norm).norm(dim=1) * root
        largest += float((gate * up).norm()) * _gain(tensors[layer + "mlp.down_proj.weight"])
    return largest


def _gain(weight: Tensor) -> float:
    """How much a matrix can lengthen a vector."""
    return float(torch.linalg.matrix_norm(weight, 2))
