"""A model's directory on this machine: given, or fetched from a model hub into the usual cache.

Fetched is what the loaders open and nothing else: configuration, tokenizer, and the safetensors
that the index names; never code, never pickles. How, is huggingface_hub's business, with its
variables (HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT). It reads them when it is imported, and
it is imported only for a hub id.
"""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from glob import escape
from pathlib import Path

import structlog

from shared.common.errors import ConfigError, OutriderError
from shared.config.source import HubId, find_source
from shared.engine.fields import Fields
from shared.engine.hub_faults import blame
from shared.engine.hub_progress import Progress, bar_class

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"  # these two as in checkpoint, which needs torch
INDEX_FILE = "model.safetensors.index.json"
DESCRIPTION_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX_FILE,
)

_log = structlog.get_logger()


class Part(StrEnum):
    """How much of a model is needed."""

    DESCRIPTION = "description"  # configuration and tokenizer
    WHOLE = "whole"


def model_directory(value: str, part: Part = Part.WHOLE) -> Path:
    """The directory of `--model`. Takes as long as downloading what the cache lacks.

    Args:
        value: a directory, or a hub id org/name[@revision].
        part: what will be read of it.
    Raises:
        ConfigError: there is no such model, no access to it, or no way to keep it.
        Unavailable: the hub does not answer, and the cache does not hold what is needed.
    """
    source = find_source(value, flag="--model")
    if isinstance(source, Path):
        return source
    began_s = time.monotonic()
    _log.info("model_downloading", model=source.repo_id, revision=source.revision, part=part.value)
    try:
        directory = _interruptible(source, part)
    except OutriderError:
        raise
    except Exception as error:  # the library, its HTTP client and hf_xet share no base
        raise blame(source, error) from error
    _log.info(
        "model_downloaded",
        model=source.repo_id,
        commit=directory.name,
        directory=str(directory),
        duration_s=round(time.monotonic() - began_s, 3),
    )
    return directory


def _interruptible(source: HubId, part: Part) -> Path:
    """Fetch in a thread: a signal that ends the process need not wait for the file in flight."""
    progress = Progress()
    with ThreadPoolExecutor(1, thread_name_prefix="hub") as pool:
        fetching = pool.submit(_fetch, source, part, progress)
        try:
            return fetching.result()
        except BaseException:
            progress.stop()
            raise


def _fetch(source: HubId, part: Part, progress: Progress) -> Path:
    """Descriptions first: they say which weights there are."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # a server reports to nobody unasked
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - reads its variables
    except ValueError as error:
        raise ConfigError(
            f"HF_ variables must be as huggingface_hub reads them: {error}"
        ) from error
    _log_as_we_do()
    bar = bar_class(progress)

    def get(revision: str | None, *files: str) -> Path:
        patterns = [escape(name) for name in files]
        return Path(
            snapshot_download(
                source.repo_id, revision=revision, allow_patterns=patterns, tqdm_class=bar
            )
        )

    directory = get(source.revision, *DESCRIPTION_FILES)
    if not (directory / CONFIG_FILE).is_file():
        raise ConfigError(f"--model is '{source}': must be a model with {CONFIG_FILE}, it has none")
    if part is Part.WHOLE:
        # By its commit, so that both come from the same state of the repository.
        get(directory.name, *_weights(directory))
    return directory


def _weights(directory: Path) -> tuple[str, ...]:
    """The files with the tensors. `checkpoint` says what is wrong with an index."""
    if not (directory / INDEX_FILE).is_file():
        return (WEIGHTS_FILE,)
    names = Fields.read(directory / INDEX_FILE).nested("weight_map").values.values()
    shards = {name for name in names if isinstance(name, str) and name.endswith(".safetensors")}
    return tuple(sorted(shards)) or (WEIGHTS_FILE,)


def _log_as_we_do() -> None:
    """The library's warnings, not its handler; no line for each request."""
    logging.getLogger("huggingface_hub").handlers.clear()
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
