"""How a worker's process ends: the exit status says why."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

import structlog

from shared.common.errors import Unavailable
from shared.common.scheduling import collect_little

EXIT_UNAVAILABLE = 1
EXIT_ENGINE_FAILED = 70  # EX_SOFTWARE
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger()


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end the process in order, before an event loop takes them over.

    The default would kill it, and leave pieces of files in a cache that others use.
    """
    before = {number: signal.signal(number, _leave) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(0)


@contextmanager
def exits_when_unavailable() -> Iterator[None]:
    """Turn Unavailable, before the event loop runs, into one event and a status to try again by."""
    try:
        yield
    except Unavailable as error:
        _log.error("model_unavailable", reason=str(error))
        raise SystemExit(EXIT_UNAVAILABLE) from error


def run_worker(serve: Coroutine[None, None, None], *, engine_failed: type[Exception]) -> int:
    """Run an event loop until `serve` is over; the exit status.

    Args:
        serve: the worker, from its first connection to its last; its model is loaded.
        engine_failed: what it raises when a thread of its own is broken or hangs. That ends the
            process here and now: an orderly exit could wait for the thread.
    """
    collect_little()
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
