"""The target worker's engine on a GPU's runner, sampler and follower: the tokens stay the same."""

from collections.abc import Sequence
from pathlib import Path

from shared.engine.blocks import BlockPool
from shared.engine.following import Follow
from shared.engine.gpu.following import GpuFollower
from shared.engine.gpu.sampling import GpuSampler
from shared.engine.samplers import Collect
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Span
from shared.protocol.records import Tokens
from shared.protocol.sampling import SamplingParams
from target_worker.admitted import AdmittedJob
from target_worker.cost import Measured
from target_worker.engine import Engine
from target_worker.goodput import Policy
from target_worker.rounds import Rounds
from target_worker.scheduler import Scheduler
from target_worker.speculation import Identity, Speculation
from tests.checkpoints import random_tokens, save_checkpoint
from tests.fakes import ManualClock
from tests.shared.engine.gpu.runners import LIMITS, ROWS_OF_NOBODY, load, on_gpus
from tests.target_worker.engines import make_job

pytestmark = ROWS_OF_NOBODY

PARAMS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, temperature=0.8),
    SamplingParams(seed=3, temperature=0.8, top_k=9, stop_token_ids=tuple(range(0, 64, 5))),
    SamplingParams(seed=4, temperature=0.8, presence_penalty=0.5),
)


class Counting(GpuFollower):
    """Counts the rounds that it begins."""

    num_rounds = 0

    def begin(
        self,
        spans: Sequence[Span],
        requests: Sequence[VerifyRequest],
        follows: Sequence[Follow],
    ) -> Collect:
        self.num_rounds += 1
        return super().begin(spans, requests, follows)


def make_jobs() -> list[AdmittedJob]:
    """The last one comes later, and its penalties make every round with it wait."""
    return [
        make_job(f"job{i}", random_tokens(5 + 6 * i, seed=i), max_tokens=9 - 2 * i, params=(one,))
        for i, one in enumerate(PARAMS)
    ]


def answers(directory: Path, device: str, *, follows: bool) -> tuple[dict[str, list[int]], int]:
    """What an engine says to the jobs, and how many rounds it began behind others."""
    runner = load(directory, device)
    sampler = GpuSampler(max_rows=16, vocab_size=runner.config.vocab_size, device=device)
    follower = Counting(runner, sampler)
    clock, pool = ManualClock(), BlockPool(LIMITS.num_blocks, LIMITS.block_size)
    speculation = Speculation(
        Policy.OFF, Identity("target:a", "words"), profile=[Measured(1, 1, 0.001)], clock=clock
    )
    rounds = Rounds(runner, sampler, lambda: None, follower if follows else None)
    scheduler = Scheduler(pool, max_num_seqs=4, max_batched_tokens=64)
    vocab_size = runner.config.vocab_size
    engine = Engine(
        rounds, scheduler, speculation, vocab_size=vocab_size, clock=clock, overlap_from=1
    )
    said: dict[str, list[int]] = {}
    *jobs, late = make_jobs()
    for job in jobs:
        engine.submit(job)
    for number in range(40):
        if number == 5:
            engine.submit(late)
        engine.step()
        for (job_id, _), (_, records) in engine.take_outcome().records.items():
            tokens = [one.token_ids for one in records if isinstance(one, Tokens)]
            said.setdefault(job_id, []).extend(token for ids in tokens for token in ids)
    assert engine.num_jobs == 0
    assert pool.num_free == pool.num_blocks
    return said, follower.num_rounds


def test_an_engine_says_the_same_whether_rounds_are_begun_behind_others(
    tmp_path: Path, device: str
) -> None:
    """Greedy, sampled, filtered until a stop, and a newcomer with penalties."""
    save_checkpoint(tmp_path, on_gpus("llama"))
    expected, num_followed = answers(tmp_path, device, follows=False)
    assert num_followed == 0
    said, num_followed = answers(tmp_path, device, follows=True)
    assert said == expected
    assert num_followed
    assert set(said) == {f"job{i}" for i in range(len(PARAMS))}
