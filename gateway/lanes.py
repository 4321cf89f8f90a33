"""The lanes of one WebSocket: requests with one `stream_id` one after the other, lanes in parallel.

Bookkeeping only; who runs a lane and what a request does is gateway.socket's business.
"""

from collections import deque
from typing import Generic, TypeVar

from shared.common.errors import Unavailable

Work = TypeVar("Work")


class Lanes(Generic[Work]):
    """Which requests wait behind which. Bounded in both directions.

    Args:
        max_lanes: with work at once.
        max_queue: requests waiting in one lane, the running one aside.
    """

    def __init__(self, *, max_lanes: int, max_queue: int) -> None:
        self._max_lanes = max_lanes
        self._max_queue = max_queue
        self._queues: dict[str | None, deque[Work]] = {}

    @property
    def num_busy(self) -> int:
        """Lanes with work."""
        return len(self._queues)

    def put(self, lane: str | None, work: Work) -> bool:
        """Queue work; True when the lane was idle and must be run now.

        Raises:
            Unavailable: too many lanes, or too much in this one (429).
        """
        queue = self._queues.get(lane)
        if queue is None:
            if len(self._queues) >= self._max_lanes:
                message = f"at most {self._max_lanes} lanes can work at once"
                raise Unavailable(message, status=429, code="too_many_lanes")
            self._queues[lane] = deque((work,))
            return True
        if len(queue) > self._max_queue:
            message = f"at most {self._max_queue} requests can wait in a lane"
            raise Unavailable(message, status=429, code="lane_full")
        queue.append(work)
        return False

    def head(self, lane: str | None) -> Work | None:
        """The work to do next; None retires the lane."""
        queue = self._queues.get(lane)
        if not queue:
            self._queues.pop(lane, None)
            return None
        return queue[0]

    def done(self, lane: str | None) -> None:
        """The head is finished."""
        self._queues[lane].popleft()
