import json

import pytest

from gateway import errors
from shared.common.errors import ClientError, OutriderError, PeerError, Unavailable
from shared.protocol.records import Failed


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ClientError("no", param="n"), 400, "invalid_request_error", "invalid_value"),
        (ClientError("no", code="x", status=404), 404, "not_found_error", "x"),
        (Unavailable("later"), 503, "service_unavailable_error", "overloaded"),
        (Unavailable("later", status=429, code="x"), 429, "rate_limit_error", "x"),
        (errors.JobFailed(Failed("x", "no", None, 500)), 500, "server_error", "x"),
        (errors.JobFailed(Failed("x", "no", None, 503)), 503, "service_unavailable_error", "x"),
        (errors.JobFailed(Failed("cancelled", "no", None, 499)), 499, "cancelled", "cancelled"),
        (errors.ClientGone("it left"), 499, "cancelled", "cancelled"),
        (PeerError("secret"), 500, "server_error", "internal_error"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_every_error_has_openais_shape(
    error: OutriderError, status: int, kind: str, code: str
) -> None:
    """Status and code tell whose fault it is; what only concerns us stays with us."""
    found = errors.response(error)
    body = json.loads(bytes(found.body))
    assert body.keys() == {"error"}
    assert (found.status_code, body["error"]["type"], body["error"]["code"]) == (status, kind, code)
    assert "secret" not in body["error"]["message"]
    assert ("retry-after" in found.headers) == (status in (429, 503))
