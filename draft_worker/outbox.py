"""Mail on its way out: whatever gathers for a target while a batch is sent goes in the next one.

Soft and bounded: behind a slow server the oldest messages to a target go first, for newer paths say
more.
"""

import asyncio
from collections import deque

import structlog

from draft_worker.service import Mail
from shared.bus.connection import Bus
from shared.bus.mail import post_command
from shared.common.errors import Unavailable
from shared.protocol.limits import MAX_PATHS_PER_BATCH
from shared.protocol.messages import Message

_log = structlog.get_logger()


class Outbox:
    """Gathers mail and sends it. All methods on the event loop's thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, deque[Message]] = {}
        self._has_mail = asyncio.Event()

    def put(self, mail: Mail) -> None:
        """Take mail; never blocks."""
        for target_id, messages in mail.items():
            queue = self._waiting.get(target_id)
            if queue is None:
                queue = self._waiting[target_id] = deque(maxlen=MAX_PATHS_PER_BATCH)
            queue.extend(messages)
        self._has_mail.set()

    async def run(self) -> None:
        """Send for ever. Several may run: what comes while one waits for its reply goes at once."""
        while True:
            await self._has_mail.wait()
            await self.flush()

    async def flush(self) -> None:
        """Send what waits now. What a server that is away does not take is dropped."""
        self._has_mail.clear()
        waiting, self._waiting = self._waiting, {}
        commands = [
            post_command(self._bus, target_id, tuple(messages))
            for target_id, messages in waiting.items()
        ]
        if not commands:
            return
        try:
            await self._bus.execute(commands)
        except Unavailable as error:
            _log.warning("proposals_dropped", reason=str(error), num_targets=len(commands))
