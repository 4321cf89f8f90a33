"""Between the event loop and the engine thread: orders one way, outcomes the other, both bounded.

Orders are few: jobs that were admitted, and their ends. Guesses are soft, and the oldest give way.
Outcomes may run ahead of their commits by a few rounds; then the engine waits.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence

from shared.protocol.messages import Message
from target_worker.engine import Engine
from target_worker.outcome import Outcome

MAX_UNCOMMITTED_ROUNDS = 4  # a commit takes less than a round, or the server is in trouble
MAX_WAITING_BATCHES = 256  # of guesses; the engine takes all of them before each round

Order = Callable[[Engine], None]


class Handover:
    """Made on the event loop. Methods say which side calls them.

    Args:
        deliver: called on the event loop with each outcome.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Outcome], None]) -> None:
        self._loop = loop
        self._deliver = deliver
        self._orders: deque[Order] = deque()
        self._guesses: deque[tuple[float, Sequence[Message]]] = deque(maxlen=MAX_WAITING_BATCHES)
        self._wake = threading.Event()
        # Each is written by one side only, so neither needs a lock.
        self._num_published = 0
        self._num_committed = 0
        self.is_stopping = False

    def order(self, order: Order) -> None:
        """Loop: have something done to the engine before its next round."""
        self._orders.append(order)
        self._wake.set()

    def guess(self, messages: Sequence[Message], received_s: float) -> None:
        """Loop: pass on what drafters say."""
        self._guesses.append((received_s, messages))
        self._wake.set()

    def committed(self, num_outcomes: int) -> None:
        """Loop: so many outcomes are safe; the engine may run ahead again."""
        self._num_committed += num_outcomes
        self._wake.set()

    def stop(self) -> None:
        """Loop: the engine thread shall end after the round under way."""
        self.is_stopping = True
        self._wake.set()

    @property
    def is_full(self) -> bool:
        """Engine: whether too many outcomes wait for their commit."""
        return self._num_published - self._num_committed >= MAX_UNCOMMITTED_ROUNDS

    def take(self, engine: Engine) -> None:
        """Engine: carry out what was ordered, take in what was guessed."""
        # What is here now: who posts without end does not hold up the next round.
        for _ in range(len(self._orders)):
            self._orders.popleft()(engine)
        for _ in range(len(self._guesses)):
            received_s, messages = self._guesses.popleft()
            engine.receive(messages, received_s)

    def wait(self, timeout_s: float) -> None:
        """Engine: until something comes, at most so long."""
        self._wake.wait(timeout_s)
        self._wake.clear()

    def publish(self, outcome: Outcome) -> None:
        """Engine: give an outcome away. Once the loop is closed it goes nowhere."""
        self._num_published += 1
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcome)
        except RuntimeError:  # the loop is closed: the process is ending without us
            self.is_stopping = True
