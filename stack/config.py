"""The settings of `python -m stack`. Those of the programs it starts come from their variables."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from shared.common.errors import ConfigError
from shared.config.common import LogLevel
from shared.config.source import find_source

MAX_WORKERS = 64  # of one kind; far above what one machine can feed
_Port = Annotated[int, Meta(ge=0, le=65_535, description="port of the gateway; 0: any free one")]
_RedisPort = Annotated[int, Meta(ge=0, le=65_535, description="embedded server's; 0: any free one")]
_Url = Annotated[
    str,
    Meta(pattern="^(redis|rediss|unix)://", description="the server; without it one is started"),
]


class StackConfig(Struct, frozen=True, kw_only=True):
    """What runs, with which models, where its data lies."""

    port: _Port = 8000
    host: Annotated[str, Meta(min_length=1, description="where the gateway listens")] = "127.0.0.1"
    target_workers: Annotated[
        int, Meta(ge=1, le=MAX_WORKERS, description="processes that verify and stream")
    ] = 1
    draft_workers: Annotated[
        int, Meta(ge=0, le=MAX_WORKERS, description="processes that guess; 0: plain decoding")
    ] = 1
    target: Annotated[
        str, Meta(min_length=1, description="model of the targets: directory or hub id")
    ] = "models/storyteller"
    draft: Annotated[
        str, Meta(min_length=1, description="model of the drafts: directory or hub id")
    ] = "models/storyteller-draft"
    redis_url: _Url | None = None
    redis_port: _RedisPort = 0
    data_dir: Annotated[Path, Meta(description="logs and the embedded server's data")] = Path(
        ".outrider"
    )
    drain_s: Annotated[
        float, Meta(ge=0, le=3_600, description="for each part to finish after SIGTERM")
    ] = 10.0
    start_timeout_s: Annotated[float, Meta(gt=0, description="until all must be ready")] = 300.0
    key_prefix: Annotated[
        str, Meta(min_length=1, max_length=64, description="first part of every key on the server")
    ] = "outrider:"
    log_level: Annotated[LogLevel, Meta(description="what is logged")] = LogLevel.INFO


def check_models(config: StackConfig) -> None:
    """Refuse models that cannot work before anything is started. Hub ids are asked for later.

    Raises:
        ConfigError: neither a hub id nor a directory, or a directory without a model.
    """
    needed = {"--target": config.target}
    if config.draft_workers:
        needed["--draft"] = config.draft
    for flag, value in needed.items():
        source = find_source(value, flag=flag)
        if isinstance(source, Path) and not (source / "config.json").is_file():
            raise ConfigError(f"{flag} is '{value}': must be a directory with config.json")
