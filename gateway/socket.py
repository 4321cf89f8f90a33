"""`GET /v1/responses` as a WebSocket: OpenAI's Responses WebSocket mode.

Client frames: `response.create` (a response's body), `response.cancel` {response_id}, and of our
own `response.resume` {response_id, starting_after}. Server frames: `error`, and the events of
gateway.response_events with the lane's `stream_id`.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, suppress
from typing import Annotated

import msgspec
import structlog
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.types import Message, Receive, Scope, Send

from gateway import errors
from gateway.answer import Answer
from gateway.config import GatewayConfig
from gateway.conversation import earlier_messages
from gateway.desk import Desk
from gateway.job import Job, new_id
from gateway.lanes import Lanes
from gateway.response_events import Event, ResponseEvents
from gateway.response_request import parse_response_request, response_job
from shared.common.errors import ClientError, OutriderError, PeerError, Unavailable
from shared.protocol.limits import MAX_ID_CHARS
from shared.protocol.requests import read_json

READ_S = 60.0  # nothing to do meanwhile: uvicorn's pings keep the connection alive
RESTARTING = 1012  # the client comes back, elsewhere, and resumes
OVERLOADED = 1013  # it did not read


class Head(Struct, frozen=True):
    """What tells a frame's kind and lane; the rest is read when its turn comes."""

    type: str
    stream_id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)] | None = None


class CancelFrame(Struct, frozen=True, forbid_unknown_fields=True):
    """`response.cancel`."""

    type: str
    response_id: str
    stream_id: str | None = None


class ResumeFrame(Struct, frozen=True, forbid_unknown_fields=True):
    """`response.resume`: the events after `starting_after`, -1 for all."""

    type: str
    response_id: str
    starting_after: Annotated[int, Meta(ge=-1)] = -1
    stream_id: str | None = None


class ErrorFrame(Struct, frozen=True):
    """`error`."""

    status: int
    error: errors.ErrorDetails
    stream_id: str | UnsetType = UNSET
    type: str = "error"


class SlowClient(OutriderError):
    """It did not read for `send_deadline_s`."""


class Work(Struct, frozen=True):
    """One request of a lane."""

    type: str
    data: bytes


_head = msgspec.json.Decoder(Head)
_cancel = msgspec.json.Decoder(CancelFrame)
_resume = msgspec.json.Decoder(ResumeFrame)


class Socket:
    """One connection, from the handshake to the close.

    Args:
        desk: where jobs go.
        config: the limits.
        receive: client's messages.
        send: ours.
    """

    def __init__(self, desk: Desk, config: GatewayConfig, receive: Receive, send: Send) -> None:
        self._desk = desk
        self._config = config
        self._receive = receive
        self._send = send
        self._sending = asyncio.Lock()
        self._lanes: Lanes[Work] = Lanes(
            max_lanes=config.max_lanes, max_queue=config.max_lane_queue
        )
        self._unanswered: dict[str, Job] = {}
        self._is_closing = False
        self._logger = structlog.get_logger("socket")

    async def run(self) -> None:
        """Serve until the client or a drain closes the connection; then end what it asked for."""
        await self._receive()  # websocket.connect
        await self._send({"type": "websocket.accept"})
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._take_frames(tasks)
                raise _Closed  # noqa: TRY301 - the way to cancel a group's tasks together
        except* (_Closed, errors.ClientGone):
            pass
        except* SlowClient:
            self._desk.metrics.num_slow_clients += 1
            await self._close(OVERLOADED)
        if not self._desk.admission.is_draining:
            for job in list(self._unanswered.values()):
                await self._desk.abandon(job)

    async def drain(self) -> None:
        """Take nothing new, and close as soon as nothing is being answered."""
        if self._lanes.num_busy == 0:
            await self._close(RESTARTING)

    async def _take_frames(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            lane: str | None = None
            try:
                data = _data(message)
                head = read_json(_head, data, what="frame")
                lane = head.stream_id
                await self._take(Work(head.type, data), lane, tasks)
            except (ClientError, Unavailable) as error:
                await self._send_error(error, lane)

    async def _take(self, work: Work, lane: str | None, tasks: asyncio.TaskGroup) -> None:
        if work.type == "response.cancel":
            frame = read_json(_cancel, work.data, what="frame")
            # Found first: cancelling an id that nobody has used would wait for its job.
            job = await self._desk.find(
                frame.response_id, code="response_not_found", param="response_id"
            )
            await self._desk.cancel(job.job_id)
            return
        if work.type not in ("response.create", "response.resume"):
            known = "response.create, response.cancel and response.resume"
            message = f"type must be one of {known}"
            raise ClientError(message, param="type", code="unknown_event")
        self._desk.admission.check_open()
        if self._lanes.put(lane, work):
            tasks.create_task(self._run_lane(lane))

    async def _run_lane(self, lane: str | None) -> None:
        while (work := self._lanes.head(lane)) is not None:
            try:
                if work.type == "response.create":
                    await self._create(work.data, lane)
                else:
                    await self._resume(work.data, lane)
            except (ClientError, Unavailable, PeerError, errors.JobFailed) as error:
                await self._send_error(error, lane)
            self._lanes.done(lane)
        if self._desk.admission.is_draining and self._lanes.num_busy == 0:
            await self._close(RESTARTING)

    async def _create(self, data: bytes, lane: str | None) -> None:
        request = parse_response_request(data, is_frame=True)
        earlier = await earlier_messages(self._desk, request.previous_response_id)
        now_ms = self._desk.clock.unix_ms()
        job = response_job(new_id("resp_"), request, earlier=earlier, created_ms=now_ms)
        await self._forward(self._desk.submit(job), ResponseEvents(job, stream_id=lane), job)

    async def _resume(self, data: bytes, lane: str | None) -> None:
        frame = read_json(_resume, data, what="frame")
        job = await self._desk.find(
            frame.response_id, code="response_not_found", param="response_id"
        )
        if job.request.num_choices != 1:
            raise ClientError("a response has one choice", param="response_id")
        events = ResponseEvents(job, starting_after=frame.starting_after, stream_id=lane)
        await self._forward(self._desk.resume(job), events, job)

    async def _forward(
        self, opened: AbstractAsyncContextManager[Answer], events: ResponseEvents, job: Job
    ) -> None:
        # Noted before it is queued: a client that leaves meanwhile must not leave it behind.
        self._unanswered[job.job_id] = job
        try:
            async with opened as answer:
                await self._send_events(events.opening())
                while not answer.is_over:
                    await self._send_events(events.add(await answer.read(READ_S)))
        except (ClientError, Unavailable):
            del self._unanswered[job.job_id]
            raise
        del self._unanswered[job.job_id]

    async def _send_events(self, events: list[Event]) -> None:
        for event in events:
            await self._send_text(event.data.decode())

    async def _send_error(self, error: OutriderError, lane: str | None) -> None:
        status, found, _headers = errors.of_exception(error)
        frame = ErrorFrame(status, found, UNSET if lane is None else lane)
        await self._send_text(msgspec.json.encode(frame).decode())

    async def _send_text(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._config.send_deadline_s), self._sending:
                await self._send({"type": "websocket.send", "text": text})
        except TimeoutError:
            raise SlowClient from None
        except OSError as error:  # how the server says that the connection is gone
            raise errors.ClientGone(str(error)) from error

    async def _close(self, code: int) -> None:
        if not self._is_closing:
            self._is_closing = True
            with suppress(OSError):  # the client was faster
                await self._send({"type": "websocket.close", "code": code})


class _Closed(Exception):
    """Ends the task group of a connection."""


async def reject(send: Send, error: OutriderError) -> None:
    """Answer a handshake with an HTTP error instead of a connection."""
    response = errors.response(error)
    await send(
        {
            "type": "websocket.http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "websocket.http.response.body", "body": response.body})


def check_origin(scope: Scope) -> None:
    """Refuse a connection that a web page of another site opened; only browsers name an origin.

    Raises:
        ClientError: 403.
    """
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
        message = "connections from other sites are refused"
        raise ClientError(message, param="Origin", code="foreign_origin", status=403)


def _data(message: Message) -> bytes:
    text: str | None = message.get("text")
    data: bytes = message.get("bytes") or b""
    return data if text is None else text.encode()
