"""`python -m target_worker`: check guesses, emit tokens, for jobs from the server."""

import secrets
import sys
from collections.abc import Sequence

from shared.common import log
from shared.common.scheduling import switch_often
from shared.config.flags import exits_on_config_error, load, log_config
from target_worker.config import Config

_PROG = "target_worker"


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    config = load(
        Config, prog=_PROG, description="Checks guesses of draft workers; emits tokens.", argv=argv
    )
    worker_id = f"target:{secrets.token_hex(4)}"
    log.configure(_PROG, worker_id, level=config.log_level)
    log_config(config, prog=_PROG)
    switch_often()
    # Torch takes seconds to import: help and a wrong flag are answered before.
    from target_worker.process import run  # noqa: PLC0415

    with exits_on_config_error(_PROG):
        return run(config, worker_id)


if __name__ == "__main__":
    sys.exit(main())
