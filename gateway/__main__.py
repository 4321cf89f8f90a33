"""`python -m gateway`."""

import sys

import structlog
import uvloop

from gateway.config import GatewayConfig
from gateway.server import new_gateway_id, open_gateway
from shared.common.errors import Unavailable
from shared.common.log import configure
from shared.common.scheduling import collect_little
from shared.config.flags import exits_on_config_error, load, log_config

PROG = "gateway"


async def serve(config: GatewayConfig, gateway_id: str) -> None:
    """Run one gateway until it is told to stop."""
    async with open_gateway(config, gateway_id=gateway_id) as gateway:
        await gateway.run()


def main() -> int:
    """The process's exit status."""
    config = load(GatewayConfig, prog=PROG, description="HTTP and WebSocket in, jobs out.")
    gateway_id = new_gateway_id()
    configure(PROG, gateway_id, level=config.log_level)
    log_config(config, prog=PROG)
    collect_little()
    with exits_on_config_error(PROG):
        try:
            uvloop.run(serve(config, gateway_id))
        except Unavailable as error:
            structlog.get_logger(PROG).error("gateway_failed", reason=str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
