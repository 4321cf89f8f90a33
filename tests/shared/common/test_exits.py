"""shared/common/exits.py: the status tells an operator, or a supervisor, what has happened."""

import gc
import signal
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from shared.common.errors import Unavailable
from shared.common.exits import (
    EXIT_ENGINE_FAILED,
    EXIT_UNAVAILABLE,
    exits_when_unavailable,
    leaving_on_signals,
    run_worker,
)

HANGING = """
import threading
from shared.common.exits import run_worker
async def serve():
    threading.Thread(target=threading.Event().wait).start()
    raise ArithmeticError("broken")
run_worker(serve(), engine_failed=ArithmeticError)
"""


def test_a_worker_that_was_told_to_go_exits_with_0() -> None:
    """It returned; while it served, nobody looked for garbage among what it had loaded."""
    num_frozen = []

    async def serve() -> None:
        num_frozen.append(gc.get_freeze_count())

    assert run_worker(serve(), engine_failed=ArithmeticError) == 0
    gc.unfreeze()
    assert num_frozen[0] > 0


def test_a_worker_without_a_server_exits_with_1() -> None:
    """It can be started again as it is."""

    async def serve() -> None:
        raise Unavailable("no server")

    assert run_worker(serve(), engine_failed=ArithmeticError) == EXIT_UNAVAILABLE


def test_a_hanging_thread_does_not_keep_a_broken_worker() -> None:
    """The process is gone at once, with a status of its own and the reason."""
    command = [sys.executable, "-c", HANGING]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == EXIT_ENGINE_FAILED
    assert "engine_failed" in ended.stdout + ended.stderr


def test_a_model_that_cannot_be_fetched_now_is_one_event() -> None:
    """And the status of whoever may be started again."""
    with capture_logs() as logs, pytest.raises(SystemExit) as exit_info, exits_when_unavailable():
        raise Unavailable("the hub is away")
    assert exit_info.value.code == EXIT_UNAVAILABLE
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("model_unavailable", "the hub is away")
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_loop_leaves_in_order(number: signal.Signals) -> None:
    """What is being done is undone on the way out; afterwards the handlers are those of before."""
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_info, leaving_on_signals():
        signal.raise_signal(number)
    assert (exit_info.value.code, signal.getsignal(number)) == (0, before)
