"""Rotary position frequencies from a checkpoint's configuration: default, linear, llama3, YaRN.

Source: Su et al. 2021, arXiv:2104.09864; llama3 as in Meta's reference code; YaRN by Peng et al.
2023, arXiv:2309.00071. The numbers follow transformers' `modeling_rope_utils`, which the tests
compare with.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from shared.engine.fields import Fields

RopeKind = Literal["default", "linear", "llama3", "yarn"]
DEFAULT_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions turn queries and keys. Fields beyond `theta` matter to some kinds only."""

    kind: RopeKind = "default"
    theta: float = DEFAULT_THETA
    factor: float = 1.0
    original_max_len: int = 0  # context of pretraining, in tokens
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    attention_factor: float = 1.0  # multiplies cosines and sines


def rope_config(fields: Fields) -> RopeConfig:
    """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Raises:
        ConfigError: a kind or a value that is not supported.
    """
    key = "rope_parameters" if fields.is_set("rope_parameters") else "rope_scaling"
    scaling = fields.nested(key)
    kind_key = "rope_type" if scaling.is_set("rope_type") else "type"
    kind = scaling.choice(kind_key, get_args(RopeKind), default="default")
    theta = scaling.number("rope_theta", fields.number("rope_theta", DEFAULT_THETA))
    for owner in (fields, scaling):
        if owner.number("partial_rotary_factor", 1.0) != 1.0:
            raise owner.wrong("partial_rotary_factor", "1.0")
    if kind == "default":
        return RopeConfig(theta=theta)
    factor = scaling.number("factor")
    if kind == "linear":
        return RopeConfig(kind="linear", theta=theta, factor=factor)
    original_max_len = scaling.count(
        "original_max_position_embeddings", fields.count("max_position_embeddings")
    )
    if kind == "llama3":
        low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
        if high <= low:
            raise scaling.wrong("high_freq_factor", f"above low_freq_factor ({low})")
        return RopeConfig(
            kind="llama3",
            theta=theta,
            factor=factor,
            original_max_len=original_max_len,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_max_len=original_max_len,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        is_truncated=scaling.flag("truncate", default=True),
        attention_factor=_yarn_attention_factor(scaling, factor),
    )


def _yarn_attention_factor(scaling: Fields, factor: float) -> float:
    """Given, or by the length ratio; DeepSeek's checkpoints scale numerator and denominator."""
    if scaling.is_set("attention_factor"):
        return scaling.number("attention_factor")

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.is_set("mscale") and scaling.is_set("mscale_all_dim"):
        return mscale(scaling.number("mscale")) / mscale(scaling.number("mscale_all_dim"))
    return mscale(1.0)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians a position adds to each pair of a head: [head_dim / 2] float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inverse: Tensor = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return inverse / config.factor
    if config.kind == "llama3":
        return _llama3(config, inverse)
    if config.kind == "yarn":
        return _yarn(config, inverse)
    return inverse


def _llama3(config: RopeConfig, inverse: Tensor) -> Tensor:
    """Short waves stay, long ones are slowed down by `factor`, between the two it is blended."""
    turns = config.original_max_len * inverse / (2 * math.pi)  # in the context of pretraining
    low, high = config.low_freq_factor, config.high_freq_factor
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * inverse / config.factor + share * inverse


def _yarn(config: RopeConfig, inverse: Tensor) -> Tensor:
    """As llama3, but the blend is linear in the index of the pair."""
    dim = 2 * inverse.numel()

    def index_of(num_turns: float) -> float:
        wave = config.original_max_len / (num_turns * 2 * math.pi)
        return dim * math.log(wave) / (2 * math.log(config.theta))

    low, high = index_of(config.beta_fast), index_of(config.beta_slow)
    if config.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0.0  # transformers' guard against a zero-width ramp
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inverse / config.factor * ramp + inverse * (1 - ramp)


def rope_table(config: RopeConfig, head_dim: int, num_positions: int) -> Tensor:
    """cos + i sin of every position and pair: [num_positions, head_dim / 2] complex64."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(config, head_dim))
    return torch.polar(torch.full_like(angles, config.attention_factor), angles)
