"""`python -m target_worker`: check guesses, emit tokens, for jobs from the server."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Sequence

from shared.bus.connection import Bus
from shared.common import log
from shared.common.clock import SystemClock
from shared.common.exits import run_worker
from shared.config.flags import exits_on_config_error, load, log_config
from shared.protocol.keys import Keys
from target_worker.config import Config
from target_worker.equipment import Equipment, build_engine, equip
from target_worker.worker import EngineFailed, TargetWorker

_PROG = "target_worker"
_SWITCH_INTERVAL_S = 0.0005  # how long the event loop may keep the interpreter from the engine


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    config = load(
        Config, prog=_PROG, description="Checks guesses of draft workers; emits tokens.", argv=argv
    )
    worker_id = f"target:{secrets.token_hex(4)}"
    log.configure(_PROG, worker_id, level=config.log_level)
    log_config(config, prog=_PROG)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with exits_on_config_error(_PROG):
        equipment = equip(config)
        return run_worker(_serve(config, equipment, worker_id), engine_failed=EngineFailed)


async def _serve(config: Config, equipment: Equipment, worker_id: str) -> None:
    clock = SystemClock()
    engine = await asyncio.to_thread(build_engine, config, equipment, worker_id, clock)
    keys = Keys(prefix=config.key_prefix)
    bus = await Bus.connect(config.redis_url, keys=keys, worker_id=worker_id)
    try:
        worker = TargetWorker(bus, equipment.served, engine, config, clock)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.drain)
        await worker.run()
    finally:
        await bus.close()


if __name__ == "__main__":
    sys.exit(main())
