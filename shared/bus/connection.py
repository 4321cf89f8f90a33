"""The bus: connections that outlive a server's restart, and calls that are safe to repeat.

Knows when to try again; does not know what the calls mean. Everything sent through `execute` must
be safe to repeat after a lost reply: our functions are (shared/bus/functions), and so are reads.
"""

import asyncio
from collections.abc import Sequence
from typing import Self

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from shared.bus import library
from shared.bus.faults import Fault, classify
from shared.bus.link import Argument, Command, Link, Reply, pack
from shared.bus.retries import Retries
from shared.common.errors import ConfigError
from shared.protocol.keys import Keys

CONNECT_TIMEOUT_S = 3.0
COMMAND_TIMEOUT_S = 5.0  # a healthy server answers in milliseconds, an AOF rewrite may stall it
READ_MARGIN_S = 3.0  # a blocking read may overrun its BLOCK by this before the link counts as dead
DEADLINE_S = 30.0  # how long a call rides out a server that is away
MAX_LINKS = 32

_log = structlog.get_logger()


class Bus:
    """One process's way to the server. Owned by its event loop; close it before the loop ends."""

    def __init__(self, url: str, *, keys: Keys, worker_id: str, deadline_s: float) -> None:
        self.keys = keys
        self.worker_id = worker_id
        self.num_losses = 0  # exchanges whose reply never came, since the start
        self.deadline_s = deadline_s
        self.commands = _client(url, worker_id, timeout_s=COMMAND_TIMEOUT_S)
        # Links take their deadlines around each exchange.
        self._connections = _client(url, worker_id, timeout_s=None).connection_pool
        self._idle: list[Link] = []
        self._readers: list[Reader] = []
        self._free = asyncio.Semaphore(MAX_LINKS)
        self._is_prepared = False

    @classmethod
    async def connect(
        cls, url: str, *, keys: Keys, worker_id: str, deadline_s: float = DEADLINE_S
    ) -> Self:
        """Reach the server, check it and load the function library.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            keys: the names to use.
            worker_id: `target:…`, `draft:…` or `gateway:…`; also the consumer and client name.
            deadline_s: how long this and every later call rides out a server that is away.

        Raises:
            ConfigError: the URL, the credentials or the server's settings cannot work.
            Unavailable: no server before the deadline.
        """
        bus = cls(url, keys=keys, worker_id=worker_id, deadline_s=deadline_s)
        try:
            await bus.call("PING")
        except BaseException:
            await bus.close()
            raise
        return bus

    async def close(self) -> None:
        """Close every connection. Calls under way fail."""
        for link in [*self._idle, *(reader.link for reader in self._readers)]:
            await link.close()
        await self.commands.aclose()

    async def call(self, *command: Argument) -> Reply:
        """Run one command. See `execute`.

        Raises:
            ResponseError: the server refused it.
        """
        (reply,) = await self.execute([command])
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def function(self, name: str, keys: Sequence[str], *arguments: Argument) -> Reply:
        """Call one function of the library. See `execute`.

        Raises:
            ResponseError: it failed.
        """
        return await self.call("FCALL", name, len(keys), *keys, *arguments)

    async def execute(
        self, commands: Sequence[Command], *, is_patient: bool = False
    ) -> list[Reply]:
        """Run commands that are safe to repeat, in one write, until all are answered.

        Cancelling is safe: what was sent may be done, and its replies reach nobody.

        Args:
            commands: the pipeline, without a transaction.
            is_patient: ride out a full server, too, instead of failing at once.

        Returns:
            The replies; a refused command's is the ResponseError itself.

        Raises:
            Unavailable: no answer before the deadline, or the server is full.
            ConfigError: credentials, permissions or cluster mode.
        """
        payload, retries = pack(commands), Retries(self.deadline_s)
        while True:
            try:
                replies = await self._exchange(payload, len(commands))
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                await retries.pause(error, classify(error))
                continue
            failed = next((reply for reply in replies if _is_outage(reply)), None)
            if failed is None:
                return replies
            fault = classify(failed)
            if fault is Fault.RELOAD:
                self._is_prepared = False
            is_waiting = fault is Fault.RELOAD or (fault is Fault.FULL and is_patient)
            await retries.pause(failed, Fault.RETRY if is_waiting else fault)

    def reader(self) -> "Reader":
        """A connection of its own for blocking reads, closed with the bus."""
        reader = Reader(self, self._open_link())
        self._readers.append(reader)
        return reader

    def _open_link(self) -> Link:
        return Link(self._connections.connection_class(**self._connections.connection_kwargs))

    async def _exchange(self, payload: bytes, num_replies: int) -> list[Reply]:
        async with self._free:
            link = self._idle.pop() if self._idle else self._open_link()
            try:
                if not self._is_prepared:
                    await self._prepare(link)
                return await link.exchange(payload, num_replies, timeout_s=COMMAND_TIMEOUT_S)
            except (RedisError, OSError):
                self.num_losses += 1
                raise
            finally:
                self._idle.append(link)

    async def _prepare(self, link: Link) -> None:
        await library.check_server(link)
        await library.install(link)
        self._is_prepared = True
        _log.info("bus_ready", worker_id=self.worker_id)


class Reader:
    """A connection for blocking reads, with one caller at a time."""

    def __init__(self, bus: Bus, link: Link) -> None:
        self.link = link
        self._bus = bus

    async def read(self, *command: Argument, block_s: float) -> Reply:
        """Run one blocking read that is safe to repeat, whose own BLOCK is `block_s`.

        Cancelling closes the connection: an answer under way is lost to this process, so only reads
        that deliver nothing (XREAD), or nothing that matters (NOACK), belong here.

        Raises:
            ResponseError: the server refused it.
            Unavailable: no server before the bus's deadline.
            ConfigError: see `Bus.execute`.
        """
        payload, retries = pack([command]), Retries(self._bus.deadline_s)
        while True:
            try:
                (reply,) = await self.link.exchange(payload, 1, timeout_s=block_s + READ_MARGIN_S)
            except (RedisError, OSError) as error:
                self._bus.num_losses += 1
                await retries.pause(error, classify(error))
                continue
            if not isinstance(reply, ResponseError):
                return reply
            await retries.pause(reply, classify(reply))


def _is_outage(reply: Reply) -> bool:
    refusals = (Fault.REFUSED, Fault.REGROUP)
    return isinstance(reply, ResponseError) and classify(reply) not in refusals


def _client(url: str, name: str, *, timeout_s: float | None) -> Redis:
    """A plain client: RESP2, one try a command. Connects on first use.

    Raises:
        ConfigError: the URL cannot be read.
    """
    try:
        return Redis.from_url(
            url,
            protocol=2,  # replies of one shape on every server
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=timeout_s,
            client_name=name,
        )
    except ValueError as error:
        raise ConfigError(f"redis-url: {error}") from error
