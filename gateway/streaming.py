"""What every answer over HTTP goes through, whatever API it speaks: streamed, whole, or left."""

from collections.abc import Iterable
from typing import Protocol

from gateway.answer import Answer
from gateway.desk import Desk
from gateway.exchange import KEEP_ALIVE, Exchange
from gateway.job import Job
from gateway.transcript import Entry, Transcript
from shared.common.errors import ClientError
from shared.protocol.records import Failed

_READ_S = 60.0  # a look at whether there is an end; nothing is sent meanwhile


class Frames(Protocol):
    """Turns a log into the bytes of a stream."""

    def opening(self) -> bytes:
        """What comes before any token."""
        ...

    def add(self, entries: Iterable[Entry]) -> bytes:
        """What comes next. Raises ClientError when the client's cursor is none of ours."""
        ...

    def failure(self, record: Failed) -> bytes:
        """The last frame of a stream that cannot go on."""
        ...


async def whole(exchange: Exchange, answer: Answer) -> Transcript:
    """Wait for the end of an answer that is not streamed.

    Raises:
        ClientGone: the client left.
    """
    transcript = Transcript(answer.job.request.num_choices)
    async with exchange.while_connected():
        while not answer.is_over:
            for entry in await answer.read(_READ_S):
                transcript.add(entry)
    return transcript


async def leave(exchange: Exchange, desk: Desk, job: Job | None) -> None:
    """The client is gone: note it, and end the job that was its own."""
    desk.metrics.num_slow_clients += exchange.was_slow
    if job is not None:
        await desk.abandon(job)


async def stream(exchange: Exchange, answer: Answer, frames: Frames, *, keepalive_s: float) -> None:
    """Send an answer as it comes, up to its end; the response is left to be completed.

    Raises:
        JobFailed, ClientError: before anything was sent; the caller still chooses the status.
        ClientGone: the client left or does not read.
    """
    async with exchange.while_connected():
        entries = await answer.first()
        pending = frames.opening() + frames.add(entries)
        await exchange.start_stream()
        while True:
            if pending:
                await exchange.write(pending)
            if answer.is_over:
                return
            entries = await answer.read(keepalive_s)
            try:
                pending = frames.add(entries) if entries else KEEP_ALIVE
            except ClientError as error:
                refused = Failed(error.code, error.message, error.param, error.status)
                await exchange.write(frames.failure(refused))
                return
