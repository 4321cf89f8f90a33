"""A whole worker on a real server: jobs in, logs out, and every way in which it may end."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.jobs import Claim
from shared.bus.mail import DraftBoard, Inbox, post
from shared.engine.spans import Span
from shared.protocol.messages import DraftAccepted, DraftPath, Verdict
from shared.protocol.records import Done, Failed, FinishReason, Tokens
from target_worker.goodput import Policy
from target_worker.worker import EngineFailed
from tests.bus_worker import until
from tests.conftest import ConnectBus
from tests.server import Server
from tests.target_worker.engines import tokens_of
from tests.target_worker.serving import (
    Client,
    Held,
    Running,
    body,
    config,
    expected,
    start,
    tiny_model,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def client(connect_bus: ConnectBus) -> Client:
    """Somebody who submits jobs."""
    return Client(await connect_bus("gateway:c"))


@pytest.fixture
async def running(bus: Bus, model: Path) -> AsyncIterator[Running]:
    """A worker, drained afterwards."""
    worker = await start(bus, config(model))
    yield worker
    if not worker.task.done():
        await worker.drained()


def done(records: Sequence[Any]) -> Done:
    """The terminal record, which is no error."""
    assert isinstance(records[-1], Done), records[-1]
    return records[-1]


def failed(records: Sequence[Any]) -> Failed:
    """The terminal record, which is an error and the only record."""
    assert isinstance(records[-1], Failed), records[-1]
    return records[-1]


async def test_a_job_becomes_a_log_that_ends_once(
    running: Running, client: Client, model: Path
) -> None:
    """Tokens, text, usage and seed are right, and nothing is left pending."""
    await client.submit("job")
    records = await client.finish("job")
    last = done(records)
    tokens = tokens_of(records)
    assert tokens == expected(model, body())
    assert (last.seed, last.usage.completion_tokens) == (11, 24)
    assert last.reasons == (FinishReason.LENGTH,)
    text = "".join(r.text for r in records if isinstance(r, Tokens)) + last.text
    assert text == running.worker._served.tokenizer.decode(tokens)
    pending = await client.bus.call("XPENDING", client.bus.keys.jobs(), "target")
    assert pending[0] == 0


async def test_many_jobs_and_choices_are_served_together(
    running: Running, client: Client, model: Path
) -> None:
    """More jobs than places, one with n = 3: every answer is the one it would get alone."""
    for index in range(12):
        await client.submit(f"job{index}", seed=index, temperature=0.7)
    await client.submit("three", n=3, seed=5)
    for index in range(12):
        records = await client.finish(f"job{index}")
        assert tokens_of(records) == expected(model, body(seed=index, temperature=0.7))
    last = done(await client.finish("three"))
    assert len(last.reasons) == 3


BAD: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "model": ({"model": "other"}, "model", "model_not_found"),
    "unknown-field": ({"tempersture": 1}, "tempersture", "unknown_parameter"),
    "too-long": ({"max_tokens": 600}, "messages", "context_length_exceeded"),
    "long-prompt": ({"prompt": [5] * 600, "messages": None}, "prompt", "context_length_exceeded"),
    "no-prompt": ({"prompt": "", "messages": None}, "prompt", "invalid_value"),
    "prompt-id": ({"prompt": [5, 320], "messages": None}, "prompt", "invalid_value"),
    "bias-id": ({"logit_bias": {"320": 1}}, "logit_bias.320", "invalid_value"),
    "stop-id": ({"stop_token_ids": [1, 999_999]}, "stop_token_ids[1]", "invalid_value"),
    "role": ({"messages": [{"role": "system", "content": "x"}]}, "messages", "invalid_value"),
    "surrogate": ({"prompt": "a\ud800", "messages": None}, None, None),
}


async def test_bad_jobs_among_good_ones_end_alone(
    running: Running, client: Client, model: Path
) -> None:
    """Each gets one error that names the field; the good ones are served as if alone."""
    await client.submit("good1")
    for name, (fields, _, _) in BAD.items():
        await client.submit(name, **fields)
    await client.bus.call(
        "XADD", client.bus.keys.jobs(), "*", "id", "garbage", "body", b"\xff\xfe{"
    )
    await client.bus.call("XADD", client.bus.keys.jobs(), "*", "nonsense", b"\xff\x00")
    await client.bus.call("XADD", client.bus.keys.jobs(), "*", "id", b"\xff", "body", "{}")
    await client.submit("good2")
    for name, (_, param, code) in BAD.items():
        (record,) = await client.finish(name)
        error = failed([record])
        assert code is None or (error.param, error.code) == (param, code)
        assert 400 <= error.status < 500
    assert failed(await client.finish("garbage")).code == "invalid_json"
    for name in ("good1", "good2"):
        assert tokens_of(await client.finish(name)) == expected(model, body())

    async def buried() -> bool:
        return bool(await client.bus.call("XLEN", client.bus.keys.dead) == 2)

    await until(buried)


async def test_a_cancelled_job_ends_within_a_round_or_so(running: Running, client: Client) -> None:
    """The flag reaches the owner with its next commit; the log ends with `cancelled`."""
    await client.submit("job", max_tokens=480)
    await client.has_tokens("job", 5)
    assert await client.log.cancel("job")
    error = failed(await client.finish("job"))
    assert (error.code, error.status) == ("cancelled", 499)


async def test_a_job_cancelled_in_the_queue_ends_when_it_is_claimed(
    client: Client, bus: Bus, model: Path
) -> None:
    """Nobody pays for its prompt."""
    await client.submit("job")
    assert await client.log.cancel("job")
    worker = await start(bus, config(model))
    assert failed(await client.finish("job")).code == "cancelled"
    await worker.drained()


async def test_a_waiting_session_hears_of_its_cancellation(
    client: Client, bus: Bus, model: Path
) -> None:
    """A choice that has no place yet is never committed; the flag is asked for all the same."""
    worker = await start(bus, config(model, max_num_seqs=1))
    await client.submit("job", n=2, max_tokens=480)
    await client.has_tokens("job", 1)
    await client.log.cancel("job")
    assert failed(await client.finish("job")).code == "cancelled"
    await worker.drained()


async def test_a_job_past_its_deadline_is_not_begun(running: Running, client: Client) -> None:
    """It ends with `deadline_exceeded`, before and after it was started."""
    await client.submit("late", deadline_ms=1)
    assert failed(await client.finish("late")).code == "deadline_exceeded"


async def test_a_dead_workers_job_is_continued(
    client: Client, connect_bus: ConnectBus, model: Path
) -> None:
    """A second worker goes on where the log ends: no token twice, none missing, the same text."""
    first = await start(await connect_bus("target:a"), config(model))
    await client.submit("job", max_tokens=300, temperature=0.7, seed=4)
    await client.submit("three", n=2, max_tokens=100, seed=5)
    await client.has_tokens("job", 20)
    await first.die()
    assert not isinstance((await client.records("job"))[-1], Done)
    second = await start(await connect_bus("target:b"), config(model))
    records = await client.finish("job")
    assert tokens_of(records) == expected(model, body(max_tokens=300, temperature=0.7, seed=4))
    last = done(records)
    text = "".join(r.text for r in records if isinstance(r, Tokens)) + last.text
    assert text == second.worker._served.tokenizer.decode(tokens_of(records))
    both = await client.finish("three")
    assert tokens_of(both, 0) == expected(model, body(max_tokens=100, seed=5))
    await second.drained()


async def test_a_drained_worker_hands_back_what_it_cannot_finish(
    client: Client, connect_bus: ConnectBus, model: Path
) -> None:
    """The next worker gets it at once and continues; the hand-back is no delivery."""
    first = await start(await connect_bus("target:a"), config(model, drain_s=0.0))
    await client.submit("job", max_tokens=400)
    await client.has_tokens("job", 5)
    await first.drained()
    assert 5 <= await client.num_tokens("job") < 400
    second = await start(await connect_bus("target:b"), config(model))
    records = await client.finish("job")
    assert tokens_of(records) == expected(model, body(max_tokens=400))
    await second.drained()


async def test_a_drained_worker_finishes_what_it_can(client: Client, bus: Bus, model: Path) -> None:
    """Within the limit running jobs end as usual, and new ones stay in the queue."""
    worker = await start(bus, config(model))
    await client.submit("job", max_tokens=100)
    await client.has_tokens("job", 1)
    worker.worker.drain()
    await client.submit("later")
    await worker.task
    done(await client.records("job"))
    assert await client.records("later") == []
    assert await Fleet(client.bus).workers() == []


async def test_a_fenced_worker_drops_the_session_in_silence(
    client: Client, connect_bus: ConnectBus, model: Path
) -> None:
    """Another epoch owns the job: the first worker writes nothing more and serves others."""
    first = await start(await connect_bus("target:a"), config(model))
    await client.submit("job", max_tokens=400)
    await client.has_tokens("job", 5)
    ((stream, entry_id),) = first.worker._queue._known
    stolen = Claim("job", stream, entry_id, 1, 11, is_cancelled=False, deliveries=1, lengths=())
    await client.queue.hand_back(stolen)
    records = await client.finish("job")
    assert tokens_of(records) == expected(model, body(max_tokens=400))
    info = await client.log.info("job")
    assert info is not None
    assert info.epoch == 3
    await client.submit("next")
    assert tokens_of(await client.finish("next")) == expected(model, body())
    await first.drained()


async def test_a_server_restart_is_ridden_out(
    own_server: Server, connect_bus: ConnectBus, model: Path
) -> None:
    """Killed and restarted mid-stream: the log goes on without a gap or a repeat."""
    client = Client(await connect_bus("gateway:c", url=own_server.url))
    worker = await start(await connect_bus("target:a", url=own_server.url), config(model))
    await client.submit("job", max_tokens=400)
    await client.has_tokens("job", 5)
    await asyncio.to_thread(own_server.restart)
    records = await client.finish("job")
    assert tokens_of(records) == expected(model, body(max_tokens=400))
    await worker.drained()


async def test_a_server_that_lost_the_last_appends_gets_them_again(
    running: Running, client: Client, model: Path
) -> None:
    """It comes back older than it was: the job is claimed anew and goes on from what is left."""
    await client.submit("job", max_tokens=400)
    await client.has_tokens("job", 20)
    await client.lose_newest("job")
    records = await client.finish("job")
    assert tokens_of(records) == expected(model, body(max_tokens=400))
    info = await client.log.info("job")
    assert info is not None
    assert info.epoch == 2


async def test_a_hung_engine_loses_its_heartbeat_and_ends_the_worker(
    client: Client, bus: Bus, model: Path
) -> None:
    """A pass that does not come back: no beat, then EngineFailed, and the job is free."""
    gate, is_held = threading.Event(), threading.Event()

    def hold(spans: Sequence[Span]) -> None:
        if is_held.is_set():
            gate.wait(30.0)

    worker = await start(bus, config(model, hang_s=1.0), lambda runner: Held(runner, hold))
    await client.submit("job", max_tokens=400)
    await client.has_tokens("job", 1)
    is_held.set()
    with pytest.raises(EngineFailed):
        await worker.task
    assert await Fleet(client.bus).workers() == []
    gate.set()


async def test_a_broken_engine_ends_the_worker(client: Client, bus: Bus, model: Path) -> None:
    """When every pass fails, the self-test too, the process must go."""
    is_broken = threading.Event()

    def break_down(spans: Sequence[Span]) -> None:
        if is_broken.is_set():
            raise RuntimeError("no device")

    worker = await start(bus, config(model), lambda runner: Held(runner, break_down))
    await client.submit("job", max_tokens=400)
    await client.has_tokens("job", 1)
    is_broken.set()
    with pytest.raises(EngineFailed):
        await worker.task
    assert await Fleet(client.bus).workers() == []


async def test_guesses_arrive_over_the_bus_and_are_accepted(
    client: Client, connect_bus: ConnectBus, bus: Bus, model: Path
) -> None:
    """A drafter that knows the answer: fewer rounds, the same tokens, honest statistics."""
    worker = await start(bus, config(model, speculation=Policy.ON))
    drafter = await connect_bus("draft:d")
    board, inbox = DraftBoard(drafter), Inbox(drafter)
    truth = expected(model, body(max_tokens=200))

    async def draft() -> None:
        (request,) = await until(lambda: board.fetch(1, block_s=1.0))
        answer = [*request.token_ids[: request.prompt_len], *truth]
        num_known = len(request.token_ids)
        accepted = DraftAccepted(request.session_id, "draft:d")
        await post(drafter, request.target_id, (accepted,))
        while num_known < len(answer):
            path = tuple(answer[num_known : num_known + 20])
            guess = DraftPath(request.session_id, num_known, path)
            await post(drafter, request.target_id, (guess,))
            for message in await inbox.read(block_s=1.0):
                if isinstance(message, Verdict):
                    assert message.base_len == num_known
                    num_known += len(message.token_ids)

    drafting = asyncio.create_task(draft())
    await client.submit("job", max_tokens=200)
    records = await client.finish("job")
    drafting.cancel()
    assert tokens_of(records) == truth
    stats = done(records).speculation
    assert stats.acceptance_rate == 1.0
    assert stats.num_accepted_tokens > 0
    await worker.drained()


async def test_the_heartbeat_says_what_the_worker_does(running: Running, client: Client) -> None:
    """Model, context and counts are there for the gateways."""
    await client.submit("job")
    await client.finish("job")

    async def counted() -> bool:
        workers = await Fleet(client.bus).workers()
        return bool(workers) and workers[0].num_generation_tokens == 24

    await until(counted)
    (status,) = await Fleet(client.bus).workers()
    assert (status.model, status.role, status.max_model_len) == ("tiny", "target", 512)
    assert json.loads(json.dumps(status.kv_cache_usage)) == 0.0
