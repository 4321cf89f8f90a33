import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stack.child import Child
from stack.commands import Command
from stack.output import Output

HOLDER = """
import asyncio, sys
from pathlib import Path
from stack.child import Child
from stack.commands import Command
from stack.output import Output
folder = Path(sys.argv[1])
argv = (sys.executable, "-S", "-c", "import os, time; print(os.getpid()); time.sleep(600)")
asyncio.run(Child(Command("c", argv, 1.0), Output(folder / "c.log", print)).run())
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    """A child that runs Python code, its log in `c.log`."""
    output = Output(tmp_path / "c.log", lambda _line: None)

    def make(code: str) -> Child:
        return Child(Command("c", (sys.executable, "-S", "-u", "-c", code), 10.0), output)

    yield make
    output.close()


Make = Callable[[str], Child]


async def test_a_child_runs_to_its_end_with_its_output_logged(child: Make, tmp_path: Path) -> None:
    """Both streams go to the one log, in order."""
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert await child(code).run() == 3
    assert (tmp_path / "c.log").read_text() == "out\nerr\n"


async def test_a_child_gets_one_thread_and_the_tree(child: Make, tmp_path: Path) -> None:
    """What slows small models down is set before torch can be imported."""
    code = "import os; print(os.environ['OMP_NUM_THREADS']); import kernels, gateway; print('ok')"
    assert await child(code).run() == 0
    assert (tmp_path / "c.log").read_text() == "1\nok\n"


async def test_a_child_has_a_process_group_of_its_own(child: Make, tmp_path: Path) -> None:
    """Ctrl-C in the terminal must not reach it before the stack does."""
    code = "import os; print(os.getpgid(0) == os.getpid())"
    assert await child(code).run() == 0
    assert (tmp_path / "c.log").read_text() == "True\n"


async def test_a_signal_that_ends_a_child_is_its_status(child: Make) -> None:
    """Negative, as everywhere in Python."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert await child(code).run() == -signal.SIGKILL


async def test_stopping_a_child_that_never_ran_does_nothing(child: Make) -> None:
    """Ending a stack that has hardly begun is no error."""
    one = child("")
    await one.stop()
    assert one.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties children to their parent")
async def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Even kill -9 of the stack leaves nothing behind."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(tmp_path), cwd=Path(__file__).parents[2]
    )
    log = tmp_path / "c.log"
    async with asyncio.timeout(20):
        while not (log.exists() and log.read_text().strip()):
            await asyncio.sleep(0.02)
        pid = int(log.read_text())
        os.kill(holder.pid, signal.SIGKILL)
        await holder.wait()
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.02)
