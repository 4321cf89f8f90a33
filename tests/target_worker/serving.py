"""A target worker in this process on a real server, and a client of the jobs stream."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import JobQueue
from shared.bus.log import SessionLog
from shared.common.clock import SystemClock
from shared.engine.runner import ModelRunner
from shared.engine.sampling import Row, sample
from shared.engine.spans import Runner, Span
from shared.engine.text import TextTokenizer
from shared.protocol.jobs import JobEntry
from shared.protocol.records import Done, Failed, Record
from shared.protocol.requests import parse_request, sampling_params
from target_worker.admission import Served
from target_worker.config import Config
from target_worker.equipment import Equipment, build_engine, equip
from target_worker.worker import TargetWorker
from tests.bus_worker import until
from tests.target_worker.engines import tokens_of
from tests.tiny_models import save_llama

NAME = "tiny"
LOSE_NEWEST = """
local row = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local record = {}
for i = 1, #row[2], 2 do record[row[2][i]] = row[2][i + 1] end
redis.call('HSET', KEYS[2], 'len:0', record.off)
return redis.call('XDEL', KEYS[1], row[1])
"""


def tiny_model(directory: Path) -> Path:
    """A random model whose directory name is NAME."""
    return save_llama(directory / NAME, seed=3, max_model_len=512)


def body(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    """A request that is valid unless `fields` make it otherwise."""
    basics = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Once upon a time"}],
        "max_tokens": 24,
        "seed": 11,
        "ignore_eos": True,
    }
    return {name: value for name, value in {**basics, **fields}.items() if value is not None}


@dataclass
class Client:
    """Submits jobs and reads their logs."""

    bus: Bus
    queue: JobQueue = field(init=False)
    log: SessionLog = field(init=False)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.bus)
        self.log = SessionLog(self.bus)

    async def submit(self, job_id: str, deadline_ms: int | None = None, **fields: Any) -> None:  # noqa: ANN401 -- JSON
        """Queue one job."""
        entry = JobEntry(job_id, json.dumps(body(**fields)).encode(), deadline_ms)
        await self.queue.submit(entry)

    async def records(self, job_id: str) -> list[Record]:
        """Its log so far."""
        return [record for _, record in await self.log.read(job_id)]

    async def lose_newest(self, job_id: str) -> None:
        """Take the newest record, of tokens of choice 0, out of its log, as a crash may."""
        keys = self.bus.keys
        names = [keys.log(job_id), keys.job(job_id)]
        assert await self.bus.call("EVAL", LOSE_NEWEST, len(names), *names) == 1

    async def num_tokens(self, job_id: str) -> int:
        """Output tokens of its first choice so far."""
        return len(tokens_of(await self.records(job_id)))

    async def finish(self, job_id: str) -> list[Record]:
        """Its whole log, once it has ended."""

        async def ended() -> list[Record]:
            records = await self.records(job_id)
            is_over = bool(records) and isinstance(records[-1], Done | Failed)
            return records if is_over else []

        return await until(ended, deadline_s=60.0)

    async def has_tokens(self, job_id: str, count: int) -> None:
        """Wait until it has so many."""

        async def has() -> bool:
            return await self.num_tokens(job_id) >= count

        await until(has, deadline_s=60.0)


@dataclass
class Running:
    """A worker under test."""

    worker: TargetWorker
    task: asyncio.Task[None]
    bus: Bus

    async def drained(self) -> None:
        """SIGTERM, and wait for the end."""
        self.worker.drain()
        await self.task

    async def die(self) -> None:
        """Go without a word, as after kill -9; then the lease runs out."""
        self.task.cancel()
        await asyncio.wait([self.task])
        self.worker._handover.stop()
        await asyncio.to_thread(self.worker._thread.join)
        await Fleet(self.bus).retire(self.bus.worker_id)


def config(model: Path, **fields: Any) -> Config:  # noqa: ANN401 -- any setting
    """Small settings."""
    return Config(
        **{
            "model": str(model),
            "max_num_seqs": 8,
            "max_batched_tokens": 64,
            "drain_s": 30.0,
            **fields,
        }
    )


async def start(
    bus: Bus,
    settings: Config,
    wrap: Callable[[Runner], Runner] = lambda runner: runner,
) -> Running:
    """A worker that claims."""
    equipment = equip(settings)
    model = replace(equipment.model, runner=wrap(equipment.model.runner))
    equipment = Equipment(model, equipment.served)
    engine = build_engine(settings, equipment, bus.worker_id, SystemClock())
    worker = TargetWorker(bus, equipment.served, engine, settings, SystemClock())
    return Running(worker, asyncio.create_task(worker.run()), bus)


def expected(model: Path, fields: dict[str, Any]) -> list[int]:
    """What the model answers, by whole passes over the whole prefix, one token at a time."""
    runner = ModelRunner.load(model, num_blocks=40, block_size=16)
    tokenizer = TextTokenizer.load(model)
    request = parse_request(json.dumps(fields).encode())
    assert request.messages is not None
    assert request.seed is not None
    prompt = tokenizer.encode_chat([(turn.role, turn.text) for turn in request.messages])
    params = sampling_params(request, seed=request.seed, stop_token_ids=runner.config.eos_token_ids)
    tokens = list(prompt)
    blocks = list(range(40))
    while len(tokens) < len(prompt) + (request.output_limit or 0):
        logits = runner.run([Span(tokens, 0, blocks, 1)])
        tokens += sample(logits, [Row(params, tokens, len(prompt))])
        if tokens[-1] in params.stop_token_ids:
            break
    return tokens[len(prompt) :]


class Held:
    """A model that waits for permission before each pass, once it is held.

    The wait is on a plain threading event: a pass that hangs, seen from outside.
    """

    def __init__(self, runner: Runner, gate: Callable[[Sequence[Span]], None]) -> None:
        self._runner = runner
        self._gate = gate

    def run(self, spans: Sequence[Span]) -> Any:  # noqa: ANN401 -- Tensor
        self._gate(spans)
        return self._runner.run(spans)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        self._runner.copy_blocks(copies)


def served(model: Path) -> Served:
    """The model as requests see it."""
    return equip(config(model)).served
