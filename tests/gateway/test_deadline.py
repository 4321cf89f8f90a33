"""One timer for many waits (gateway/deadline.py)."""

import asyncio

import pytest

from gateway.deadline import Deadline

LIMIT_S = 0.02


async def test_waits_that_end_in_time_take_together_as_long_as_they_like() -> None:
    """The limit is each one's own, though their timer is one."""
    deadline, num_done = Deadline(LIMIT_S), 0
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + 3 * LIMIT_S
    while loop.time() < ends_s:
        await deadline.wait(asyncio.sleep(LIMIT_S / 10))
        num_done += 1
    deadline.close()
    assert num_done > 3


async def test_a_wait_that_takes_too_long_is_ended() -> None:
    """Also one that began long after the timer was set, and not before its own time."""
    deadline = Deadline(LIMIT_S)
    await deadline.wait(asyncio.sleep(LIMIT_S / 2))
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await deadline.wait(asyncio.Event().wait())
    assert asyncio.get_running_loop().time() - began_s >= LIMIT_S
    await deadline.wait(asyncio.sleep(0))  # the task goes on undisturbed
    deadline.close()


async def test_who_cancels_from_outside_is_heard() -> None:
    """A cancelled task is cancelled, not late."""
    deadline = Deadline(60.0)

    async def serve() -> None:
        await deadline.wait(asyncio.Event().wait())

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    deadline.close()


async def test_errors_come_out_as_they_are() -> None:
    """The limit adds nothing to them."""

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError

    deadline = Deadline(LIMIT_S)
    with pytest.raises(KeyError):
        await deadline.wait(fail())
    deadline.close()
