"""`python -m draft_worker`: guess tokens for the sessions of target workers."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Sequence

import structlog

from draft_worker.config import Config
from draft_worker.equipment import Equipment, equip
from draft_worker.worker import DraftWorker, EngineFailed
from shared.bus.connection import Bus
from shared.common import log
from shared.common.clock import SystemClock
from shared.common.exits import run_worker
from shared.config.flags import exits_on_config_error, load, log_config
from shared.protocol.keys import Keys

_PROG = "draft_worker"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    config = load(Config, prog=_PROG, description="Guesses tokens for target workers.", argv=argv)
    worker_id = f"draft:{secrets.token_hex(4)}"
    log.configure("draft_worker", worker_id, level=config.log_level)
    log_config(config, prog=_PROG)
    for number in _SIGNALS:
        signal.signal(number, _leave_early)
    with exits_on_config_error(_PROG):
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


if __name__ == "__main__":
    sys.exit(main())
