"""One limit on many short waits, one after the other, with one timer for all of them.

A write to a client that reads takes microseconds, less than a timer of its own.
"""

import asyncio
from collections.abc import Awaitable


class Deadline:
    """Lets each wait take `limit_s` at most. One wait at a time, all in one task; close it after.

    Args:
        limit_s: seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._began_s: float | None = None  # the wait under way
        self._task: asyncio.Task[object] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._is_late = False

    async def wait(self, awaitable: Awaitable[object]) -> None:
        """Await something.

        Raises:
            TimeoutError: it was not done in time, and has been cancelled.
        """
        self._began_s = self._loop.time()
        if self._alarm is None:
            self._task = asyncio.current_task()
            self._alarm = self._loop.call_later(self._limit_s, self._look)
        try:
            await awaitable
        except asyncio.CancelledError as error:
            assert self._task is not None
            if self._is_late and self._task.uncancel() == 0:
                raise TimeoutError from error
            raise  # somebody else wants it to end
        finally:
            self._began_s = None
            self._is_late = False

    def close(self) -> None:
        """No more waits."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _look(self) -> None:
        self._alarm = None
        if self._began_s is None:
            return  # the next wait sets it again
        left_s = self._began_s + self._limit_s - self._loop.time()
        if left_s > 0.0:
            self._alarm = self._loop.call_later(left_s, self._look)
        else:
            assert self._task is not None
            self._is_late = True
            self._task.cancel()
