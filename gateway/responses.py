"""`/v1/responses` over HTTP: create, read again from an event number, cancel."""

from functools import partial

from starlette.types import Receive, Scope, Send

from gateway.answer import Answer
from gateway.chat import TENANT, idempotency_key
from gateway.config import GatewayConfig
from gateway.conversation import earlier_messages
from gateway.desk import Desk
from gateway.errors import ClientGone, JobFailed
from gateway.exchange import Exchange, encode
from gateway.job import Job, new_id
from gateway.response_events import ResponseEvents, ResponseFrames
from gateway.response_object import response_object
from gateway.response_request import parse_response_request, response_job
from gateway.streaming import leave, stream, whole
from gateway.transcript import Transcript
from shared.common.errors import ClientError
from shared.protocol.jobs import idempotent_id
from shared.protocol.limits import MAX_ID_CHARS
from shared.protocol.records import Failed

CANCEL_WAIT_S = 3.0  # a running job ends within a round; a queued one when it is claimed
_NUMBER_DIGITS = 9


class Responses:
    """The Responses API as ASGI endpoints."""

    def __init__(self, desk: Desk, config: GatewayConfig) -> None:
        self._desk = desk
        self._config = config
        self._exchange = partial(Exchange, send_deadline_s=config.send_deadline_s)

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/responses`."""
        exchange = self._exchange(scope, receive, send)
        self._desk.admission.check_open()
        request = parse_response_request(await exchange.body())
        key = idempotency_key(exchange)
        job = response_job(
            idempotent_id(TENANT, key) if key else new_id("resp_"),
            request,
            earlier=await earlier_messages(self._desk, request.previous_response_id),
            created_ms=self._desk.clock.unix_ms(),
        )
        trace = exchange.headers.get("traceparent", "")[:MAX_ID_CHARS]
        try:
            async with self._desk.submit(job, traceparent=trace, is_shared=bool(key)) as answer:
                if request.stream:
                    await self._stream(exchange, answer, -1)
                else:
                    data = await self._whole(exchange, answer)
        except ClientGone:
            await leave(exchange, self._desk, None if key else job)
            return
        await (exchange.end() if request.stream else exchange.respond(data))

    async def retrieve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/responses/{id}`: as it is now, or with `stream=true` the events after one."""
        exchange = self._exchange(scope, receive, send)
        job = await self._find(exchange)
        if exchange.query.get("stream") != "true" and "last-event-id" not in exchange.headers:
            transcript = await self._desk.transcript(job)
            await exchange.respond(encode(response_object(job, transcript)))
            return
        after = exchange.headers.get("last-event-id") or exchange.query.get("starting_after")
        starting_after = parse_number(after) if after else -1
        try:
            async with self._desk.resume(job) as answer:
                await self._stream(exchange, answer, starting_after)
        except ClientGone:
            await leave(exchange, self._desk, job)
            return
        await exchange.end()

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /v1/responses/{id}/cancel`: ask for the end, wait for it a moment, show it."""
        exchange = self._exchange(scope, receive, send)
        job = await self._find(exchange)
        transcript = Transcript(1)
        await self._desk.cancel(job.job_id)
        async with self._desk.resume(job) as answer:
            deadline_s = self._desk.clock.monotonic_s() + CANCEL_WAIT_S
            while not answer.is_over:
                left_s = deadline_s - self._desk.clock.monotonic_s()
                if left_s <= 0:
                    break
                for entry in await answer.read(left_s):
                    transcript.add(entry)
        await exchange.respond(encode(response_object(job, transcript)))

    async def _whole(self, exchange: Exchange, answer: Answer) -> bytes:
        transcript = await whole(exchange, answer)
        if isinstance(transcript.terminal, Failed) and not transcript.lengths[0]:
            raise JobFailed(transcript.terminal)
        return encode(response_object(answer.job, transcript))

    async def _stream(self, exchange: Exchange, answer: Answer, starting_after: int) -> None:
        frames = ResponseFrames(ResponseEvents(answer.job, starting_after=starting_after))
        await stream(exchange, answer, frames, keepalive_s=self._config.keepalive_s)

    async def _find(self, exchange: Exchange) -> Job:
        job = await self._desk.find(exchange.path["job_id"], param="response_id")
        if job.request.num_choices != 1:
            raise ClientError("a response has one choice; this answer has several", param="n")
        return job


def parse_number(text: str) -> int:
    """An event number.

    Raises:
        ClientError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS):
        message = "starting_after must be the sequence_number of an event"
        raise ClientError(message, param="starting_after", code="invalid_cursor")
    return int(text)
