"""CPU time by process and thread (bench/usage.py)."""

import os
import subprocess
import sys
import threading
import time

import pytest

from bench.usage import CLIENT, COMPUTING, MAIN, by_process, look, spent
from shared.common.scheduling import give_way

BUSY_S = 0.1

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_a_thread_that_gave_way_is_told_from_the_main_one() -> None:
    """What a thread of its own niceness spends is counted as computing, while it lives."""
    done, release = threading.Event(), threading.Event()

    def compute() -> None:
        give_way()
        while time.thread_time() < BUSY_S:
            pass
        done.set()
        release.wait()

    before = look()
    thread = threading.Thread(target=compute)
    thread.start()
    done.wait()
    seconds = spent(before, look())
    release.set()
    thread.join()
    assert seconds[CLIENT, COMPUTING] >= BUSY_S / 2  # ticks are a hundredth of a second


def test_a_child_is_counted_by_what_it_runs() -> None:
    """A process that this one started is named by its module."""
    before = look()
    with subprocess.Popen(
        [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", "-s", "pass", "input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as child:
        while ("timeit", MAIN) not in look():
            time.sleep(0)
        after = look()
        child.communicate(b"\n")
    assert "timeit" in by_process(after)
    assert "timeit" not in by_process(before)


def test_what_did_nothing_is_left_out() -> None:
    """Only threads that spent time between two looks are told."""
    assert spent({("a", MAIN): 1.0}, {("a", MAIN): 1.0, ("b", MAIN): 2.0}) == {("b", MAIN): 2.0}


def test_a_child_that_ended_and_is_not_waited_for_yet_is_left_without_a_name() -> None:
    """A process without words is no reason to lose a bench of minutes."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert ("?", MAIN) in look()
