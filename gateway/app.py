"""The ASGI application: routes, errors, request ids. Pure ASGI all the way down."""

import re
import secrets

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import errors
from gateway.chat import Chat
from gateway.config import GatewayConfig
from gateway.desk import Desk
from gateway.models import Models
from gateway.responses import Responses
from gateway.socket import Socket, check_origin, reject
from shared.common.errors import ClientError, OutriderError, Unavailable

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Endpoint:
    """A method of ours as an ASGI application; starlette would take it for a request handler."""

    def __init__(self, call: ASGIApp) -> None:
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""
        await self._call(scope, receive, send)


class Sockets:
    """All WebSocket connections."""

    def __init__(self, desk: Desk, config: GatewayConfig) -> None:
        self._desk = desk
        self._config = config
        self._open: set[Socket] = set()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/responses` with an upgrade."""
        try:
            check_origin(scope)
            with self._desk.admission.socket():
                self._desk.metrics.num_sockets_opened += 1
                socket = Socket(self._desk, self._config, receive, send)
                self._open.add(socket)
                try:
                    await socket.run()
                finally:
                    self._open.discard(socket)
        except (ClientError, Unavailable) as error:
            await reject(send, error)

    async def drain(self) -> None:
        """Close what is idle now, and the rest as it becomes idle."""
        for socket in list(self._open):
            await socket.drain()


class RequestLog:
    """Gives every request an id, echoes it, and logs one line when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._logger = structlog.get_logger("request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                header = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                is_probe = scope["path"] in ("/health", "/ready", "/metrics")
                log = self._logger.debug if is_probe else self._logger.info
                log("request_finished", path=scope["path"], status=status)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    found = errors.details(error.status_code, error.detail, code=code, param=None)
    data = msgspec.json.encode(errors.ErrorBody(found))
    return Response(data, error.status_code, error.headers, media_type="application/json")


async def _crash(_request: Request, _error: Exception) -> Response:
    return errors.response(OutriderError())


def build_app(config: GatewayConfig, desk: Desk, models: Models, sockets: Sockets) -> Starlette:
    """The routes over their endpoints."""
    chat, responses = Chat(desk, config), Responses(desk, config)

    def route(path: str, call: ASGIApp, method: str) -> Route:
        return Route(path, Endpoint(call), methods=[method])

    routes = [
        route("/v1/chat/completions", chat.create, "POST"),
        route("/v1/chat/completions/{job_id}", chat.retrieve, "GET"),
        route("/v1/responses", responses.create, "POST"),
        route("/v1/responses/{job_id}", responses.retrieve, "GET"),
        route("/v1/responses/{job_id}/cancel", responses.cancel, "POST"),
        WebSocketRoute("/v1/responses", Endpoint(sockets.serve)),
        Route("/v1/models", models.list_models),
        Route("/v1/models/{model}", models.show_model),
        Route("/health", models.health),
        Route("/ready", models.ready),
        Route("/metrics", models.metrics),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(RequestLog)],
        exception_handlers={
            OutriderError: errors.handle,
            HTTPException: _http_error,
            Exception: _crash,
        },
    )
