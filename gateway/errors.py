"""Every failure in OpenAI's shape: `{"error": {message, type, param, code}}` with its status."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from shared.common.errors import ClientError, OutriderError, Unavailable
from shared.protocol.records import Failed

_BODY_UNREAD = (408, 413, 415)  # the rest of the body would be read only to be dropped
STATUS_CLIENT_GONE = 499  # nobody reads it; access logs and metrics do
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    499: "cancelled",
    503: "service_unavailable_error",
}
_FIRST_SERVER_STATUS = 500


class ErrorDetails(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """What an HTTP error or an error in a stream carries."""

    error: ErrorDetails


class ClientGone(OutriderError):
    """The client left before the answer was complete."""


class JobFailed(OutriderError):
    """The job ended early, before anything was sent to the client."""

    def __init__(self, record: Failed) -> None:
        super().__init__(record.code)
        self.record = record


def details(status: int, message: str, *, code: str | None, param: str | None) -> ErrorDetails:
    """The object for one failure; the type follows from the status."""
    default = "server_error" if status >= _FIRST_SERVER_STATUS else "invalid_request_error"
    return ErrorDetails(message, _TYPES.get(status, default), param, code)


def of_failed(record: Failed) -> ErrorDetails:
    """The object for a job that failed."""
    return details(record.status, record.message, code=record.code, param=record.param)


def of_exception(error: OutriderError) -> tuple[int, ErrorDetails, dict[str, str]]:
    """Status, object and extra headers for an error of ours."""
    if isinstance(error, ClientError):
        found = details(error.status, error.message, code=error.code, param=error.param)
        return error.status, found, {}
    if isinstance(error, Unavailable):
        found = details(error.status, error.message, code=error.code, param=None)
        return error.status, found, {"retry-after": str(error.retry_after_s)}
    if isinstance(error, JobFailed):
        status = error.record.status
        retry = {"retry-after": "1"} if status in (429, 503) else {}
        return status, of_failed(error.record), retry
    if isinstance(error, ClientGone):
        left = details(STATUS_CLIENT_GONE, "the client left", code="cancelled", param=None)
        return STATUS_CLIENT_GONE, left, {}
    internal = details(500, "the server failed", code="internal_error", param=None)
    return 500, internal, {}


def response(error: OutriderError) -> Response:
    """The HTTP response for an error of ours."""
    status, found, headers = of_exception(error)
    if status in _BODY_UNREAD:
        headers["connection"] = "close"
    return Response(
        msgspec.json.encode(ErrorBody(found)), status, headers, media_type="application/json"
    )


async def handle(_request: Request, error: Exception) -> Response:
    """Starlette's hook for errors of ours that were raised before a response began."""
    assert isinstance(error, OutriderError)
    return response(error)
