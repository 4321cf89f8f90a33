"""The thread that drafts: messages in, one batched step, proposals out, over and over.

The other thread does the I/O, so that a verdict is received and decoded while a step computes. It
is taken in right after the step or, where a device computes by itself, until the next one begins.
"""

import queue
import threading
from collections.abc import Callable

from draft_worker.service import DraftService, Mail
from shared.common.clock import Clock
from shared.common.scheduling import give_way
from shared.protocol.messages import DraftRequest, Message

_IDLE_S = 0.25  # a loop without work still turns this often: it shows progress and drops the silent
_SWEEP_INTERVAL_S = 1.0


class DraftLoop:
    """Runs a service in a thread of its own until `stop`.

    Args:
        service: touched by this thread alone while it runs.
        emit: takes the mail of one step; called in this thread, must be quick and not raise.
        clock: for progress and for silent sessions.
    """

    def __init__(
        self, service: DraftService, *, emit: Callable[[Mail], None], clock: Clock
    ) -> None:
        self.error: BaseException | None = None  # why the thread ended early
        self._service = service
        self._emit = emit
        self._clock = clock
        self._incoming: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._num_posted = 0  # requests, by the one thread that posts them
        self._num_taken = 0  # requests, by the drafting thread
        self._turned_s = clock.monotonic_s()
        self._swept_s = self._turned_s
        self._thread = threading.Thread(target=self._run, name="draft-loop", daemon=True)

    @property
    def stalled_s(self) -> float:
        """How long the current turn has taken. Large: the engine hangs."""
        return self._clock.monotonic_s() - self._turned_s

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def num_free(self) -> int:
        """How many requests may be posted and expect a seat."""
        return self._service.num_free - (self._num_posted - self._num_taken)

    def post(self, message: Message) -> None:
        """Hand over one message; never blocks. One thread posts."""
        self._num_posted += isinstance(message, DraftRequest)
        self._incoming.put(message)

    def stop(self, timeout_s: float) -> None:
        """Close all sessions, emit that, and end; waits `timeout_s` at most for a running step."""
        self._incoming.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        give_way()
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.error = error
            raise
        self._send(self._service.close_all())

    def _turn(self) -> bool:
        messages = self._received()
        now_s = self._turned_s = self._clock.monotonic_s()
        if messages:
            self._send(self._service.handle(message for message in messages if message is not None))
            self._num_taken += sum(isinstance(message, DraftRequest) for message in messages)
        if self._service.has_work and self._service.listen_s <= 0.0:
            self._send(self._service.step())
        if now_s - self._swept_s >= _SWEEP_INTERVAL_S:
            self._swept_s = now_s
            self._send(self._service.drop_silent())
        return None not in messages

    def _received(self) -> list[Message | None]:
        """All that has come; waits for the first only when there is nothing else to do."""
        messages: list[Message | None] = []
        wait_s = self._service.listen_s if self._service.has_work else _IDLE_S
        try:
            if wait_s > 0.0:
                messages.append(self._incoming.get(timeout=wait_s))
            while True:
                messages.append(self._incoming.get_nowait())
        except queue.Empty:
            return messages

    def _send(self, mail: Mail) -> None:
        if mail:
            self._emit(mail)
