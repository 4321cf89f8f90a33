"""On a GPU in bfloat16: a request's tokens are its own, whoever runs beside it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from shared.engine.blocks import BlockPool, BlockTable
from shared.engine.gpu.limits import GpuLimits
from shared.engine.gpu.runner import GpuRunner
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span
from shared.engine.text import TextTokenizer
from shared.protocol.sampling import SamplingParams

MODEL = Path(__file__).parents[4] / "models" / "storyteller"
NUM_REQUESTS, NUM_TOKENS = 240, 40
NUM_BLOCKS, BLOCK_SIZE, MAX_SEQUENCES = 1_024, 16, 32
PROMPTS = ("a frog", "a dragon and a kite", "two sad robots", "a bird who lost her hat")


@dataclass
class Request:
    """One sequence on its way."""

    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)  # prompt and output
    table: BlockTable | None = None
    num_computed: int = 0

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    def interrupt(self) -> None:
        """Lose the cache, as after a preemption or the death of a worker."""
        if self.table is not None:
            self.table.release()
        self.table, self.num_computed = None, 0


class Company:
    """A model that decodes whoever is there, in rounds."""

    def __init__(self, cache_dtype: torch.dtype) -> None:
        limits = GpuLimits(
            NUM_BLOCKS, BLOCK_SIZE, max_rows=256, max_sequences=MAX_SEQUENCES, max_model_len=1_024,
            is_batch_invariant=True,
        )  # fmt: skip
        device = torch.device("cuda")
        self.runner = GpuRunner.load(
            MODEL, limits, device=device, dtype=torch.bfloat16, cache_dtype=cache_dtype,
            progress=lambda *_: None,
        )  # fmt: skip
        vocab_size = self.runner.config.vocab_size
        self.sampler = GpuSampler(max_rows=256, vocab_size=vocab_size, device=device)
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)

    def round(self, rows: Sequence[tuple[Request, list[int], int]]) -> None:
        """One pass: per request its guesses, and how much of a prompt to compute at most."""
        spans, requests, sampled = [], [], []
        for request, drafts, chunk in rows:
            if request.table is None:
                request.table = self.pool.open(request.tokens)
                request.num_computed = request.table.num_cached_tokens
            start, end = request.num_computed, len(request.tokens)
            is_last = end - start <= chunk
            tokens = request.tokens[start : end if is_last else start + chunk]
            tokens = [*tokens, *drafts] if is_last else tokens
            copy = request.table.extend(start + len(tokens))
            if copy is not None:
                self.runner.copy_blocks([copy])
            num_logits = 1 + len(drafts) if is_last else 0
            spans.append(Span(tokens, start, list(request.table.block_ids), num_logits))
            request.num_computed = min(start + len(tokens), end)
            if is_last:
                sampled.append(request)
                requests.append(
                    VerifyRequest(request.params, request.tokens, len(request.prompt), drafts)
                )
        logits = self.runner.run(spans)
        confirmed = self.sampler.verify(logits, requests) if requests else []
        for request, tokens in zip(sampled, confirmed, strict=True):
            request.tokens = request.tokens + tokens
            request.num_computed = len(request.tokens) - 1
            assert request.table is not None
            request.table.roll_back(request.num_computed)


def make_requests() -> list[Request]:
    tokenizer = TextTokenizer.load(MODEL)
    requests = []
    for index in range(NUM_REQUESTS):
        text = f"Tell me a story about {PROMPTS[index % len(PROMPTS)]}."
        prompt = tokenizer.encode_chat([("user", text)] * (1 + index % 5))
        temperature = (0.0, 0.7, 1.0)[index % 3]
        params = SamplingParams(seed=index, temperature=temperature)
        requests.append(Request(list(prompt), params, list(prompt)))
    return requests


@pytest.mark.gpu
@pytest.mark.timeout(600)  # ten thousand rounds, a token each
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_requests_tokens_do_not_depend_on_its_company(cache_dtype: torch.dtype) -> None:
    """240 requests: each alone and undisturbed, then in random company, guessed for and broken."""
    company = Company(cache_dtype)
    expected = []
    for request in make_requests():
        while len(request.output) < NUM_TOKENS:
            company.round([(request, [], 1_024)])
        expected.append(request.output[:NUM_TOKENS])
        request.interrupt()
    rng = random.Random(7)
    waiting, done = list(enumerate(make_requests())), 0
    running: list[tuple[int, Request]] = []
    rng.shuffle(waiting)
    while waiting or running:
        while waiting and len(running) < rng.randint(1, MAX_SEQUENCES):
            running.append(waiting.pop())
        rows = []
        for index, request in rng.sample(running, rng.randint(1, len(running))):
            if rng.random() < 0.02:
                request.interrupt()
            rest = expected[index][len(request.output) :]
            drafts = [t if rng.random() < 0.8 else rng.randrange(4_096) for t in rest[:7]]
            drafts = drafts[: rng.randint(0, 7)]
            rows.append((request, drafts, rng.choice((5, 40, 200))))
            if sum(len(request.tokens) for request, _, _ in rows) > 4_000:
                break
        company.round(rows)
        for pair in [pair for pair in running if len(pair[1].output) >= NUM_TOKENS]:
            running.remove(pair)
            index, request = pair
            request.interrupt()
            assert request.output[:NUM_TOKENS] == expected[index], index
            done += 1
    assert done == NUM_REQUESTS
