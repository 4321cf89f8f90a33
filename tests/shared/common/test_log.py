import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared.common import log


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Logs of a configured process; the test's own logging is put back afterwards."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure("gateway", "gateway:12ab", stream=stream)
    yield stream
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_that_says_who_logged_it(out: io.StringIO) -> None:
    """Role, worker, level and time come with every event."""
    structlog.get_logger().info("stream_finished", num_accepted=3)
    (event,) = events(out)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "stream_finished",
        "level": "info",
        "num_accepted": 3,
        "role": "gateway",
        "worker_id": "gateway:12ab",
    }


def test_events_below_the_level_are_dropped(out: io.StringIO) -> None:
    """The default level is info."""
    structlog.get_logger().debug("details")
    assert events(out) == []


def test_the_standard_library_comes_out_the_same_way(out: io.StringIO) -> None:
    """uvicorn and asyncio log through it."""
    logging.getLogger("uvicorn.error").warning("shutting %s", "down")
    (event,) = events(out)
    assert (event["event"], event["level"], event["role"]) == (
        "shutting down",
        "warning",
        "gateway",
    )


def test_a_traceback_stays_on_its_line_without_local_variables(out: io.StringIO) -> None:
    """Local variables may hold prompts."""
    prompt = "secret".upper()
    try:
        prompt.index("x")
    except ValueError:
        structlog.get_logger().exception("round_failed")
    (event,) = events(out)
    assert "ValueError: substring not found" in event["exception"]
    assert "SECRET" not in out.getvalue()


def test_bound_context_is_part_of_each_event(out: io.StringIO) -> None:
    """A request id bound once is on every event of the request."""
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger().info("opened")
    assert events(out)[0]["request_id"] == "r1"


def test_a_thread_that_dies_is_logged(out: io.StringIO) -> None:
    """Nothing ends in silence."""
    thread = threading.Thread(target=lambda: 1 // 0, name="engine")
    thread.start()
    thread.join()
    (event,) = events(out)
    assert (event["event"], event["thread"]) == ("thread_died", "engine")


def test_a_terminal_gets_readable_lines() -> None:
    """A person at a terminal reads words, not JSON."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    handlers = logging.getLogger().handlers[:]
    hook = threading.excepthook
    try:
        log.configure("stack", "", stream=stream)
        structlog.get_logger().info("worker_started", pid=7)
    finally:
        structlog.reset_defaults()
        logging.captureWarnings(capture=False)
        logging.getLogger().handlers[:], threading.excepthook = handlers, hook
    assert "worker_started" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
