"""How a worker's process ends: the exit status says why."""

import asyncio
import os
import sys
from collections.abc import Coroutine

import structlog

from shared.common.errors import Unavailable

EXIT_UNAVAILABLE = 1
EXIT_ENGINE_FAILED = 70  # EX_SOFTWARE

_log = structlog.get_logger()


def run_worker(serve: Coroutine[None, None, None], *, engine_failed: type[Exception]) -> int:
    """Run an event loop until `serve` is over; the exit status.

    Args:
        serve: the worker, from its first connection to its last.
        engine_failed: what it raises when a thread of its own is broken or hangs. That ends the
            process here and now: an orderly exit could wait for the thread.
    """
    try:
        asyncio.run(serve)
    except Unavailable as error:
        _log.error("server_unavailable", reason=str(error))
        return EXIT_UNAVAILABLE
    except engine_failed as error:
        _log.exception("engine_failed", reason=str(error))
        sys.stderr.flush()
        os._exit(EXIT_ENGINE_FAILED)
    return 0
