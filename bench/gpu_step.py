"""What a round costs on this GPU: `python -m bench.gpu_step`, random weights of a known shape.

For each number of sequences, rows and context: the graph of the whole round (median and spread of
replays), attention alone, what the host needs to launch it and to read its tokens, and the floor
that this card's own copy bandwidth sets. Nothing of the text matters here, so weights are random.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.gpu_timing import copy_bandwidth, device_ms, graph_of, paired_ms
from kernels.gpu.verify_attention import verify_attention
from shared.engine.config import ModelConfig
from shared.engine.following import Follow
from shared.engine.gpu.cache import GpuCache
from shared.engine.gpu.decoder import GpuDecoder
from shared.engine.gpu.following import GpuFollower
from shared.engine.gpu.limits import GRAPH_ROWS, GpuLimits
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.gpu.weights import GpuLayerWeights, GpuWeights
from shared.engine.rope import RopeConfig
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams

BLOCK_SIZE = 64
SHAPES = {
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128, 128_256),
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 64, 128_256),
}
FOLLOWING_ROUNDS = 50
# Sequences, rows of each, tokens of context.
ROUNDS = (
    *((1, 1, 1024), (1, 5, 1024), (1, 8, 1024), (8, 1, 1024), (8, 5, 1024), (32, 1, 1024)),
    *((32, 5, 1024), (64, 1, 1024), (64, 5, 1024), (1, 5, 8192), (8, 5, 8192)),
)


def model_config(shape: str, max_model_len: int) -> ModelConfig:
    """One of SHAPES."""
    hidden, inner, layers, heads, kv_heads, head_dim, vocab = SHAPES[shape]
    return ModelConfig(
        model_type="llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_model_len=max_model_len,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500_000.0),
        windows=(None,) * layers,
        eos_token_ids=(),
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
        is_embedding_tied=False,
    )


def random_weights(config: ModelConfig, device: torch.device) -> GpuWeights:
    """Normal numbers of a scale that keeps activations finite."""

    def matrix(num_out: int, num_in: int) -> torch.Tensor:
        weight = torch.empty(num_out, num_in, dtype=torch.bfloat16, device=device)
        return weight.normal_(std=num_in**-0.5)

    def ones() -> torch.Tensor:
        return torch.ones(config.hidden_size, dtype=torch.bfloat16, device=device)

    hidden, inner = config.hidden_size, config.intermediate_size
    layout = config.layout
    layers = tuple(
        GpuLayerWeights(
            attention_norm=ones(),
            qkv=matrix(layout.num_all * layout.head_dim, hidden),
            qkv_bias=None,
            qk_norm=None,
            output=matrix(hidden, layout.num_heads * layout.head_dim),
            output_bias=None,
            mlp_norm=ones(),
            gate_up=matrix(2 * inner, hidden),
            gate_up_bias=None,
            down=matrix(hidden, inner),
            down_bias=None,
        )
        for _ in range(config.num_layers)
    )
    return GpuWeights(
        embedding=matrix(config.vocab_size, hidden),
        layers=layers,
        final_norm=ones(),
        lm_head=matrix(config.vocab_size, hidden),
    )


class Bench:
    """One model, its rounds and its floor."""

    def __init__(
        self,
        shape: str,
        device: torch.device,
        *,
        is_batch_invariant: bool = False,
        cache_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        context = max(tokens + rows for _, rows, tokens in ROUNDS) + BLOCK_SIZE
        self.config = model_config(shape, context)
        most = max(count * (tokens + rows + BLOCK_SIZE) for count, rows, tokens in ROUNDS)
        self.num_blocks = -(-most // BLOCK_SIZE) + 1
        self.weights = random_weights(self.config, device)
        self.cache = GpuCache(
            self.config,
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            dtype=cache_dtype,
            device=device,
        )
        numbers = torch.empty(self.cache.layers[0][0].shape, dtype=torch.bfloat16, device=device)
        for keys, values in self.cache.layers:
            keys.copy_(numbers.normal_())
            values.copy_(numbers.normal_())
        limits = GpuLimits(
            num_blocks=self.num_blocks,
            block_size=BLOCK_SIZE,
            max_rows=512,
            max_sequences=64,
            max_model_len=context,
            max_graph_rows=512,
            is_batch_invariant=is_batch_invariant,
        )
        self.decoder = GpuDecoder(
            self.config, self.weights, self.cache, is_batch_invariant=is_batch_invariant
        )
        self.runner = GpuRunner(self.config, self.decoder, self.cache, limits)
        self.sampler = GpuSampler(max_rows=512, vocab_size=self.config.vocab_size, device=device)
        self.follower = GpuFollower(self.runner, self.sampler)

    def spans(self, count: int, rows: int, tokens: int) -> list[Span]:
        """`count` sequences of `tokens` in the cache, `rows` new ones each."""
        size = -(-(tokens + rows) // BLOCK_SIZE)
        return [
            Span([7] * rows, tokens, list(range(index * size, (index + 1) * size)), rows)
            for index in range(count)
        ]

    def requests(self, count: int, rows: int, temperature: float) -> list[VerifyRequest]:
        """What the sampler is asked for them: drafts that are never right."""
        params = SamplingParams(seed=1, temperature=temperature)
        return [VerifyRequest(params, [1] * 8, 4, [5] * (rows - 1)) for _ in range(count)]

    def floor_ms(self, count: int, tokens: int, bandwidth: float) -> float:
        """All weights but the embedding once, and the context's keys and values."""
        weights = self.weights
        tensors = [
            weights.lm_head,
            *(
                t
                for layer in weights.layers
                for t in (layer.qkv, layer.output, layer.gate_up, layer.down)
            ),
        ]
        layout, config = self.config.layout, self.config
        row_bytes = 2 * self.cache.layers[0][0].itemsize * layout.num_kv_heads * layout.head_dim
        context = row_bytes * config.num_layers * count * tokens
        return 1e3 * (sum(tensor.nbytes for tensor in tensors) + context) / bandwidth

    def attention_ms(self, spans: Sequence[Span]) -> list[float]:
        """The attention of all layers, in one graph, with the work already listed."""
        runner, layout = self.runner, self.config.layout
        with torch.inference_mode():
            shape = runner._stage(spans)  # noqa: SLF001 - the bench looks inside
            tiling = runner._limits.tiling_of(shape, layout.group_size)  # noqa: SLF001
            work = runner._works[tiling]  # noqa: SLF001
            self.decoder.forward(runner._buffers, work, num_rows=shape.num_rows)  # noqa: SLF001
            qkv = torch.randn(
                shape.num_rows, layout.num_all * layout.head_dim, device="cuda"
            ).bfloat16()
            out = qkv.new_empty(shape.num_rows, layout.num_heads * layout.head_dim)

            def launch() -> None:
                for keys, values in self.cache.layers:
                    verify_attention(
                        qkv, keys, values, runner._buffers.attention, work, layout,  # noqa: SLF001
                        scale=layout.head_dim**-0.5, window=None, soft_cap=None, tree_bits=None,
                        out=out,
                    )  # fmt: skip

            return device_ms(graph_of(launch).replay)

    def measure(self, count: int, rows: int, tokens: int, bandwidth: float) -> dict[str, Any]:
        """One line of the table."""
        spans = self.spans(count, rows, tokens)
        attention = statistics.median(self.attention_ms(spans))
        steps, greedy = self.round_ms(spans, count, rows, 0.0)
        _, sampled = self.round_ms(spans, count, rows, 0.7)
        following = self.following_ms(spans, count) if rows == 1 else None
        choice = self.choice_ms(spans, self.requests(count, rows, 0.7))
        layout = self.config.layout
        element_bytes = self.cache.layers[0][0].itemsize
        row_bytes = 2 * element_bytes * layout.num_kv_heads * layout.head_dim
        kv_bytes = row_bytes * (tokens + rows) * count
        return {
            "sequences": count, "rows": rows, "context": tokens,
            "step_ms": statistics.median(steps), "step_low_ms": steps[0], "step_high_ms": steps[-1],
            "floor_ms": self.floor_ms(count, tokens, bandwidth),
            "attention_ms": attention,
            "attention_gb_s": kv_bytes * self.config.num_layers / attention / 1e6,
            "round_greedy_ms": statistics.median(greedy),
            "round_sampled_ms": statistics.median(sampled),
            "following_ms": following,
            "choice_ms": statistics.median(choice),
        }  # fmt: skip

    def round_ms(
        self, spans: Sequence[Span], count: int, rows: int, temperature: float
    ) -> tuple[list[float], list[float]]:
        """The pass on the device; and staging, pass, sampler and its answer, by the clock."""
        requests = self.requests(count, rows, temperature)
        return paired_ms(
            lambda: self.runner.run(spans),
            lambda: self.sampler.verify(self.runner.run(spans), requests),
        )

    def choice_ms(self, spans: Sequence[Span], requests: Sequence[VerifyRequest]) -> list[float]:
        """The sampler on the device."""
        logits = self.runner.run(spans)
        self.sampler.stage(requests)
        return device_ms(lambda: self.sampler.launch(logits))

    def following_ms(self, spans: Sequence[Span], count: int) -> float:
        """A round of plain rows, each begun before the one before is read: the mean of many."""
        requests = self.requests(count, 1, 0.7)
        follows = [Follow(row, 0) for row in range(count)]
        collect = self.sampler.begin_verify(self.runner.run(spans), requests)
        for number in range(FOLLOWING_ROUNDS + 1):
            behind = self.follower.begin(spans, requests, follows)
            collect()
            collect = behind
            if not number:
                started = time.perf_counter()
        seconds = time.perf_counter() - started
        collect()
        return 1e3 * seconds / FOLLOWING_ROUNDS


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one shape and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--fp8-cache", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    device = torch.device("cuda")
    bandwidth = copy_bandwidth(device)
    bench = Bench(
        options.shape,
        device,
        is_batch_invariant=options.batch_invariant,
        cache_dtype=torch.float8_e4m3fn if options.fp8_cache else torch.bfloat16,
    )
    started = time.perf_counter()
    bench.runner.capture(lambda _event, _done, _total: None)
    assert bench.runner.graph_logits is not None
    bench.sampler.capture(bench.runner.graph_logits, GRAPH_ROWS)
    print(
        f"copy {bandwidth / 1e9:.0f} GB/s; graphs captured in {time.perf_counter() - started:.1f} s"
    )
    lines = []
    for count, rows, tokens in ROUNDS:
        line = bench.measure(count, rows, tokens, bandwidth)
        lines.append(line)
        print(
            "  ".join(
                f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()
            ),
            flush=True,
        )
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "copy_gb_s": bandwidth / 1e9,
        **{package: version(package) for package in ("torch", "triton")},
        "cuda": torch.version.cuda,
        "command": f"python -m bench.gpu_step --shape {options.shape}"
        + " --batch-invariant" * options.batch_invariant
        + " --fp8-cache" * options.fp8_cache,
    }
    options.out.write_text(json.dumps({"machine": machine, "rounds": lines}, indent=1))


if __name__ == "__main__":
    main()
