"""The thread that runs rounds. All torch of this process runs here."""

import threading

import structlog

from shared.common.scheduling import give_way
from target_worker.engine import Engine
from target_worker.handover import Handover

IDLE_S = 0.25  # between signs of life while there is nothing to do

_log = structlog.get_logger()


class EngineThread(threading.Thread):
    """Runs an engine until it is told to stop, or breaks.

    Args:
        engine: used by this thread alone from `start` on, counts for statistics excepted.
        handover: orders and outcomes.
    """

    def __init__(self, engine: Engine, handover: Handover) -> None:
        super().__init__(name="engine", daemon=True)  # a hung engine must not keep the process
        self._engine = engine
        self._handover = handover
        self.num_turns = 0  # grows as long as the loop makes progress, idle or not
        self.error: Exception | None = None

    def run(self) -> None:
        """See threading.Thread. Whatever ends it early is kept in `error`."""
        give_way()
        try:
            while not self._handover.is_stopping:
                self._turn()
                self.num_turns += 1
            self._engine.dismiss_drafters()
            self._publish()
        except Exception as error:  # the worker ends with it, non-zero  # noqa: BLE001
            _log.exception("engine_broken")
            self.error = error

    def _turn(self) -> None:
        engine, handover = self._engine, self._handover
        handover.take(engine)
        if handover.is_full:
            engine.rest()
            self._publish()
            handover.wait(IDLE_S)
            return
        pause = engine.step()
        self._publish()
        if pause.seconds is None:
            handover.wait(IDLE_S)
        elif pause.seconds > 0.0:
            handover.wait(pause.seconds)

    def _publish(self) -> None:
        outcome = self._engine.take_outcome()
        if outcome:
            self._handover.publish(outcome)
