"""Attention over the paged cache against the copy bandwidth: `python -m bench.gpu_attention`.

Llama-3-8B's heads, bf16 (with `--fp8` a cache of 8 bits), several layers' caches in turn so that
none is found in the second-level cache. Prints gigabytes of keys and values a second, merging
included.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu_timing import copy_bandwidth, device_ms, graph_of
from kernels.gpu.attention_work import AttentionBatch, AttentionWork, max_items, plan_attention_work
from kernels.gpu.verify_attention import verify_attention
from kernels.head_layout import HeadLayout
from shared.engine.gpu.limits import DECODE, FEW_DECODE, FEW_VERIFY, VERIFY, Tiling

LAYOUT = HeadLayout(32, 8, 128)
NUM_LAYERS = 8
SHAPES = (  # sequences, rows of each, tokens of context
    (1, 1, 1024), (1, 5, 1024), (8, 1, 1024), (8, 5, 1024), (32, 5, 1024), (64, 5, 1024),
    (64, 1, 1024), (1, 5, 32_768), (8, 5, 8192),
)  # fmt: skip
BLOCK_SIZES = (16, 64)
TILINGS = (DECODE, VERIFY, FEW_DECODE, FEW_VERIFY)


def measure(
    shape: tuple[int, int, int],
    block_size: int,
    tiling: Tiling,
    cache_dtype: torch.dtype,
) -> float:
    """Gigabytes of context a second."""
    count, rows, tokens = shape
    each = -(-(tokens + rows) // block_size)
    device = torch.device("cuda")
    caches = [
        torch.randn(
            2, count * each, LAYOUT.num_kv_heads, block_size, LAYOUT.head_dim, device=device
        )
        .to(cache_dtype)
        .unbind()
        for _ in range(NUM_LAYERS)
    ]
    batch = AttentionBatch(
        query_starts=torch.arange(count + 1, dtype=torch.int32, device=device) * rows,
        context_lens=torch.full((count,), tokens + rows, dtype=torch.int32, device=device),
        block_tables=torch.randperm(count * each, device=device).int().view(count, each),
        positions=torch.arange(tokens, tokens + rows, device=device).int().repeat(count),
    )
    items = max_items(
        [(rows, tokens + rows)] * count,
        group_size=LAYOUT.group_size,
        block_m=tiling.block_m,
        chunk_len=tiling.chunk_len,
    )
    work = AttentionWork.allocate(
        items, rows * count, LAYOUT, tiling.block_m, device,
        chunk_len=tiling.chunk_len, merges_apart=tiling.merges_apart,
    )  # fmt: skip
    plan_attention_work(batch, work)
    qkv = torch.randn(rows * count, LAYOUT.num_all * LAYOUT.head_dim, device=device).bfloat16()
    out = qkv.new_empty(rows * count, LAYOUT.num_heads * LAYOUT.head_dim)

    def run() -> None:
        for keys, values in caches:
            verify_attention(
                qkv, keys, values, batch, work, LAYOUT, scale=LAYOUT.head_dim**-0.5, out=out
            )

    milliseconds = statistics.median(device_ms(graph_of(run).replay, 15))
    numbers = NUM_LAYERS * count * (tokens + rows) * 2 * LAYOUT.num_kv_heads * LAYOUT.head_dim
    return numbers * cache_dtype.itemsize / milliseconds / 1e6


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a shape, and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fp8", action="store_true", help="keys and values in float8 e4m3")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    cache_dtype = torch.float8_e4m3fn if options.fp8 else torch.bfloat16
    bandwidth = copy_bandwidth(torch.device("cuda")) / 1e9
    lines = []
    for shape in SHAPES:
        found = {
            f"block {size} chunk {tiling.chunk_len} tile {tiling.block_m}": measure(
                shape, size, tiling, cache_dtype
            )
            for size, tiling in itertools.product(BLOCK_SIZES, TILINGS)
        }
        lines.append({"shape": shape, "gb_s": found, "copy_gb_s": bandwidth})
        text = "  ".join(f"{name}: {speed:.0f}" for name, speed in found.items())
        print(f"{shape}  {text}  (copy {bandwidth:.0f})", flush=True)
    options.out.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
