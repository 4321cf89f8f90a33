"""Why a model could not be fetched: the operator's fault, or nobody's."""

from collections.abc import Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

from shared.common.errors import ConfigError, Unavailable
from shared.config.source import HubId

_TRY_AGAIN = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


def blame(source: HubId, error: Exception) -> ConfigError | Unavailable:
    """Whose fault it is that there is no model, in one sentence."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    hub = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, f"{hub} asks for permission; HF_TOKEN must be of who has it"),
        (
            errors.RepositoryNotFoundError,
            f"must be a directory that exists, or a model that {hub} has and HF_TOKEN may read",
        ),
        (errors.RevisionNotFoundError, f"{hub} has the model, but no such branch, tag or commit"),
        (
            errors.OfflineModeIsEnabled,
            f"HF_HUB_OFFLINE is set, so it must be whole in the cache ({constants.HF_HUB_CACHE})",
        ),
        (errors.FileMetadataError, f"HF_ENDPOINT must be a model hub, {hub} does not answer so"),
    )
    head = f"--model is '{source}': "
    chain = list(_chain(error))
    for kind, reason in reasons:
        if any(isinstance(one, kind) for one in chain):
            return ConfigError(head + reason)
    for one in chain:
        if isinstance(one, errors.HfHubHTTPError) and _is_refusal(one.response.status_code):
            return ConfigError(f"{head}{hub} refuses it ({_line(one)})")
    if isinstance(error, OSError) and error.strerror:
        cache = constants.HF_HUB_CACHE
        return ConfigError(f"{head}cannot be kept in the cache ({cache}): {error.strerror}")
    if isinstance(error, (ValueError, LookupError, TypeError)):
        return ConfigError(f"{head}what {hub} answers is no model ({_line(error)})")
    return Unavailable(f"{head}cannot be fetched from {hub} now ({_line(chain[-1])})")


def _is_refusal(status: int) -> bool:
    is_ours = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_ours and status not in _TRY_AGAIN


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(error: BaseException) -> str:
    """Its kind, and the first line of what it says."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
