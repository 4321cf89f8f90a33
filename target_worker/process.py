"""One target worker from its model to its last message: what `python -m target_worker` runs."""

import asyncio
import signal
import sys

from shared.bus.connection import Bus
from shared.common.clock import SystemClock
from shared.common.exits import exits_when_unavailable, leaving_on_signals, run_worker
from shared.protocol.keys import Keys
from target_worker.config import Config
from target_worker.equipment import Equipment, build_engine, equip
from target_worker.planning import planned
from target_worker.worker import EngineFailed, TargetWorker


def run(config: Config, worker_id: str) -> int:
    """Load the model and serve until SIGTERM or SIGINT; the exit status.

    Raises:
        ConfigError: the model cannot be served so, or the server does not let us in.
    """
    with exits_when_unavailable(), leaving_on_signals():
        if config.plan:
            sys.stdout.write(planned(config) + "\n")
            return 0
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
