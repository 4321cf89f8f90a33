"""Tiles of `kernels.gpu.skinny_linear` against cuBLAS: `python -m bench.gpu_linear`.

Each multiplication of a layer, over several weights in turn so that none is found in the cache, as
graph replays. Prints microseconds and the share of the copy bandwidth; this is where
the table in `tiles_of` comes from.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from triton.runtime.errors import OutOfResources

from bench.gpu_timing import copy_bandwidth, device_ms, graph_of
from kernels.gpu.skinny_linear import Tiles, skinny_linear

WEIGHT_BYTES = 200 << 20  # in turn; together several times the second-level cache
MATRICES = {  # outputs, inputs
    "llama-3-8b": {
        "qkv": (6144, 4096),
        "output": (4096, 4096),
        "gate_up": (28_672, 4096),
        "down": (4096, 14_336),
    },
    "llama-3.2-1b": {
        "qkv": (3072, 2048),
        "output": (2048, 2048),
        "gate_up": (16_384, 2048),
        "down": (2048, 8192),
    },
}
CANDIDATES = (
    Tiles(16, 256, 2, 4), Tiles(16, 256, 2, 6), Tiles(16, 512, 2, 3), Tiles(16, 512, 2, 4),
    Tiles(16, 128, 2, 8), Tiles(16, 256, 1, 4), Tiles(32, 128, 4, 5), Tiles(32, 256, 4, 3),
    Tiles(32, 256, 2, 4), Tiles(32, 128, 2, 6), Tiles(16, 1024, 4, 3), Tiles(64, 64, 4, 6),
)  # fmt: skip
ROWS = (1, 5, 16)


def time_us(apply: Callable[[Tensor], object], weights: Sequence[Tensor]) -> float:
    """Microseconds a weight."""

    def run() -> None:
        for weight in weights:
            apply(weight)

    return 1e3 * statistics.median(device_ms(graph_of(run).replay, 15)) / len(weights)


def measure(x: Tensor, weights: Sequence[Tensor]) -> dict[str, float]:
    """Microseconds by cuBLAS, and by each candidate with a residual added."""
    times = {"cublas": time_us(partial(F.linear, x), weights)}
    residual = x.new_zeros(len(x), len(weights[0]))
    for tiles in CANDIDATES:
        run = partial(skinny_linear, x, residual=residual, out=residual, tiles=tiles)
        try:
            times["/".join(map(str, tiles))] = time_us(run, weights)
        except OutOfResources:
            continue  # too much shared memory: no result
    return times


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line a matrix and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=MATRICES, default="llama-3-8b")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    device = torch.device("cuda")
    bandwidth = copy_bandwidth(device)
    lines = []
    for name, (num_out, num_in) in MATRICES[options.shape].items():
        weights = [
            torch.empty(num_out, num_in, dtype=torch.bfloat16, device=device).normal_(std=0.02)
            for _ in range(max(6, WEIGHT_BYTES // (2 * num_out * num_in)))
        ]
        for rows in ROWS:
            x = torch.randn(rows, num_in, device=device).bfloat16()
            times = measure(x, weights)
            floor_us = weights[0].nbytes / bandwidth * 1e6
            lines.append({"matrix": name, "rows": rows, "floor_us": floor_us, "us": times})
            ranked = sorted(times.items(), key=itemgetter(1))[:3]
            best = "  ".join(f"{tiles} {us:.1f}" for tiles, us in ranked)
            print(
                f"{name:8s} {rows:2d} rows  floor {floor_us:6.1f}  "
                f"cublas {times['cublas']:6.1f}  {best}",
                flush=True,
            )
        del weights
    options.out.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
