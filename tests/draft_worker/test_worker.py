"""draft_worker/worker.py and its process, on a real server: a target's view of it."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import structlog

from draft_worker.config import Config, DrafterKind
from draft_worker.drafter import Drafter, Proposal
from draft_worker.equipment import Equipment
from draft_worker.ngram_drafter import NgramDrafter
from draft_worker.worker import DraftWorker, EngineFailed
from shared.bus.connection import Bus
from shared.bus.fleet import Fleet
from shared.bus.mail import DraftBoard, Inbox, post
from shared.common.clock import SystemClock
from shared.protocol.messages import (
    DraftAccepted,
    DraftClosed,
    DraftPath,
    DraftRequest,
    Message,
    Verdict,
)
from tests.draft_worker.builders import EAGER, make_drafter, make_request, make_verdict
from tests.e2e.processes import Process
from tests.server import Server
from tests.tiny_models import save_llama

pytestmark = pytest.mark.server

WAIT_S = 30.0
ConnectBus = Callable[..., Awaitable[Bus]]


class Target:
    """A target worker as far as a drafter can see."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.board = DraftBoard(bus)
        self.inbox = Inbox(bus)
        self.heard: list[Message] = []

    async def ask(self, session_id: str = "job/0", **changes: object) -> DraftRequest:
        """Post a draft request."""
        plain = make_request(session_id, target_id=self.bus.worker_id)
        request = msgspec.structs.replace(plain, **changes)
        await self.board.post(request)
        return request

    async def hear(self, kind: type, session_id: str = "job/0") -> Message:
        """The first message of a kind about a session, past or to come."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for message in self.heard:
                    if isinstance(message, kind) and _session_of(message) == session_id:
                        self.heard.remove(message)
                        return message
                self.heard += await self.inbox.read(block_s=1.0)


def _session_of(message: Message) -> str:
    return getattr(message, "session_id", "")


@asynccontextmanager
async def running(bus: Bus, drafter: Drafter, **settings: object) -> AsyncIterator[DraftWorker]:
    """A draft worker in this process, stopped at the end."""
    equipment = Equipment(drafter, name="fake", vocabulary="v", max_model_len=400, vocab_size=48)
    config = Config(drafter=DrafterKind.NGRAM, **settings)  # type: ignore[arg-type]
    worker = DraftWorker(bus, equipment, config, SystemClock())
    run = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await run


async def test_a_session_from_request_to_end(connect_bus: ConnectBus) -> None:
    """Accepted, guesses, a verdict, more guesses from there; then the target closes it."""
    target = Target(await connect_bus("target:a"))
    async with running(await connect_bus("draft:d"), make_drafter()):
        await target.ask()
        accepted = await target.hear(DraftAccepted)
        assert accepted == DraftAccepted("job/0", "draft:d")
        path = await target.hear(DraftPath)
        assert isinstance(path, DraftPath)
        assert path.base_len == 3
        confirmed = make_verdict(3, path.token_ids[0], 40)
        await post(target.bus, "draft:d", (confirmed,))
        while isinstance(path, DraftPath) and path.base_len == 3:
            path = await target.hear(DraftPath)
        assert isinstance(path, DraftPath)
        assert path.base_len == 5
        await post(target.bus, "draft:d", (DraftClosed("job/0"),))
        await eventually_idle(target.bus)


async def eventually_idle(bus: Bus) -> None:
    """Until the worker's heartbeat says that it has no session."""
    async with asyncio.timeout(WAIT_S):
        while any(worker.num_running for worker in await Fleet(bus).workers()):
            await asyncio.sleep(0.05)


async def test_a_lost_verdict_closes_the_session_and_asking_again_reopens_it(
    connect_bus: ConnectBus,
) -> None:
    """The target is told, and asks with all its tokens."""
    target = Target(await connect_bus("target:a"))
    async with running(await connect_bus("draft:d"), make_drafter()):
        await target.ask()
        await target.hear(DraftAccepted)
        await post(target.bus, "draft:d", (make_verdict(9, 1),))
        await target.hear(DraftClosed)
        await target.ask(token_ids=(1, 2, 3, 4, 5))
        await target.hear(DraftAccepted)


async def test_an_unknown_vocabulary_is_left_alone_and_logged_once(connect_bus: ConnectBus) -> None:
    """Guesses in another vocabulary would be noise; the next request is served."""
    target = Target(await connect_bus("target:a"))
    with structlog.testing.capture_logs() as logs:
        async with running(await connect_bus("draft:d"), make_drafter()):
            for number in range(3):
                await target.ask(f"foreign/{number}", vocabulary="other")
            await target.ask()
            await target.hear(DraftAccepted)
    assert [log["event"] for log in logs].count("draft_vocabulary_unknown") == 1
    assert {_session_of(message) for message in target.heard} <= {"job/0"}


async def test_garbage_in_the_inbox_does_not_disturb_a_session(connect_bus: ConnectBus) -> None:
    """Unreadable bytes, verdicts about nobody and absurd ones: the others go on."""
    target = Target(await connect_bus("target:a"))
    async with running(await connect_bus("draft:d"), make_drafter()):
        await target.ask()
        path = await target.hear(DraftPath)
        assert isinstance(path, DraftPath)
        inbox = target.bus.keys.inbox("draft:d")
        await target.bus.call("XADD", inbox, "*", "m", b"\xff\x00garbage")
        await target.ask("hostile/0", token_ids=(-1, 1 << 62))
        absurd = [Verdict("nobody/0", 1, (1,)), Verdict("job/0", 0, (1,)), Verdict("job/0", 2, ())]
        await post(target.bus, "draft:d", tuple(absurd))
        await post(target.bus, "draft:d", (make_verdict(3, path.token_ids[0]),))
        while isinstance(path, DraftPath) and path.base_len == 3:
            path = await target.hear(DraftPath)
        assert isinstance(path, DraftPath)
        assert path.base_len == 4


async def test_a_full_worker_takes_no_requests(connect_bus: ConnectBus) -> None:
    """What it has no seat for stays on the board, for others or for later."""
    target = Target(await connect_bus("target:a"))
    drafter = make_drafter(limits=replace(EAGER, max_num_seqs=1))
    async with running(await connect_bus("draft:d"), drafter):
        await target.ask("a/0")
        await target.hear(DraftAccepted, "a/0")
        await target.ask("b/0")
        await post(target.bus, "draft:d", (DraftClosed("a/0"),))
        await target.hear(DraftAccepted, "b/0")


async def test_leaving_tells_the_targets_and_retires(connect_bus: ConnectBus) -> None:
    """No heartbeat stays behind, and no target waits."""
    target = Target(await connect_bus("target:a"))
    async with running(await connect_bus("draft:d"), make_drafter()):
        await target.ask()
        await target.hear(DraftAccepted)
    await target.hear(DraftClosed)
    assert await Fleet(target.bus).workers() == []


class BrokenDrafter(NgramDrafter):
    """Fails when it opens its first session."""

    def open(self, request: DraftRequest) -> bool:
        raise RuntimeError(f"broken on purpose by {request.session_id}")


class HangingDrafter(NgramDrafter):
    """Its first step takes until the test lets it go."""

    def __init__(self) -> None:
        super().__init__(limits=EAGER)
        self.is_released = threading.Event()

    def step(self) -> Sequence[Proposal]:
        self.is_released.wait(WAIT_S)
        return super().step()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine_ends_the_worker(connect_bus: ConnectBus) -> None:
    """Its process would be of no use: it fails instead of beating on."""
    target = Target(await connect_bus("target:a"))
    equipment = Equipment(BrokenDrafter(limits=EAGER), "fake", "v", 400, 48)
    config = Config(drafter=DrafterKind.NGRAM)
    worker = DraftWorker(await connect_bus("draft:d"), equipment, config, SystemClock())
    await target.ask()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(EngineFailed, match="has ended"):
            await worker.run()


async def test_a_hanging_engine_ends_the_worker(connect_bus: ConnectBus) -> None:
    """Without a finished step within the limit the process is given up."""
    target = Target(await connect_bus("target:a"))
    drafter = HangingDrafter()
    config = Config(drafter=DrafterKind.NGRAM, hang_timeout_s=0.5)
    equipment = Equipment(drafter, "fake", "v", 400, 48)
    worker = DraftWorker(await connect_bus("draft:d"), equipment, config, SystemClock())
    await target.ask()
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(EngineFailed, match="no step has ended"):
            await worker.run()
    drafter.is_released.set()


async def test_the_server_may_restart_under_a_session(
    own_server: Server, connect_bus: ConnectBus
) -> None:
    """Connections come back by themselves, and so do guesses."""
    target = Target(await connect_bus("target:a", url=own_server.url))
    async with running(await connect_bus("draft:d", url=own_server.url), make_drafter()):
        await target.ask()
        await target.hear(DraftAccepted)
        await asyncio.to_thread(own_server.restart)
        async with asyncio.timeout(WAIT_S):
            await target.ask("later/0")
            await target.hear(DraftPath, "later/0")


@pytest.mark.e2e
async def test_the_process_serves_and_ends_on_sigterm(
    tmp_path: Path, valkey_url: str, connect_bus: ConnectBus
) -> None:
    """`python -m draft_worker` with a real, tiny model: ready, accepted, guesses, exit 0."""
    from shared.engine.text import TextTokenizer  # noqa: PLC0415 - torch, for this test alone

    model = save_llama(tmp_path / "tiny")
    vocabulary = TextTokenizer.load(model).fingerprint
    flags = ("--model", str(model), "--redis-url", valkey_url, "--num-blocks", "64")
    process = Process("draft_worker", *flags, log=tmp_path / "log")
    try:
        process.wait_ready()
        target = Target(await connect_bus("target:a"))
        await target.ask(vocabulary=vocabulary)
        accepted = await target.hear(DraftAccepted)
        assert isinstance(accepted, DraftAccepted)
        await target.hear(DraftPath)
        (status,) = await Fleet(target.bus).workers()
        assert (status.worker_id, status.role, status.model) == (accepted.draft_id, "draft", "tiny")
        process.send(signal.SIGTERM)
        await target.hear(DraftClosed)
        assert await asyncio.to_thread(process.wait) == 0
        assert await Fleet(target.bus).workers() == []
    finally:
        process.kill()
