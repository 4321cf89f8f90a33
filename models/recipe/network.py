"""The Llama architecture, with Hugging Face's parameter names, and one cached decoding step.

Dropout acts on the embeddings and on what each block adds; the stored models have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from models.recipe.sizes import LlamaSize

ROPE_THETA = 10_000.0
NORM_EPS = 1e-5
INIT_STD = 0.02


def rope_table(size: LlamaSize) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [max_positions, head_dim] float32, halves repeated."""
    frequencies = ROPE_THETA ** (-torch.arange(0, size.head_dim, 2).float() / size.head_dim)
    angles = torch.outer(torch.arange(size.max_positions).float(), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to `x` [..., T, head_dim]; `cos` and `sin` broadcast against it."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query causal self-attention."""

    def __init__(self, size: LlamaSize) -> None:
        """Make the four projections."""
        super().__init__()
        self.size = size
        width, kv_width = size.num_heads * size.head_dim, size.num_kv_heads * size.head_dim
        self.q_proj = nn.Linear(size.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(size.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(size.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, size.hidden_size, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values of `x` [B, T, hidden]: [B, heads, T, head_dim], not rotated."""
        shape = (*x.shape[:2], -1, self.size.head_dim)
        q, k, v = (
            proj(x).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k, v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within each row of `x` [B, T, hidden]."""
        q, k, v = self.project(x)
        mixed = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        """One token a row: `x` [B, 1, hidden], `cos` and `sin` [1, head_dim] of its position."""
        q, k, v = self.project(x)
        cache.keys.index_copy_(2, cache.position, rotate(k, cos, sin))
        cache.values.index_copy_(2, cache.position, v)
        grouped = rotate(q, cos, sin).view(
            *k.shape[:2], -1, self.size.head_dim
        )  # [B, kv heads, group, head_dim]
        keys, values = cache.keys[:, :, : cache.span], cache.values[:, :, : cache.span]
        scores = (grouped @ keys.transpose(2, 3)).float() * self.size.head_dim**-0.5 + cache.bias[
            : cache.span
        ]
        out: Tensor = self.o_proj(
            (scores.softmax(-1).to(values.dtype) @ values).view(x.shape[0], 1, -1)
        )
        return out


class Cache:
    """Keys and values of one layer, [B, kv heads, T, head_dim].

    Layers share `position` ([1] int64), where all rows stand, and `bias` [T], which is 0 at visible
    positions and -inf at later ones. Only the first `span` positions are read.
    """

    def __init__(
        self, size: LlamaSize, num_rows: int, position: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> None:
        """Allocate for `len(bias)` tokens a row."""
        shape = (num_rows, size.num_kv_heads, len(bias), size.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=bias.device)
        self.values = torch.zeros_like(self.keys)
        self.position, self.bias, self.span = position, bias, len(bias)


class Mlp(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, size: LlamaSize) -> None:
        """Make the three projections."""
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.up_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.down_proj = nn.Linear(size.intermediate_size, size.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., hidden] to the same shape."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, size: LlamaSize, dropout: float) -> None:
        """Make both halves."""
        super().__init__()
        self.self_attn = Attention(size)
        self.mlp = Mlp(size)
        self.input_layernorm = nn.RMSNorm(size.hidden_size, eps=NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(size.hidden_size, eps=NORM_EPS)
        self.dropout = dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Run whole rows, [B, T, hidden]."""
        x = x + functional.dropout(
            self.self_attn(self.input_layernorm(x), cos, sin), self.dropout, self.training
        )
        return x + functional.dropout(
            self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training
        )

    def decode(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        """Run one token a row, [B, 1, hidden]."""
        x = x + self.self_attn.decode(self.input_layernorm(x), cos, sin, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """The decoder; the input embedding is the output projection too."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: LlamaSize, dropout: float = 0.0) -> None:
        """Initialise from torch's current random state; what blocks add starts at zero."""
        super().__init__()
        self.size = size
        self.dropout = dropout
        self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
        self.layers = nn.ModuleList(Block(size, dropout) for _ in range(size.num_layers))
        self.norm = nn.RMSNorm(size.hidden_size, eps=NORM_EPS)
        cos, sin = rope_table(size)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim > 1:
                nn.init.normal_(weight, std=INIT_STD)

    @property
    def num_parameters(self) -> int:
        """Tied weights counted once."""
        return sum(weight.numel() for weight in self.parameters())

    def as_dtype(self, dtype: torch.dtype) -> Llama:
        """An uncompiled copy with weights in `dtype`, for inference."""
        twin = (
            Llama(self.size).to(self.cos.device, dtype).eval().requires_grad_(requires_grad=False)
        )
        twin.cos, twin.sin = self.cos, self.sin  # positions keep float32
        twin.load_state_dict(self.state_dict())
        return twin

    def compile_blocks(self) -> None:
        """Compile the block once for all layers; only where it pays, on a GPU."""
        for block in self.layers:
            block.compile(dynamic=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Final hidden states [B, T, hidden] of `token_ids` [B, T]."""
        x = functional.dropout(self.embed_tokens(token_ids), self.dropout, self.training)
        cos, sin = self.cos[: token_ids.shape[1]], self.sin[: token_ids.shape[1]]
        for block in self.layers:
            x = block(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary, [..., V]."""
        weight: Tensor = self.embed_tokens.weight
        return functional.linear(hidden, weight)

    def decode(self, token_ids: Tensor, caches: list[Cache]) -> Tensor:
        """Logits [B, V] of the token after `token_ids` [B], all rows at the caches' position."""
        position = caches[0].position
        x = self.embed_tokens(token_ids)[:, None]
        cos, sin = self.cos[position], self.sin[position]
        for block, cache in zip(self.layers, caches, strict=True):
            x = block.decode(x, cos, sin, cache)  # type: ignore[operator]
        return self.logits(self.norm(x[:, 0]))
