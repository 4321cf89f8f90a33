"""A job's log as the events of OpenAI's Responses API, for server-sent events and WebSockets alike.

`sequence_number` is a function of the log: 0 to 3 before any token, 3 + t for the text that ends
with output token t, and 3 + T + 1 to 3 + T + 5 after the last of T tokens (text held back, text
done, part done, item done, how it ended). So any gateway continues after any event.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway import errors
from gateway.job import Job
from gateway.response_object import Part, item, response_object
from gateway.transcript import Entry, Transcript
from shared.common.errors import ClientError
from shared.protocol.records import Done, Failed, Tokens

LAST_OPENING = 3  # response.created, .in_progress, .output_item.added, .content_part.added


class Event(NamedTuple):
    """One event, ready to be framed."""

    type: str
    sequence_number: int
    data: bytes  # JSON


class TextDelta(Struct, frozen=True):
    """`response.output_text.delta`, the one that is sent once a round."""

    sequence_number: int
    item_id: str
    delta: str
    stream_id: str | UnsetType = UNSET
    output_index: int = 0
    content_index: int = 0
    logprobs: tuple[()] = ()
    type: str = "response.output_text.delta"


_encoder = msgspec.json.Encoder()


class ResponseEvents:
    """Turns the entries of one log, from its start and in order, into events.

    The last events repeat the whole text, so the text is kept until then.

    Args:
        job: whose log it is; of one choice.
        starting_after: the last event that the client has, or -1.
        stream_id: the lane to name in every event, or None.
    """

    def __init__(self, job: Job, *, starting_after: int = -1, stream_id: str | None = None) -> None:
        self._job = job
        self._seen = starting_after
        self._lane: dict[str, str] = {} if stream_id is None else {"stream_id": stream_id}
        self._transcript = Transcript(1)
        self._item_id = item(job, "", "in_progress").id

    def opening(self) -> list[Event]:
        """The events before any token."""
        response = response_object(self._job, self._transcript)
        empty = item(self._job, None, "in_progress")
        place = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        return self._events(
            0,
            ("response.created", {"response": response}),
            ("response.in_progress", {"response": response}),
            ("response.output_item.added", {"output_index": 0, "item": empty}),
            ("response.content_part.added", place | {"part": Part("")}),
        )

    def add(self, entries: Iterable[Entry]) -> list[Event]:
        """The events of the next entries; none for text that is held back or known.

        Raises:
            ClientError: the client's number lies inside a record, where no event ever ended.
        """
        events: list[Event] = []
        for entry in entries:
            self._transcript.add(entry)
            record = entry[1]
            match record:
                case Tokens():
                    events += self._delta(record)
                case Done():
                    events += self._closing(record.text)
                case Failed():
                    events += self._closing(None)
        return events

    def _delta(self, record: Tokens) -> list[Event]:
        number = LAST_OPENING + self._transcript.lengths[0]
        if number <= self._seen:
            return []
        if LAST_OPENING + record.offset < self._seen:
            raise ClientError(
                "no event of this response has this number",
                param="starting_after",
                code="invalid_cursor",
            )
        return [self._text(number, record.text)] if record.text else []

    def _text(self, number: int, text: str) -> Event:
        lane = self._lane.get("stream_id", UNSET)
        delta = TextDelta(number, self._item_id, text, lane)
        return Event(delta.type, number, _encoder.encode(delta))

    def _closing(self, held_back: str | None) -> list[Event]:
        """The events after the last token; with None, of a job that failed, only the very last."""
        number = LAST_OPENING + self._transcript.lengths[0] + 1
        response = response_object(self._job, self._transcript)
        outcome = "failed" if response.status == "cancelled" else response.status
        last = (f"response.{outcome}", {"response": response})
        if held_back is None:
            return self._events(number + 4, last)
        text = self._transcript.text()
        place = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        finished = response.output[0]
        is_held = held_back and number > self._seen
        return ([self._text(number, held_back)] if is_held else []) + self._events(
            number + 1,
            ("response.output_text.done", place | {"text": text, "logprobs": ()}),
            ("response.content_part.done", place | {"part": Part(text)}),
            ("response.output_item.done", {"output_index": 0, "item": finished}),
            last,
        )

    def _events(self, number: int, *events: tuple[str, dict[str, Any]]) -> list[Event]:
        return [
            Event(
                kind,
                at,
                _encoder.encode({"type": kind, "sequence_number": at, **fields, **self._lane}),
            )
            for at, (kind, fields) in enumerate(events, number)
            if at > self._seen
        ]


class ResponseFrames:
    """The events as a server-sent stream; see gateway.streaming.Frames."""

    def __init__(self, events: ResponseEvents) -> None:
        self._events = events

    def opening(self) -> bytes:
        """See Frames."""
        return as_sse(self._events.opening())

    def add(self, entries: Iterable[Entry]) -> bytes:
        """See Frames."""
        return as_sse(self._events.add(entries))

    def failure(self, record: Failed) -> bytes:
        """See Frames."""
        found = msgspec.to_builtins(errors.of_failed(record))
        data = _encoder.encode({"type": "error", "sequence_number": 0, **found})
        return b"event: error\ndata: %b\n\n" % data


def as_sse(events: Iterable[Event]) -> bytes:
    """Server-sent events, the number as id."""
    return b"".join(
        b"event: %b\nid: %d\ndata: %b\n\n"
        % (event.type.encode(), event.sequence_number, event.data)
        for event in events
    )
