"""The bus rides out restarts, lost replies and full servers, and says what it cannot ride out."""

import asyncio
import contextlib

import pytest
from redis.exceptions import ResponseError

from shared.bus.connection import Bus
from shared.bus.log import Append, CommitStatus, SessionLog
from shared.bus.mail import DraftBoard, Inbox, post
from shared.common.errors import ConfigError, Unavailable
from shared.protocol.keys import Keys
from shared.protocol.messages import DraftClosed, DraftRequest
from shared.protocol.sampling import SamplingParams
from tests.bus_worker import BusWorker, done, tokens
from tests.conftest import ConnectBus
from tests.proxy import Proxy
from tests.server import Server
from tests.shared.bus.conftest import StartWorker

pytestmark = pytest.mark.server

REQUEST = DraftRequest("j/0", "target:a", 1, "vocab", 1, 9, (1,), SamplingParams(seed=1))


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    """After the deadline, not after redis-py's own minute."""
    with pytest.raises(Unavailable, match="does not answer"):
        await Bus.connect(
            "redis://127.0.0.1:1/0", keys=Keys(), worker_id="target:a", deadline_s=0.1
        )


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port"])
async def test_an_url_that_is_none_is_the_operators_error(url: str) -> None:
    """Named by its flag."""
    with pytest.raises(ConfigError, match="redis-url"):
        await Bus.connect(url, keys=Keys(), worker_id="target:a")


async def test_credentials_are_the_operators_error(
    connect_bus: ConnectBus, own_server: Server
) -> None:
    """Missing, wrong, or without permission: at once, with the server's words."""
    admin = await connect_bus("target:admin", url=own_server.url)
    await admin.call("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+ping", "+info")
    await admin.call("CONFIG", "SET", "requirepass", "secret")
    for user, reason in (("", "Auth"), (":wrong@", "username-password"), ("reader:pw@", "permiss")):
        url = own_server.url.replace("redis://", f"redis://{user}")
        with pytest.raises(ConfigError, match=f"redis-url: .*{reason}"):
            await connect_bus("target:a", url=url)
    await connect_bus("target:a", url=own_server.url.replace("redis://", "redis://:secret@"))


async def test_a_refused_command_is_raised_as_it_is(bus: Bus) -> None:
    """An answer is not an outage: no second try."""
    with pytest.raises(ResponseError, match="NOSUCHCOMMAND"):
        await bus.call("NOSUCHCOMMAND")
    assert bus.num_losses == 0


async def test_commands_are_a_plain_client(bus: Bus) -> None:
    """For what needs no retries, such as a health check."""
    assert await bus.commands.ping()


async def test_a_restart_with_data_goes_unnoticed(
    start_worker: StartWorker, own_server: Server
) -> None:
    """The same process commits, reads, posts and fetches on, from where it was."""
    worker = await start_worker("target:a", url=own_server.url)
    inbox, board = Inbox(worker.bus), DraftBoard(worker.bus)
    await worker.submit("j")
    claim = await worker.take()
    await worker.append(claim, tokens(0, 1))
    await post(worker.bus, "target:a", (DraftClosed("1"),))
    assert await inbox.read(block_s=1.0) == [DraftClosed("1")]
    own_server.restart()
    await worker.beat()
    assert (await worker.append(claim, tokens(1, 2))).status is CommitStatus.OK
    await post(worker.bus, "target:a", (DraftClosed("2"),))
    assert await inbox.read(block_s=1.0) == [DraftClosed("2")]
    await board.fetch(1, block_s=0.01)
    await board.post(REQUEST)
    assert await board.fetch(1, block_s=1.0) == [REQUEST]
    await worker.submit("k")
    assert (await worker.take()).job_id == "k"


async def test_a_restart_without_data_is_survived(
    start_worker: StartWorker, own_server: Server
) -> None:
    """Functions and groups are made again; old jobs are gone, new ones are served."""
    worker = await start_worker("target:a", url=own_server.url)
    inbox, board = Inbox(worker.bus), DraftBoard(worker.bus)
    await board.fetch(1, block_s=0.01)
    await worker.submit("old")
    claim = await worker.take()
    await worker.bus.call("CONFIG", "SET", "appendonly", "no")
    await worker.bus.call("FLUSHALL")
    await worker.bus.call("FUNCTION", "FLUSH")
    await worker.beat()
    assert (await worker.append(claim, tokens(0, 1))).status is CommitStatus.GONE
    await worker.submit("new")
    new = await worker.take()
    assert (await worker.append(new, tokens(0, 1), done())).status is CommitStatus.OK
    await post(worker.bus, "target:a", (DraftClosed("1"),))
    assert await inbox.read(block_s=1.0) == [DraftClosed("1")]
    assert await board.fetch(1, block_s=0.01) == []
    await board.post(REQUEST)
    assert await board.fetch(1, block_s=1.0) == [REQUEST]


async def test_blocked_readers_survive_a_restart(
    start_worker: StartWorker, own_server: Server
) -> None:
    """A fetch and an inbox read that waited when the server died get what comes afterwards."""
    worker = await start_worker("target:a", url=own_server.url)
    inbox = Inbox(worker.bus)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        fetch = tasks.create_task(worker.jobs.fetch(1, block_s=20.0))
        mail = tasks.create_task(inbox.read(block_s=20.0))
        await asyncio.to_thread(own_server.restart)
        await worker.beat()
        await worker.submit("j")
        await post(worker.bus, "target:a", (DraftClosed("1"),))
    assert [delivery.fields[b"id"] for delivery in fetch.result()] == [b"j"]
    assert mail.result() == [DraftClosed("1")]


async def test_an_outage_longer_than_the_deadline_is_unavailable(
    start_worker: StartWorker, own_server: Server
) -> None:
    """Calls and blocking reads give up with the caller's patience, not before, not for ever."""
    worker = await start_worker("target:a", url=own_server.url, deadline_s=0.3)
    own_server.kill()
    for call in (
        worker.bus.call("PING"),
        Inbox(worker.bus).read(block_s=5.0),
        worker.jobs.fetch(1, block_s=5.0),
    ):
        with pytest.raises(Unavailable):
            await call
    own_server.start()
    await worker.beat()


async def test_a_full_server_refuses_submissions_and_delays_commits(
    start_worker: StartWorker, own_server: Server
) -> None:
    """A gateway can answer 503 at once; a worker waits for room, and loses nothing."""
    worker = await start_worker("target:a", url=own_server.url)
    await worker.submit("j")
    claim = await worker.take()
    await worker.bus.call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Unavailable, match="full"):
        await worker.submit("k")
    async with asyncio.TaskGroup() as tasks:
        commit = tasks.create_task(worker.append(claim, tokens(0, 1)))
        await asyncio.wait([commit], timeout=0.2)
        assert not commit.done()
        await worker.bus.call("CONFIG", "SET", "maxmemory", "0")
    assert commit.result().status is CommitStatus.OK


CALLS = ["outrider_open", "outrider_fetch", "outrider_claim", "outrider_commit", "outrider_release"]


@pytest.mark.parametrize("function", CALLS)
async def test_a_lost_reply_changes_nothing(
    start_worker: StartWorker, worker: BusWorker, proxy: Proxy, function: str
) -> None:
    """The server did it, the answer got lost, the call was repeated: as if nothing had been."""
    lossy = await start_worker("target:lossy", url=proxy.url)
    proxy.lose_replies(function.encode(), count=2)
    await lossy.submit("j")
    claim = await lossy.take()
    assert (claim.epoch, claim.deliveries) == (1, 1)
    assert (await lossy.append(claim, tokens(0, 1))).status is CommitStatus.OK
    await lossy.jobs.hand_back(claim)
    assert proxy.num_lost == 2
    assert await worker.records("j") == [tokens(0, 1)]
    again = await worker.take()
    assert again.deliveries == 1
    assert await worker.fetch(9) == []


async def test_a_lost_reply_of_a_rescue_loses_no_job(
    start_worker: StartWorker, worker: BusWorker, proxy: Proxy
) -> None:
    """What the lost answer named comes with the next call, once."""
    lossy = await start_worker("target:lossy", url=proxy.url)
    for number in range(4):
        await worker.submit(f"j{number}")
    await worker.fetch(4)
    await worker.die()
    proxy.lose_replies(b"outrider_rescue")
    rescued = [*await lossy.rescue(2)]
    while more := await lossy.jobs.fetch(9, block_s=0.0) or await lossy.jobs.rescue(9):
        rescued += more
    assert len({delivery.entry_id for delivery in rescued}) == len(rescued) == 4


async def test_a_lost_reply_of_the_last_append_ends_the_job_once(
    start_worker: StartWorker, worker: BusWorker, proxy: Proxy
) -> None:
    """The terminal record is there once, the entry is acked, the repeat is answered OK."""
    lossy = await start_worker("target:lossy", url=proxy.url)
    await lossy.submit("j")
    claim = await lossy.take()
    proxy.lose_replies(b"outrider_commit")
    assert (await lossy.append(claim, tokens(0, 1), done())).status is CommitStatus.OK
    assert proxy.num_lost == 1
    assert await worker.records("j") == [tokens(0, 1), done()]


async def test_a_cancelled_call_leaves_no_reply_to_the_next_caller(
    connect_bus: ConnectBus, proxy: Proxy
) -> None:
    """However a call ends, every caller reads its own answer and nobody else's."""
    bus = await connect_bus("target:a", url=proxy.url)
    for number in range(60):
        proxy.hold_replies()
        victim = asyncio.ensure_future(bus.call("ECHO", f"secret {number}"))
        await asyncio.wait([victim], timeout=0.0005 * (number % 5))
        victim.cancel()
        proxy.let_go()
        with contextlib.suppress(asyncio.CancelledError):
            assert await victim == f"secret {number}".encode()
        answers = await asyncio.gather(*(bus.call("ECHO", f"own {n}") for n in range(3)))
        assert answers == [b"own 0", b"own 1", b"own 2"]


async def test_a_cancelled_commit_can_be_sent_again(
    start_worker: StartWorker, worker: BusWorker, proxy: Proxy
) -> None:
    """Cancelling leaves open whether it was made; repeating it settles that."""
    slow = await start_worker("target:slow", url=proxy.url)
    await slow.submit("j")
    claim = await slow.take()
    for offset in range(20):
        append = Append(claim, (tokens(offset, offset),))
        proxy.hold_replies()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001 * (offset % 4)):
                await slow.log.commit([append])
        proxy.let_go()
        assert (await slow.log.commit([append]))[0].status is CommitStatus.OK
    assert await SessionLog(worker.bus).choices("j") == [tuple(range(20))]


async def test_many_callers_share_few_connections(bus: Bus) -> None:
    """Calls beyond the bound wait for a link instead of opening hundreds."""
    answers = await asyncio.gather(*(bus.call("ECHO", str(n)) for n in range(300)))
    assert answers == [str(n).encode() for n in range(300)]
    clients: bytes = await bus.call("INFO", "clients")
    assert int(clients.split(b"connected_clients:")[1].split()[0]) < 60
