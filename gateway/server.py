"""One gateway process: everything wired together, started, drained, stopped."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import structlog
import uvicorn

from gateway.admission import Admission
from gateway.app import Sockets, build_app
from gateway.bus import GatewayBus
from gateway.config import ROSTER_INTERVAL_S, GatewayConfig
from gateway.desk import Desk
from gateway.feed import Feed
from gateway.fleet_totals import FleetTotals
from gateway.metrics import Metrics
from gateway.models import Models
from gateway.roster import Roster
from gateway.transport import BoundedWebSocket
from shared.bus.connection import Bus
from shared.common.clock import Clock, SystemClock
from shared.common.errors import ConfigError
from shared.protocol.keys import Keys
from shared.protocol.limits import MAX_BODY_BYTES

BUS_DEADLINE_S = 5.0  # clients wait behind these calls
MAX_FRAME_BYTES = MAX_BODY_BYTES + 4_096  # a body in its envelope
CLOSE_S = 2  # for what is left when the drain has run out
_log = structlog.get_logger("gateway")


def new_gateway_id() -> str:
    """`gateway:` and eight random hex digits."""
    return f"gateway:{secrets.token_hex(4)}"


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us: a drain first, and status 0 after it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.asked_to_stop = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None  # once it runs

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets=sockets)
        listening = [found for server in self.servers for found in server.sockets]
        _log.info("gateway_ready", addresses=[_address(found) for found in listening])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop now."""
        del sig, frame
        if self.asked_to_stop.is_set():
            self.should_exit = True
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.asked_to_stop.set)


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"{host}:{port}"


class Gateway:
    """The parts of one gateway over one bus connection.

    Args:
        config: the settings.
        bus: connected; closed by whoever connected it.
        clock: for latencies.
    """

    def __init__(self, config: GatewayConfig, bus: Bus, clock: Clock) -> None:
        ours = GatewayBus(bus)
        self._config = config
        self.admission = Admission(max_streams=config.max_streams, max_waiting=config.max_waiting)
        self._totals = FleetTotals()
        self.metrics = Metrics(self.admission, self._totals)
        self._roster = Roster(ours, clock)
        self.feed = Feed(ours, ours)
        desk = Desk(
            ours,
            gateway_id=ours.gateway_id,
            feed=self.feed,
            admission=self.admission,
            roster=self._roster,
            metrics=self.metrics,
            clock=clock,
        )
        self.sockets = Sockets(desk, config)
        models = Models(self._roster, self.admission, self.metrics)
        app = build_app(config, desk, models, self.sockets)
        self.server = Server(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                loop="uvloop",
                http="httptools",
                ws=BoundedWebSocket,
                ws_max_size=MAX_FRAME_BYTES,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=config.max_connections,
                timeout_graceful_shutdown=CLOSE_S,
            )
        )

    async def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until SIGTERM or `stop`, drain, return.

        Args:
            sockets: already listening; None listens where the settings say.
        Raises:
            ConfigError: the address cannot be listened on.
        """
        is_listening = True
        self.server.loop = asyncio.get_running_loop()
        await self._roster.look()
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self.feed.run()),
                tasks.create_task(self._watch_fleet()),
                tasks.create_task(self._drain_when_asked()),
            ]
            try:
                await self.server.serve(sockets)
            except SystemExit:  # uvicorn's way to say that it cannot listen
                is_listening = False
            finally:
                for task in background:
                    task.cancel()
        if not is_listening:
            raise ConfigError(f"cannot listen on {self._config.host}:{self._config.port}")

    def stop(self) -> None:
        """Ask for a drain, as SIGTERM does."""
        self.server.asked_to_stop.set()

    async def _watch_fleet(self) -> None:
        while True:
            await self._roster.look()
            self._totals.update(self._roster.workers)
            self.metrics.num_catch_ups = self.feed.num_catch_ups
            await asyncio.sleep(ROSTER_INTERVAL_S)

    async def _drain_when_asked(self) -> None:
        await self.server.asked_to_stop.wait()
        self.admission.is_draining = True
        _log.info("drain_started", num_streams=self.admission.num_streams)
        try:
            async with asyncio.timeout(self._config.drain_s):
                await self.sockets.drain()
                await self.admission.idle()
        except TimeoutError:
            _log.warning("drain_cut_short", num_streams=self.admission.num_streams)
        self.server.should_exit = True


@asynccontextmanager
async def open_gateway(
    config: GatewayConfig, *, gateway_id: str, clock: Clock | None = None
) -> AsyncIterator[Gateway]:
    """A gateway over a bus connection of its own.

    Raises:
        ConfigError: the server's address or settings cannot work.
        Unavailable: no server answers.
    """
    bus = await Bus.connect(
        config.redis_url,
        keys=Keys(config.key_prefix),
        worker_id=gateway_id,
        deadline_s=BUS_DEADLINE_S,
    )
    try:
        yield Gateway(config, bus, clock or SystemClock())
    finally:
        await bus.close()
