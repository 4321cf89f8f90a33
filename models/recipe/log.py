"""Progress as one JSON object a line on standard output."""

from __future__ import annotations

import json
import sys


def report(event: str, **facts: object) -> None:
    """Write one event; floats are rounded to four places."""
    rounded = {
        key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()
    }
    sys.stdout.write(json.dumps({"event": event, **rounded}) + "\n")
    sys.stdout.flush()
