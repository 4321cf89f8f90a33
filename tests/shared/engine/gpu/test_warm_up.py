"""What is done before readiness: no round waits for a compiler, and none sees a trace of it."""

import importlib
import pkgutil
import random
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.jit import JITFunction

import kernels.gpu
from shared.config.model import Dtype
from shared.engine.following import Follow
from shared.engine.gpu.following import ready_follower
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.loading import load_on_gpu
from shared.engine.gpu.ranking import GpuRanker
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.sampling import Row, VerifyRequest
from shared.engine.settings import ModelSettings
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams
from tests.checkpoints import MAX_LEN, random_tokens, save_checkpoint
from tests.shared.engine.gpu.runners import LIMITS, ROWS_OF_NOBODY, load, on_gpus

pytestmark = ROWS_OF_NOBODY

MODEL = Path(__file__).parents[4] / "models" / "storyteller"
BLOCK_SIZE, NUM_SEQUENCES, MAX_ROWS, CONTEXT = 16, 8, 128, 320
NUM_RANKS = 3
PARAMS = [
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, temperature=0.7),
    SamplingParams(seed=3, temperature=0.7, top_k=20, top_p=0.9),
    SamplingParams(seed=4, temperature=0.7, min_p=0.1),
    SamplingParams(seed=5, temperature=0.7, presence_penalty=0.5),
    SamplingParams(seed=6, temperature=0.7, logit_bias=((5, 1.0),), top_p=0.8),
]


def test_warming_up_leaves_no_trace(tmp_path: Path, device: str) -> None:
    """The cache is empty, and rounds give the same bits as without."""
    save_checkpoint(tmp_path, on_gpus("qwen3"))
    limits = GpuLimits(LIMITS.num_blocks, LIMITS.block_size, 6, 4, MAX_LEN, max_graph_rows=4)
    tokens = random_tokens(8)
    logits = []
    for is_warm in (False, True):
        runner = load(tmp_path, device, limits)
        if is_warm:
            eager = runner.warm_up()
            assert eager.dtype == torch.float32
            assert all(not cache.any() for layer in runner._cache.layers for cache in layer)
        runner.run([Span(tokens[:4], 0, [0, 3], 0)])
        logits.append(runner.run([Span(tokens[4:8], 4, [0, 3], 2)]).clone())
    assert torch.equal(*logits)


def forget_kernels() -> None:
    """As in a process that has just started: what other tests compiled is not there."""
    for module in pkgutil.iter_modules(kernels.gpu.__path__, "kernels.gpu."):
        for kernel in vars(importlib.import_module(module.name)).values():
            if isinstance(kernel, JITFunction):
                kernel.device_caches.clear()


class Traffic:
    """Sequences that grow by rounds of all kinds: chunks, decodes, guesses, forks."""

    def __init__(self, runner: GpuRunner, sampler: GpuSampler, *, is_drafter: bool) -> None:
        self._runner = runner
        self._sampler = sampler
        self._ranker = GpuRanker(runner, sampler) if is_drafter else None
        self._follower = None if is_drafter else ready_follower(runner, sampler)
        if self._ranker is not None:
            self._ranker.warm_up(NUM_RANKS)
        self._rng = random.Random(3)
        self._lens = [0] * NUM_SEQUENCES
        size = CONTEXT // BLOCK_SIZE
        self._tables = [
            list(range(index * size, (index + 1) * size)) for index in range(NUM_SEQUENCES)
        ]

    def prefill(self, num_rows: int, num_logits: int, num_sequences: int) -> None:
        """Chunks, of a prompt's end or not."""
        for index in range(num_sequences):
            self._lens[index] = 0
        self._round([(index, num_rows) for index in range(num_sequences)], num_logits)

    def verify(self, num_rows: int, num_sequences: int) -> None:
        """Confirmed tokens and guesses, and one sequence that starts a fork."""
        self._runner.copy_blocks([(0, 19), (1, 39)][: 1 + num_rows % 2])
        self._round([(index, num_rows) for index in range(num_sequences)], num_rows)

    def follow(self, num_sequences: int) -> None:
        """Two rounds behind one that has not been collected."""
        if self._follower is None:
            return
        self._round([(index, 2) for index in range(num_sequences)], 2)
        follows = [Follow(2 * index, 1) for index in range(num_sequences)]
        for _ in range(2):
            starts = self._lens[:num_sequences]
            spans = [Span([0], starts[i], self._tables[i], 1) for i in range(num_sequences)]
            requests = [
                VerifyRequest(self._rng.choice(PARAMS[:4]), [1] * start, 1, ()) for start in starts
            ]
            collect = self._follower.begin(spans, requests, follows)
            follows = [Follow(index, 0) for index in range(num_sequences)]
            self._lens = [length + 1 for length in self._lens]
        collect()

    def mixed(self) -> None:
        """A chunk beside decodes."""
        self._lens[0] = 0
        self._round([(0, 20), (1, 1), (2, 1)], 1)

    def _round(self, rows: list[tuple[int, int]], num_logits: int) -> None:
        spans, requests = [], []
        for index, num_rows in rows:
            start = self._lens[index]
            if start + num_rows > CONTEXT - 1:
                start = self._lens[index] = 1
            tokens = [self._rng.randrange(4_096) for _ in range(num_rows)]
            spans.append(Span(tokens, start, self._tables[index], min(num_logits, num_rows)))
            self._lens[index] += num_rows
            if num_logits:
                drafts = tokens[1:] if num_logits == num_rows else []
                params = self._rng.choice(PARAMS)
                requests.append(VerifyRequest(params, [1] * (start + 1), 1, drafts))
        logits = self._runner.run(spans)
        if self._ranker is None:
            self._sampler.verify(logits, requests)
        elif num_logits in {0, 1}:
            ranked = [Row(one.params, one.token_ids, 1) for one in requests]
            self._sampler.rank(logits, ranked, NUM_RANKS)


@pytest.mark.gpu
@pytest.mark.parametrize("worker", ["target", "batch-invariant target", "drafter"])
def test_no_round_waits_for_a_compiler(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds: every variant of every kernel is there before the worker is ready."""
    forget_kernels()
    settings = ModelSettings(
        device="cuda",
        dtype=Dtype.BFLOAT16,
        block_size=BLOCK_SIZE,
        cache_tokens=NUM_SEQUENCES * CONTEXT,
        max_model_len=CONTEXT,
        max_rows=MAX_ROWS,
        max_sequences=NUM_SEQUENCES,
        memory_share=0.5,
        is_batch_invariant=worker == "batch-invariant target",
        threads=1,
        num_ranks=NUM_RANKS if worker == "drafter" else 0,
    )
    runner, sampler, _ = load_on_gpu(MODEL, settings, lambda *_: None)
    traffic = Traffic(runner, sampler, is_drafter=settings.is_drafter)
    compiled: list[str] = []

    def note(**kernel: object) -> None:
        compiled.append(str(kernel["repr"]))

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    for num_rows in (1, 2, 3, 9, 16, 17, 33, 100, 128):
        for num_logits in (0, 1):
            traffic.prefill(num_rows, num_logits, num_sequences=1)
            traffic.prefill(min(num_rows, 16), num_logits, num_sequences=NUM_SEQUENCES)
    for num_rows in (1, 2, 5, 8, 16):
        for num_sequences in (1, 2, 3, NUM_SEQUENCES):
            traffic.verify(num_rows, num_sequences)
    for num_sequences in (1, 2, 3, NUM_SEQUENCES):
        traffic.follow(num_sequences)
    for _ in range(20):
        traffic.mixed()
    assert compiled == []
