"""What the model costs here, measured before the first job; and the pass that any model survives.

Also warms the machine up: first passes allocate, load and compile.
"""

from collections.abc import Sequence

from shared.common.clock import Clock
from shared.engine.blocks import BlockPool, OutOfBlocks
from shared.engine.samplers import Sampler
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Runner, Span
from shared.protocol.sampling import SamplingParams
from target_worker.cost import Measured

_CONTEXT = 48  # tokens before the measured ones: a short prompt
_REPEATS = 7
_PARAMS = SamplingParams(seed=0, temperature=0.7)
_SHAPES = (  # (sequences, rows of each)
    *((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1), (4, 4), (8, 1), (8, 2), (16, 1), (16, 2)),
    *((32, 1), (64, 1)),
)


def profile(
    runner: Runner,
    sampler: Sampler,
    pool: BlockPool,
    clock: Clock,
    *,
    max_num_seqs: int,
    max_batched_tokens: int,
    max_model_len: int,
) -> list[Measured]:
    """Time rounds of several shapes: at least the smallest, at most what the limits allow.

    With the sampler: a GPU's pass is over when its tokens are known, not when it is launched.
    """
    limit = min(max_model_len, pool.num_free * pool.block_size)
    shapes = [
        (num_sequences, rows)
        for num_sequences, rows in _SHAPES
        if num_sequences <= max_num_seqs
        and num_sequences * rows <= max_batched_tokens
        and rows <= limit
    ]
    most = max(rows for _, rows in shapes)
    context = min(_CONTEXT, limit - most)
    table = pool.open([0])
    try:
        table.extend(context + most)
        blocks = list(table.block_ids)
        for start in range(0, context + 1, max_batched_tokens):
            end = min(context + 1, start + max_batched_tokens)
            runner.run([Span([0] * (end - start), start, blocks, 1)])
        return [
            _measure(
                runner, sampler, clock, [Span([0] * rows, context, blocks, rows)] * num_sequences
            )
            for num_sequences, rows in shapes
        ]
    finally:
        table.release()


def self_test(runner: Runner, sampler: Sampler, pool: BlockPool) -> None:
    """One token in a free block.

    Raises:
        Exception: whatever the model raises when it is broken.
    """
    table = pool.open([0])
    try:
        table.extend(1)
    except OutOfBlocks:
        return  # nothing can be said, so nothing is held against it
    try:
        logits = runner.run([Span([0], 0, list(table.block_ids), 1)])
        sampler.verify(logits, [VerifyRequest(_PARAMS, [0], 1, ())])
    finally:
        table.release()


def _measure(runner: Runner, sampler: Sampler, clock: Clock, spans: Sequence[Span]) -> Measured:
    requests = [
        VerifyRequest(_PARAMS, [0] * span.start, 1, [0] * (span.num_logits - 1)) for span in spans
    ]
    times = []
    for _ in range(_REPEATS):
        started_s = clock.monotonic_s()
        sampler.verify(runner.run(spans), requests)
        times.append(clock.monotonic_s() - started_s)
    num_rows = sum(len(span.token_ids) for span in spans)
    # The least: whatever else the machine does can only add to it.
    return Measured(len(spans), num_rows, max(min(times), 1e-6))
