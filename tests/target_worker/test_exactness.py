"""The one rule on a real model: speculation on and off give the same tokens, whoever guesses."""

import zlib
from pathlib import Path

import pytest

from models.recipe.vocabulary import END_ID
from shared.engine.blocks import BlockPool
from shared.engine.runner import ModelRunner
from shared.engine.samplers import HostSampler
from shared.protocol.sampling import SamplingParams
from target_worker.admitted import AdmittedJob
from target_worker.cost import Measured
from target_worker.engine import Engine
from target_worker.goodput import Policy
from target_worker.rounds import Rounds
from target_worker.scheduler import Scheduler
from target_worker.speculation import Identity, Speculation
from tests.fakes import ManualClock
from tests.target_worker.engines import ENDLESS, Drafter, Guess, make_job, tokens_of
from tests.tiny_models import save_llama

NUM_PROMPTS = 54
NUM_BLOCKS = 120
VOCAB = 320
PARAMS = {
    "greedy": {"temperature": 0.0},
    "warm": {"temperature": 0.7},
    "hot-filtered-penalised": {
        "temperature": 1.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.001,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "min_tokens": 4,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny", seed=5)


def jobs(kind: str) -> list[AdmittedJob]:
    """Prompts of 2 to 55 tokens, each with its own seed."""
    return [
        make_job(
            f"job{index}",
            [zlib.crc32(f"{index}.{i}".encode()) % VOCAB for i in range(2 + index)],
            max_tokens=20,
            params=[
                SamplingParams(seed=index, stop_token_ids=(END_ID,), **PARAMS[kind])  # type: ignore[arg-type]
            ],
        )
        for index in range(NUM_PROMPTS)
    ]


def serve(
    model: Path,
    admitted: list[AdmittedJob],
    policy: Policy,
    drafter: Drafter | None = None,
    *,
    overlap_from: int | None = None,
) -> dict[str, list[int]]:
    """All answers by job id."""
    clock = ManualClock()
    pool = BlockPool(NUM_BLOCKS, 4)
    runner = ModelRunner.load(model, num_blocks=NUM_BLOCKS, block_size=4)
    speculation = Speculation(
        policy, Identity("target:a", "words"), profile=[Measured(1, 1, 0.001)], clock=clock
    )
    engine = Engine(
        Rounds(runner, HostSampler(), lambda: None),
        Scheduler(pool, max_num_seqs=9, max_batched_tokens=40),
        speculation,
        vocab_size=VOCAB,
        clock=clock,
        overlap_from=overlap_from,
    )
    for job in admitted:
        engine.submit(job)
    logs: dict[str, list[object]] = {}
    num_drafted = 0
    while engine.num_jobs:
        engine.step()
        clock.advance(0.001)
        outcome = engine.take_outcome()
        for claim, records in outcome.records.values():
            logs.setdefault(claim.job_id, []).extend(records)
        num_drafted += sum(ended.num_drafted for ended in outcome.ended)
        if drafter is not None:
            engine.receive(drafter.answer(outcome), clock.monotonic_s())
    assert pool.num_free == NUM_BLOCKS
    assert (num_drafted > 0) == (drafter is not None)
    return {job_id: tokens_of(records) for job_id, records in logs.items()}  # type: ignore[arg-type]


def everyone(truth: dict[str, list[int]]) -> Guess:
    """By session: always right, always wrong, stale, hostile, silent, or a bit of each."""

    def guess(session_id: str, known: list[int]) -> list[tuple[int, tuple[int, ...]]]:
        base, answer = len(known), truth[session_id]
        right = tuple(answer[base : base + 6])
        wrong = tuple((token_id + 1) % VOCAB for token_id in right)
        stale = max(0, base - 4)
        hostile = [
            (base, (-1, *right)),
            (base, (*right[:1], VOCAB, *right)),
            (base, ENDLESS),
            (-base, right),
            (base + 3, right),
            (base, (1 << 70,)),
        ]
        by_kind = [
            [(base, right)],
            [(base, wrong)],
            [(stale, tuple(answer[stale : base + 4])), (stale, wrong)],
            hostile,
            [],
            [(base, wrong[:1] + right[1:]), (base, right[:3] + wrong[3:]), (base, right)],
        ]
        return by_kind[zlib.crc32(session_id.encode()) % len(by_kind)]

    return guess


@pytest.mark.parametrize("kind", PARAMS)
def test_speculation_changes_no_token(model: Path, kind: str) -> None:
    """54 prompts in small batches with preemption: the same tokens with and without guesses."""
    admitted = jobs(kind)
    plain = serve(model, admitted, Policy.OFF)
    assert len(plain) == NUM_PROMPTS
    truth = {
        f"{job.claim.job_id}/0": [*job.prompt_ids, *plain[job.claim.job_id]] for job in admitted
    }
    again = jobs(kind)  # texts are used up
    assert serve(model, again, Policy.ON, Drafter(everyone(truth))) == plain
    drafter = Drafter(everyone(truth))
    assert serve(model, jobs(kind), Policy.ON, drafter, overlap_from=2) == plain
