"""Typed access to a JSON object somebody else wrote; every complaint names file, key and value."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.common.errors import ConfigError

MAX_JSON_BYTES = 64 * 1024 * 1024  # an index of the largest sharded checkpoints is about 10 MB


@dataclass(frozen=True, slots=True)
class Fields:
    """One object of a JSON file. `where` leads the keys of a nested object (`rope_scaling.`)."""

    path: Path
    values: Mapping[str, Any]
    where: str = ""

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Read a whole file.

        Raises:
            ConfigError: it is missing, too large, or not a JSON object.
        """
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ConfigError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: must hold a JSON object")
        return cls(path, values)

    def wrong(self, key: str, allowed: str) -> ConfigError:
        """The error for a value that cannot be served."""
        value = self.values.get(key)
        return ConfigError(f"{self.path}: {self.where}{key} is {value!r}; allowed: {allowed}")

    def is_set(self, key: str) -> bool:
        """Present and not null."""
        return self.values.get(key) is not None

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1. No default: required."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. No default: required."""
        value = self.values.get(key)
        value = default if value is None else value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        number = float(value) if is_number and value is not None else 0.0
        if not 0 < number < float("inf"):
            raise self.wrong(key, "a number above 0")
        return number

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of the words in `allowed`. No default: required."""
        value = self.values.get(key)
        value = default if value is None else value
        if value not in allowed:
            raise self.wrong(key, ", ".join(allowed))
        return str(value)

    def nested(self, key: str) -> "Fields":
        """The object under `key`; empty when absent or null."""
        value = self.values.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.wrong(key, "an object or null")
        return Fields(self.path, value, where=f"{self.where}{key}.")
