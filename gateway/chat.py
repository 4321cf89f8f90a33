"""`/v1/chat/completions`: create, and read again by id from a cursor."""

from functools import partial

from starlette.types import Receive, Scope, Send

from gateway.answer import Answer
from gateway.chat_frames import ChatFrames, completion
from gateway.config import GatewayConfig
from gateway.desk import Desk
from gateway.errors import ClientGone, JobFailed
from gateway.exchange import Exchange
from gateway.job import Origin, make_job, new_id
from gateway.position import Position, parse_cursor
from gateway.streaming import leave, stream, whole
from shared.common.errors import ClientError
from shared.protocol.jobs import idempotent_id
from shared.protocol.limits import MAX_ID_CHARS
from shared.protocol.records import Failed

TENANT = ""  # one tenant until gateways know who is asking


class Chat:
    """The chat completions API as ASGI endpoints."""

    def __init__(self, desk: Desk, config: GatewayConfig) -> None:
        self._desk = desk
        self._config = config
        self._exchange = partial(Exchange, send_deadline_s=config.send_deadline_s)

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/chat/completions`."""
        exchange = self._exchange(scope, receive, send)
        self._desk.admission.check_open()
        body = await exchange.body()
        key = idempotency_key(exchange)
        job_id = idempotent_id(TENANT, key) if key else new_id("chatcmpl-")
        job = make_job(job_id, body, Origin(self._desk.clock.unix_ms()))
        trace = exchange.headers.get("traceparent", "")[:MAX_ID_CHARS]
        try:
            async with self._desk.submit(job, traceparent=trace, is_shared=bool(key)) as answer:
                if job.request.stream:
                    frames = ChatFrames(answer.job)
                    await stream(exchange, answer, frames, keepalive_s=self._config.keepalive_s)
                else:
                    data = await self._whole(exchange, answer)
        except ClientGone:
            # Who sends an idempotency key means to come back with it.
            await leave(exchange, self._desk, None if key else job)
            return
        await (exchange.end() if job.request.stream else exchange.respond(data))

    async def retrieve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/chat/completions/{id}`: the rest after a cursor as a stream, or all as JSON."""
        exchange = self._exchange(scope, receive, send)
        job = await self._desk.find(exchange.path["job_id"])
        cursor = exchange.headers.get("last-event-id") or exchange.query.get("starting_after")
        seen = parse_cursor(cursor, job.request.num_choices) if cursor else None
        accepts_events = "text/event-stream" in exchange.headers.get("accept", "")
        is_stream = seen is not None or accepts_events or exchange.query.get("stream") == "true"
        try:
            async with self._desk.resume(job) as answer:
                if is_stream:
                    await self._stream(exchange, answer, seen)
                else:
                    data = await self._whole(exchange, answer)
        except ClientGone:
            await leave(exchange, self._desk, job if is_stream else None)
            return
        await (exchange.end() if is_stream else exchange.respond(data))

    async def _stream(self, exchange: Exchange, answer: Answer, seen: Position | None) -> None:
        frames = ChatFrames(answer.job, seen)
        await stream(exchange, answer, frames, keepalive_s=self._config.keepalive_s)

    async def _whole(self, exchange: Exchange, answer: Answer) -> bytes:
        transcript = await whole(exchange, answer)
        if isinstance(transcript.terminal, Failed):
            raise JobFailed(transcript.terminal)
        return completion(answer.job, transcript)


def idempotency_key(exchange: Exchange) -> str:
    """The header, or an empty string.

    Raises:
        ClientError: longer than an id may be.
    """
    key = exchange.headers.get("idempotency-key", "")
    if len(key) > MAX_ID_CHARS:
        message = f"Idempotency-Key must be at most {MAX_ID_CHARS} characters"
        raise ClientError(message, param="Idempotency-Key")
    return key
