"""A job's log as server-sent events of a chat completion, and as one JSON object.

Frames are a function of the stored request and the log alone: one a record, with the position after
it as its id. So any gateway continues a stream that another one began, byte for byte.
"""

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway import errors, figures
from gateway.job import Job
from gateway.position import END, Position
from gateway.transcript import Entry, Times, Transcript
from shared.common.errors import ClientError
from shared.protocol.records import Done, Failed, Finished, Tokens

DONE_FRAME = b"data: [DONE]\n\n"


class Delta(Struct, frozen=True, omit_defaults=True):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(Struct, frozen=True):
    """One choice of a chunk."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: None = None


class Chunk(Struct, frozen=True):
    """`chat.completion.chunk`."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: figures.ChatUsage | figures.RunningUsage | UnsetType | None = UNSET
    seed: int | UnsetType = UNSET
    metrics: figures.Metrics | UnsetType = UNSET
    object: str = "chat.completion.chunk"


class Message(Struct, frozen=True):
    """The whole text of a choice."""

    content: str
    role: str = "assistant"
    refusal: None = None


class Choice(Struct, frozen=True):
    """One choice of a completion."""

    index: int
    message: Message
    finish_reason: str | None
    logprobs: None = None


class Completion(Struct, frozen=True):
    """`chat.completion`."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: figures.ChatUsage
    seed: int
    metrics: figures.Metrics
    object: str = "chat.completion"


_EMPTY_CONTENT = b'"content":""'
_encoder = msgspec.json.Encoder()


class ChatFrames:
    """Turns the entries of one log, from its start and in order, into frames.

    Args:
        job: whose log it is.
        seen: what the client has already, or None for a new stream. Its frames are not made again.
    """

    def __init__(self, job: Job, seen: Position | None = None) -> None:
        options = job.request.stream_options
        self._job = job
        self._seen = seen or Position(job.request.num_choices)
        self._is_new = seen is None
        self._position = Position(job.request.num_choices)
        self._times = Times()
        self._has_usage = bool(options and options.include_usage)
        self._is_counting = bool(options and options.continuous_usage_stats)
        # By choice: what stands before and behind the text of a chunk, the same in every one.
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def opening(self) -> bytes:
        """The frame before any token: who speaks."""
        if not self._is_new:
            return b""
        delta = Delta(role="assistant", content="")
        choices = tuple(ChunkChoice(i, delta) for i in range(self._job.request.num_choices))
        return self._frame(choices)

    def add(self, entries: Iterable[Entry]) -> bytes:
        """The frames of the next entries; empty for text that is held back or known.

        Raises:
            ClientError: the client's cursor lies inside a record, where no frame ever ended.
        """
        return b"".join(map(self._add, entries))

    def failure(self, record: Failed) -> bytes:
        """The last frames of a stream that cannot go on."""
        return failure_frame(record) + DONE_FRAME

    def _add(self, entry: Entry) -> bytes:
        record = entry[1]
        self._position.advance(record)
        self._times.add(entry)
        match record:
            case Tokens(choice, offset, _, text):
                known = self._seen.lengths[choice]
                if self._position.lengths[choice] <= known or self._seen.is_over:
                    return b""
                if offset < known:
                    raise ClientError(
                        "no frame of this stream has this id",
                        param="starting_after",
                        code="invalid_cursor",
                    )
                return self._text(choice, text) if text else b""
            case Finished(choice, text, reason):
                return self._end(choice, text, reason.value)
            case Done():
                return self._last(record) + DONE_FRAME
            case Failed():
                return (b"" if self._seen.is_over else failure_frame(record)) + DONE_FRAME

    def _last(self, record: Done) -> bytes:
        """The end of the last choice and the figures, in a chunk of their own if that was asked."""
        final = Chunk(
            id=self._job.job_id,
            created=self._job.created_s,
            model=self._job.request.model,
            choices=(),
            usage=figures.chat_usage(record.usage, record.speculation),
            seed=record.seed,
            metrics=figures.metrics(record, self._times, self._job.origin.created_ms),
        )
        if self._has_usage:
            last = self._end(record.choice, record.text, record.reasons[record.choice].value)
            return last + (b"" if self._seen.is_over else frame(END, _encoder.encode(final)))
        if self._seen.has_finished[record.choice]:
            return b""
        choice = _ending(record.choice, record.text, record.reasons[record.choice].value)
        final = msgspec.structs.replace(final, choices=(choice,), usage=UNSET)
        return frame(self._position.cursor, _encoder.encode(final))

    def _end(self, choice: int, text: str, reason: str) -> bytes:
        if self._seen.has_finished[choice]:
            return b""
        return self._frame((_ending(choice, text, reason),))

    def _text(self, choice: int, text: str) -> bytes:
        """A frame that adds text, byte for byte as `_frame` makes it, in a third of the time."""
        if self._is_counting:
            return self._frame((ChunkChoice(choice, Delta(content=text)),))
        around = self._around.get(choice)
        if around is None:
            chunk = self._chunk((ChunkChoice(choice, Delta(content="")),))
            # Quotes within strings are escaped, so this is the field and no value.
            before, name, behind = _encoder.encode(chunk).partition(_EMPTY_CONTENT)
            around = self._around[choice] = (before + name[:-2], behind)
        return frame(self._position.cursor, _encoder.encode(text).join(around))

    def _frame(self, choices: tuple[ChunkChoice, ...]) -> bytes:
        return frame(self._position.cursor, _encoder.encode(self._chunk(choices)))

    def _chunk(self, choices: tuple[ChunkChoice, ...]) -> Chunk:
        usage: figures.RunningUsage | UnsetType | None = None if self._has_usage else UNSET
        if self._is_counting:
            num_tokens = sum(self._position.lengths)
            usage = figures.RunningUsage(0, num_tokens, num_tokens)
        job = self._job
        return Chunk(job.job_id, job.created_s, job.request.model, choices, usage)


def _ending(choice: int, text: str, reason: str) -> ChunkChoice:
    return ChunkChoice(choice, Delta(content=text) if text else Delta(), reason)


def frame(cursor: str, data: bytes) -> bytes:
    """One server-sent event."""
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), data)


def failure_frame(record: Failed) -> bytes:
    """The last event of a stream that did not reach its end."""
    return frame(END, _encoder.encode(errors.ErrorBody(errors.of_failed(record))))


def completion(job: Job, transcript: Transcript) -> bytes:
    """The JSON of a job that is done."""
    terminal = transcript.terminal
    assert isinstance(terminal, Done)
    choices = tuple(
        Choice(index, Message(transcript.text(index)), reason)
        for index, reason in enumerate(transcript.reasons)
    )
    return _encoder.encode(
        Completion(
            job.job_id,
            job.created_s,
            job.request.model,
            choices,
            figures.chat_usage(terminal.usage, terminal.speculation),
            terminal.seed,
            figures.metrics(terminal, transcript.times, job.origin.created_ms),
        )
    )
