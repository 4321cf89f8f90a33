"""One draft worker from its model to its last message: what `python -m draft_worker` runs."""

import asyncio
import signal

import structlog

from draft_worker.config import Config
from draft_worker.equipment import Equipment, equip
from draft_worker.worker import DraftWorker, EngineFailed
from shared.bus.connection import Bus
from shared.common.clock import SystemClock
from shared.common.exits import exits_when_unavailable, run_worker
from shared.protocol.keys import Keys

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger()


def run(config: Config, worker_id: str) -> int:
    """Load the model and draft until SIGTERM or SIGINT; the exit status.

    Raises:
        ConfigError: the model cannot be served so, or the server does not let us in.
    """
    for number in _SIGNALS:
        signal.signal(number, _leave_early)
    with exits_when_unavailable():
        equipment = equip(config)
    return run_worker(_serve(config, equipment, worker_id), engine_failed=EngineFailed)


def _leave_early(_number: int, _frame: object) -> None:
    """While the model is being loaded there is nothing to close."""
    raise SystemExit(0)


async def _serve(config: Config, equipment: Equipment, worker_id: str) -> None:
    keys = Keys(prefix=config.key_prefix)
    bus = await Bus.connect(config.redis_url, keys=keys, worker_id=worker_id)
    try:
        worker = DraftWorker(bus, equipment, config, SystemClock())
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, worker.stop)
        _log.info("worker_ready", model=equipment.name)
        await worker.run()
    finally:
        await bus.close()
