"""Grow a small Llama into any larger Llama shape that computes the same function.

    python -m bench.expand --source models/storyteller --out DIR --shape llama-3-8b
    python -m bench.expand --source models/storyteller-draft --out DIR --shape llama-3.2-1b

The result costs what a model of its shape costs and says what the source says, so speed and
acceptance can be measured together, by us and by peers. In exact arithmetic, for ids of the source,
every logit is the source's. With H, D, V hidden size, head size and vocabulary of the source, and
H', D', V' of the result:

- Hidden state: y = [x, a, 0 ...]. Nothing writes behind x, so what reads there may be random. The
  mean square of a norm becomes (|x|^2 + a^2) / H', so norm weights are times sqrt(H / H') and
  eps' = (eps H - a^2) / H'. The constant a (0 where V' = V) hides behind the epsilon of the source:
  a^2 <= eps H / 2.
- Vocabulary: only the rows of new ids in the head read a, negatively. Final norm and head are
  scaled by bounds on the source's weights, so that for every input all new logits lie at least
  100 below all old ones: no effect on top-k, and on sampling at T <= 2 below 1e-16. In practice
  they lie 1e4 and more below: finite in bfloat16, but a head that answers in float16 gives -inf.
- Heads: scores are divided by sqrt(D') instead of sqrt(D), so queries are times sqrt(D' / D).
  D' = m D keeps frequencies: theta^(-2i / D) = theta^(-2 i m / D'), so pair i becomes pair i m.
  In new pairs the keys are random and the queries 0. Old heads keep their key heads, which are
  repeated where the result has fewer queries a key head. New heads are random; nothing reads them.
- MLP: the up-projection of new units reads only the zeros of y, so their down-projection may be
  random. In new layers all units are such units, and nothing reads the heads.

Zero are thus only the output projection but for the old heads (a 15th of an 8B model), strips of
the width of x elsewhere, and most activations. What does not hold: new ids, which no tokenizer of
the source produces, mean nothing; beyond the source's positions the source is untrained, so that
`--positions` buys room, not sense; and 16 bits round otherwise than the source's float16.

Measured (our engine on a CPU, which computes in float32; 960 tokens of the source's own text on six
prompts; grown about twofold in all sizes), agreement with the source at temperature 0 / 0.7 with
the same noise, and the largest and mean difference of a logit:

    storyteller        float32  1.000 / 1.000   2.3e-5, 1.5e-6
                       bfloat16 1.000 / 1.000   0.035, 0.0042
    storyteller-draft  float32  1.000 / 1.000   2.6e-5, 2.7e-6
                       bfloat16 0.999 / 0.994   0.18, 0.019

That is the rounding of weights; computing in bfloat16 adds its own. Random numbers are one tape of
uniform ones laid end to end, of prime length, so that rows do not repeat in step.
"""

import argparse
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench.expansion import Expansion, Tape, mask_constant
from shared.common.errors import ConfigError
from shared.engine.checkpoint import INDEX_FILE, SINGLE_FILE, expected_shapes
from shared.engine.config import ModelConfig
from shared.engine.fields import Fields
from shared.engine.rope import inverse_frequencies, rope_config

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    positions: int  # what the result says that it can hold; the function does not change


SHAPES = {
    "llama-3-8b": Shape(4_096, 32, 32, 8, 128, 14_336, 128_256, 8_192),
    "llama-3.2-1b": Shape(2_048, 16, 32, 8, 64, 8_192, 128_256, 8_192),
}


def expand(
    source_dir: Path,
    out_dir: Path,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = 2 * GIB,
    seed: int = 0,
) -> None:
    """Write `out_dir`, which must not exist: config, tokenizer, safetensors of `shape`.

    At most one shard (or one tensor, where that is larger) and the source are in memory.

    Raises:
        ConfigError: the source is no plain Llama, `shape` has no room for it, or `out_dir` exists.
    """
    source = ModelConfig.from_directory(source_dir)
    config = _config(source_dir, source, shape, dtype)
    try:
        out_dir.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{out_dir}: exists; allowed: a directory to be made") from error
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in sorted(source_dir.iterdir()):
        is_weights = ".safetensors" in path.name or path.name == "config.json"
        if path.is_file() and not is_weights:
            shutil.copyfile(path, out_dir / path.name)
    target = ModelConfig.from_directory(out_dir)
    tape, expansion = Tape(seed, dtype), Expansion(source_dir, source, target)
    shards = list(_shards(expected_shapes(target), dtype.itemsize, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for index, shapes in enumerate(shards, start=1):
        is_one = len(shards) == 1
        file = SINGLE_FILE if is_one else f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors = {name: expansion.tensor(name, shapes[name], tape, dtype) for name in shapes}
        save_file(tensors, out_dir / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        print(f"{out_dir / file}: {index} of {len(shards)}", flush=True)
    if len(shards) > 1:
        total = sum(map(math.prod, expected_shapes(target).values())) * dtype.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out_dir / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(
    source_dir: Path, source: ModelConfig, shape: Shape, dtype: torch.dtype
) -> dict[str, Any]:
    """config.json of the result."""
    _check_room(source_dir, source, shape)
    constant = mask_constant(source) if shape.vocab_size > source.vocab_size else 0.0
    eps = (source.rms_norm_eps * source.hidden_size - constant**2) / shape.hidden_size
    config: dict[str, Any] = json.loads((source_dir / "config.json").read_bytes())
    config.pop("torch_dtype", None)
    config |= {
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": eps,
        "tie_word_embeddings": False,
    }
    _check_frequencies(source, Fields(source_dir / "config.json", config), shape.head_dim)
    return config


def _check_room(source_dir: Path, source: ModelConfig, shape: Shape) -> None:
    if source.model_type != "llama" or source.has_qkv_bias or source.has_mlp_bias:
        raise ConfigError(f"{source_dir}: is no Llama without biases, the only kind that can grow")
    if shape.heads % shape.kv_heads:
        raise ConfigError(f"kv_heads is {shape.kv_heads}; allowed: a divisor of {shape.heads}")
    if shape.hidden_size % shape.heads:  # transformers asks for it
        raise ConfigError(
            f"hidden_size is {shape.hidden_size}; allowed: multiples of heads ({shape.heads})"
        )
    if shape.head_dim % source.head_dim:
        raise ConfigError(f"head_dim is {shape.head_dim}; allowed: multiples of {source.head_dim}")
    copies = -(-source.layout.group_size // (shape.heads // shape.kv_heads))
    is_padded = shape.vocab_size > source.vocab_size
    for name, value, least in (
        ("hidden_size", shape.hidden_size, source.hidden_size + is_padded),
        ("layers", shape.layers, source.num_layers),
        ("kv_heads", shape.kv_heads, source.num_kv_heads * copies),
        ("intermediate_size", shape.intermediate_size, source.intermediate_size),
        ("vocab_size", shape.vocab_size, source.vocab_size),
        ("positions", shape.positions, 1),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; allowed: at least {least} for {source_dir}")


def _check_frequencies(source: ModelConfig, fields: Fields, head_dim: int) -> None:
    """YaRN rounds to pairs, and some kinds read the number of positions: those may not carry over.

    Raises:
        ConfigError: old pairs would turn at another speed.
    """
    old = inverse_frequencies(source.rope, source.head_dim)
    new = inverse_frequencies(rope_config(fields), head_dim)[:: head_dim // source.head_dim]
    if not torch.allclose(old, new, rtol=1e-6, atol=0):
        raise ConfigError("rotary scaling of the source depends on a size that grows: keep it")


def _shards(
    shapes: dict[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors in order, as many a shard as fit; at least one."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * itemsize
        if shard and size + num_bytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += num_bytes
    yield shard


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags and expand. Sizes that are not named are the shape's, or else the source's."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.expand",
        description="Grow a small Llama into a larger shape that computes the same function.",
    )
    parser.add_argument("--source", type=Path, required=True, help="a Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="a directory to be made")
    parser.add_argument("--shape", choices=SHAPES, help="sizes of a known model")
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--max-shard-gib", type=float, default=2.0, help="default 2")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    options = parser.parse_args(argv)
    try:
        shape = SHAPES.get(options.shape) or _shape_of(ModelConfig.from_directory(options.source))
        named = {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(Shape)
            if getattr(options, field.name) is not None
        }
        expand(
            options.source,
            options.out,
            dataclasses.replace(shape, **named),
            dtype=DTYPES[options.dtype],
            max_shard_bytes=int(options.max_shard_gib * GIB),
            seed=options.seed,
        )
    except ConfigError as error:
        parser.error(str(error))


def _shape_of(config: ModelConfig) -> Shape:
    return Shape(
        hidden_size=config.hidden_size,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        positions=config.max_model_len,
    )


if __name__ == "__main__":
    main()
