"""`python -m draft_worker`: guess tokens for the sessions of target workers."""

import secrets
import sys
from collections.abc import Sequence

from draft_worker.config import Config
from shared.common import log
from shared.common.scheduling import switch_often
from shared.config.flags import exits_on_config_error, load, log_config

_PROG = "draft_worker"


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    config = load(Config, prog=_PROG, description="Guesses tokens for target workers.", argv=argv)
    worker_id = f"draft:{secrets.token_hex(4)}"
    log.configure(_PROG, worker_id, level=config.log_level)
    log_config(config, prog=_PROG)
    switch_often()
    # Torch takes seconds to import: help and a wrong flag are answered before.
    from draft_worker.process import run  # noqa: PLC0415

    with exits_on_config_error(_PROG):
        return run(config, worker_id)


if __name__ == "__main__":
    sys.exit(main())
