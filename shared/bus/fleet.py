"""Who is alive: heartbeats of the workers, and what they say of themselves."""

import msgspec
import structlog

from shared.bus.connection import Bus
from shared.common.errors import PeerError
from shared.protocol.limits import LEASE_S
from shared.protocol.workers import WorkerStatus, decode_status

_log = structlog.get_logger()


class Fleet:
    """All workers, seen from one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def beat(self, status: WorkerStatus) -> None:
        """Say that this worker makes progress: every HEARTBEAT_INTERVAL_S, and only while it does.

        A worker without a heartbeat is given no jobs and loses those it has.
        """
        keys = self._bus.keys
        lease_ms = round(LEASE_S * 1_000)
        heartbeat = keys.heartbeat(status.worker_id)
        await self._bus.execute(
            [
                ("SET", heartbeat, msgspec.json.encode(status), "PX", lease_ms),
                ("SADD", keys.workers, status.worker_id),
            ],
            is_patient=True,
        )

    async def retire(self, worker_id: str) -> None:
        """Say that a worker is gone: what it still holds may be taken over at once."""
        keys = self._bus.keys
        await self._bus.execute(
            [("DEL", keys.heartbeat(worker_id)), ("SREM", keys.workers, worker_id)]
        )

    async def workers(self) -> list[WorkerStatus]:
        """The workers that have a heartbeat, sorted by id; unreadable ones are left out."""
        keys = self._bus.keys
        names = sorted(name.decode() for name in await self._bus.call("SMEMBERS", keys.workers))
        if not names:
            return []
        beats = await self._bus.call("MGET", *map(keys.heartbeat, names))
        gone = [name for name, beat in zip(names, beats, strict=True) if beat is None]
        if gone:  # one that is only late says so with its next beat
            await self._bus.call("SREM", keys.workers, *gone)
        return [status for beat in beats if beat is not None and (status := _status(beat))]


def _status(beat: bytes) -> WorkerStatus | None:
    try:
        return decode_status(beat)
    except PeerError as error:
        _log.warning("heartbeat_unreadable", reason=str(error))
        return None
