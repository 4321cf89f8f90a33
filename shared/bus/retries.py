"""When to try again, and when to give up."""

import asyncio
import random

import structlog

from shared.bus.faults import Fault
from shared.common.errors import ConfigError, Unavailable

_FIRST_DELAY_S, _MAX_DELAY_S = 0.02, 1.0

_log = structlog.get_logger()


class Retries:
    """The tries of one call: jittered, growing pauses until a deadline."""

    def __init__(self, deadline_s: float) -> None:
        self._ends_s = asyncio.get_running_loop().time() + deadline_s
        self._num_failures = 0

    async def pause(self, error: Exception, fault: Fault) -> None:
        """Wait before the next try; not after the first failure: an idle link may have gone stale.

        Raises:
            ConfigError: no try will ever do.
            Unavailable: the deadline has passed, or the server is full.
            Exception: `error` itself, where it is an answer.
        """
        if fault is Fault.CONFIG:
            raise ConfigError(f"redis-url: {error}") from error
        if fault is Fault.FULL:
            raise Unavailable("the message server is full", code="server_full") from error
        if fault in (Fault.REFUSED, Fault.REGROUP):
            raise error
        left_s = self._ends_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise Unavailable("the message server does not answer", code="server_away") from error
        if self._num_failures == 1:
            _log.warning("server_away", reason=str(error))
        if self._num_failures:
            longest_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2**self._num_failures)
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            await asyncio.sleep(min(longest_s * jitter, left_s))
        self._num_failures += 1
