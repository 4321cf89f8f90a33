"""The settings that every program of the system has."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct


class LogLevel(StrEnum):
    """The least urgent events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class CommonConfig(Struct, frozen=True, kw_only=True):
    """To be inherited by a program's own config, so that these come last on its help screen."""

    redis_url: Annotated[
        str, Meta(min_length=1, pattern="^(redis|rediss|unix)://", description="the server")
    ] = "redis://127.0.0.1:6379/0"
    key_prefix: Annotated[
        str, Meta(min_length=1, max_length=64, description="first part of every key on the server")
    ] = "outrider:"
    log_level: Annotated[LogLevel, Meta(description="what is logged")] = LogLevel.INFO
