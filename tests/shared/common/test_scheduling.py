import gc
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from shared.common.scheduling import (
    NICENESS,
    SWITCH_INTERVAL_S,
    collect_little,
    give_way,
    switch_often,
)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_a_thread_gives_way_alone() -> None:
    """It gets less, once more than its process; the other threads keep what they have."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def compute() -> None:
        give_way()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [min(before + NICENESS, 19)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.fixture
def interval() -> Iterator[None]:
    """The interpreter's own setting, put back."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_the_interpreter_changes_hands_often(interval: None) -> None:
    """Well within a round."""
    switch_often()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)


@pytest.fixture
def thawed() -> Iterator[None]:
    """Afterwards everything is collected as ever."""
    yield
    gc.unfreeze()


def test_what_is_there_at_the_start_is_not_looked_at_again(thawed: None) -> None:
    """What comes later is."""
    old: list[object] = []
    collect_little()
    new: list[object] = []
    left = gc.get_objects()
    assert not any(one is old for one in left)
    assert any(one is new for one in left)
