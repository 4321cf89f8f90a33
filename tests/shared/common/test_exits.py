"""shared/common/exits.py: the status tells an operator, or a supervisor, what has happened."""

import subprocess
import sys

from shared.common.errors import Unavailable
from shared.common.exits import EXIT_ENGINE_FAILED, EXIT_UNAVAILABLE, run_worker

HANGING = """
import threading
from shared.common.exits import run_worker
async def serve():
    threading.Thread(target=threading.Event().wait).start()
    raise ArithmeticError("broken")
run_worker(serve(), engine_failed=ArithmeticError)
"""


def test_a_worker_that_was_told_to_go_exits_with_0() -> None:
    """It returned."""

    async def serve() -> None:
        return

    assert run_worker(serve(), engine_failed=ArithmeticError) == 0


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
