"""Structured logs: one event a fact, JSON lines on stderr, readable ones if stderr is a terminal.

Everything that logs through the standard library (uvicorn, asyncio, warnings) comes out the same
way. Never log prompts, tokens or text; tracebacks show no local variables for the same reason.
"""

import logging
import sys
import threading
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(
    role: str, worker_id: str, *, level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up this process's logs. Call once, before the first event.

    Args:
        role: who logs (`gateway`, `target_worker`, …); a field of every event.
        worker_id: which one of them; a field of every event, "" leaves it out.
        level: debug, info, warning or error. Other people's libraries never log below info.
        stream: where to, stderr by default.
    Raises:
        KeyError: an unknown level.
    """
    number = _LEVELS[level]
    out = sys.stderr if stream is None else stream
    shared = _shared_processors(role, worker_id)
    structlog.configure(
        processors=[*shared, *_renderers(out)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    _bridge_standard_library(out, shared, max(number, logging.INFO))


def _shared_processors(role: str, worker_id: str) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        _who(role, worker_id),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _who(role: str, worker_id: str) -> Processor:
    fields = {"role": role} | ({"worker_id": worker_id} if worker_id else {})

    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**fields, **event}

    return add


def _renderers(out: TextIO) -> list[Processor]:
    if out.isatty():
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain, pad_event_to=0)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_json),
    ]


def _json(event: EventDict, **_unused: Any) -> str:  # noqa: ANN401 - structlog's own signature
    return msgspec.json.encode(event, enc_hook=repr).decode()


def _bridge_standard_library(out: TextIO, shared: list[Processor], level: int) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(out)],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(capture=True)
    _log_dying_threads()


def _log_dying_threads() -> None:
    log = structlog.get_logger("thread")

    def report(args: threading.ExceptHookArgs) -> None:
        log.error("thread_died", thread=getattr(args.thread, "name", ""), exc_info=args.exc_value)

    threading.excepthook = report
