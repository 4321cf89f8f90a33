"""Which workers live, by their heartbeats, and what they serve."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from gateway.config import ROSTER_INTERVAL_S, ROSTER_STALE_S
from shared.common.clock import Clock
from shared.common.errors import ClientError, Unavailable
from shared.protocol.workers import WorkerStatus

TARGET = "target"
_MIN_REFRESH_S = 0.2  # an unknown model name must not turn into a read a request


class Fleet(Protocol):
    """The part of the bus that reads heartbeats."""

    async def workers(self) -> Sequence[WorkerStatus]:
        """Every worker with a heartbeat. Raises Unavailable while the server does not answer."""
        ...

    async def num_unclaimed(self) -> int:
        """Jobs that no worker has been given. Raises Unavailable."""
        ...


class Roster:
    """The last look at the heartbeats, and whether it is fresh.

    Args:
        fleet: where they are read.
        clock: for freshness.
    """

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._looked_s: float | None = None
        self._logger = structlog.get_logger("roster")
        self.workers: tuple[WorkerStatus, ...] = ()
        self.num_unclaimed = 0

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(ROSTER_INTERVAL_S)

    async def look(self) -> None:
        """Read the heartbeats once. While the server is away the last look stays, and grows old."""
        try:
            self.workers = tuple(await self._fleet.workers())
            self.num_unclaimed = await self._fleet.num_unclaimed()
        except Unavailable as error:
            self._logger.warning("heartbeats_unreadable", reason=str(error))
        else:
            self._looked_s = self._clock.monotonic_s()

    @property
    def is_fresh(self) -> bool:
        """Whether the server answered lately."""
        return self._age_s() < ROSTER_STALE_S

    @property
    def targets(self) -> list[WorkerStatus]:
        """Target workers that take new jobs."""
        return [worker for worker in self.workers if self._is_open(worker)]

    @property
    def is_ready(self) -> bool:
        """Whether a request could be served now."""
        return self.is_fresh and bool(self.targets)

    @property
    def num_waiting(self) -> int:
        """Jobs that no target worker has begun."""
        return self.num_unclaimed + sum(
            worker.num_waiting for worker in self.workers if worker.role == TARGET
        )

    @property
    def models(self) -> dict[str, WorkerStatus]:
        """What is served, and for each the worker with the largest context."""
        found: dict[str, WorkerStatus] = {}
        for worker in sorted(self.targets, key=lambda target: target.max_model_len):
            found[worker.model] = worker
        return dict(sorted(found.items()))

    async def require(self, model: str) -> None:
        """Check that somebody serves `model`.

        Raises:
            Unavailable: no target worker takes jobs, or none of this model does any more (503).
            ClientError: nobody knows the model (404).
        """
        if model not in self.models and self._age_s() > _MIN_REFRESH_S:
            await self.look()
        if not self.is_fresh:
            raise Unavailable("the message server does not answer", code="no_server")
        if model in self.models:
            return
        is_closing = any(worker.role == TARGET and worker.model == model for worker in self.workers)
        if is_closing or not self.targets:
            raise Unavailable("no worker is there to serve this now", code="no_target")
        raise ClientError(
            f"the model {model[:64]!r} does not exist",
            param="model",
            code="model_not_found",
            status=404,
        )

    def _age_s(self) -> float:
        if self._looked_s is None:
            return float("inf")
        return self._clock.monotonic_s() - self._looked_s

    @staticmethod
    def _is_open(worker: WorkerStatus) -> bool:
        return worker.role == TARGET and not worker.is_draining
