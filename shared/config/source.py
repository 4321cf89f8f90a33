"""Where a model comes from: a directory that is there, or a repository of a model hub."""

import re
from pathlib import Path

from msgspec import Struct

from shared.common.errors import ConfigError

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"  # what the hub allows
_REVISION = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_.+-]+)*"
_NEVER = ("..", "--", ".git@")  # nor do these occur; `..` would leave the cache
_HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_REVISION}))?")


class HubId(Struct, frozen=True):
    """A repository of a hub, and which state of it."""

    repo_id: str  # org/name
    revision: str | None  # branch, tag or commit; None: the default branch

    def __str__(self) -> str:
        """As it is typed."""
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def find_source(value: str, *, flag: str) -> Path | HubId:
    """What `value` names; a directory wins.

    Args:
        value: what was given.
        flag: by which flag, for the message.
    Raises:
        ConfigError: it is no directory, and cannot be a hub id either.
    """
    directory = _directory(value)
    if directory is not None:
        return directory
    found = _HUB_ID.fullmatch(value)
    if found is None or Path(value).exists() or any(text in f"{value}@" for text in _NEVER):
        raise ConfigError(
            f"{flag} is '{value}': must be a directory that exists, or a hub id org/name[@revision]"
        )
    return HubId(found["repo"], found["revision"])


def served_name(value: str) -> str:
    """How a model is called in requests: the last part of its directory or repository.

    Raises:
        ConfigError: `value` names no model.
    """
    source = find_source(value, flag="--model")
    return source.resolve().name if isinstance(source, Path) else source.repo_id.split("/")[1]


def absolute(value: str) -> str:
    """`value` for a process with another working directory; a hub id stays as it is."""
    directory = _directory(value)
    return value if directory is None else str(directory.resolve())


def _directory(value: str) -> Path | None:
    try:
        path = Path(value).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):  # a name that is too long, or the home of nobody
        return None
