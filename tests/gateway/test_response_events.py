import json

import msgspec
import pytest
from openai.types.responses import Response
from openai.types.responses.responses_server_event import ResponsesServerEvent
from pydantic import TypeAdapter

from gateway.job import Job
from gateway.response_events import Event, ResponseEvents, as_sse
from gateway.response_request import parse_response_request, response_job
from gateway.transcript import Entry
from shared.common.errors import ClientError
from shared.protocol.records import Done, Failed, FinishReason, Record
from tests.gateway.scripted import SEED, STORY, done, story, tokens

TEXT = "".join(STORY) + " End"
EVENT = TypeAdapter[ResponsesServerEvent](ResponsesServerEvent)


def make(**fields: object) -> Job:
    """A response's job."""
    body = {"model": "m", "input": "hi", "instructions": "be kind", "metadata": {"a": "b"}} | fields
    request = parse_response_request(msgspec.json.encode(body))
    return response_job("resp_1", request, earlier=(), created_ms=5_000)


def log(records: list[Record]) -> list[Entry]:
    """Records with the ids a server would give."""
    return [(f"{5_100 + 10 * number}-0", record) for number, record in enumerate(records)]


def events(
    entries: list[Entry], *, starting_after: int = -1, stream_id: str | None = None
) -> list[Event]:
    """All events of a log."""
    made = ResponseEvents(make(), starting_after=starting_after, stream_id=stream_id)
    return made.opening() + made.add(entries)


LOGS = {
    "completed": story(),
    "nothing-held-back": [*tokens("a", "b", per_record=2), done(2)],
    "empty": [done(0)],
    "held-back-all": [*tokens("", ""), done(2, text="ab")],
    "failed": [*tokens("a"), Failed("x", "broken", None, 500)],
    "cancelled": [*tokens("a"), Failed("cancelled", "cancelled", None, 499)],
    "refused": [Failed("context_length_exceeded", "too long", "input", 400)],
}


@pytest.mark.parametrize("records", LOGS.values(), ids=LOGS.keys())
def test_a_response_continues_after_any_event(records: list[Record]) -> None:
    """For every number a client may have seen last, the rest is the rest, byte for byte."""
    entries = log(records)
    whole = events(entries)
    for number, event in enumerate(whole, 1):
        assert events(entries, starting_after=event.sequence_number) == whole[number:]


@pytest.mark.parametrize("records", LOGS.values(), ids=LOGS.keys())
def test_every_event_is_what_the_official_client_parses(records: list[Record]) -> None:
    """Events validate strictly as the client's own types."""
    for event in events(log(records), stream_id="lane"):
        found = EVENT.validate_json(event.data, strict=True)
        assert found.type == event.type
        assert found.sequence_number == event.sequence_number
        assert found.stream_id == "lane"


def test_numbers_are_a_function_of_the_log() -> None:
    """0 to 3, then 3 + t, then what comes after the last token."""
    made = events(log([*tokens("a", "b", "c", per_record=2), done(3, text="d")]))
    assert [(event.type.removeprefix("response."), event.sequence_number) for event in made] == [
        ("created", 0),
        ("in_progress", 1),
        ("output_item.added", 2),
        ("content_part.added", 3),
        ("output_text.delta", 5),
        ("output_text.delta", 6),
        ("output_text.delta", 7),
        ("output_text.done", 8),
        ("content_part.done", 9),
        ("output_item.done", 10),
        ("completed", 11),
    ]


def test_deltas_add_up_to_the_final_text() -> None:
    """What streams is what the last events repeat."""
    made = [json.loads(event.data) for event in events(log(story()))]
    deltas = [event["delta"] for event in made if event["type"].endswith("text.delta")]
    assert "".join(deltas) == TEXT
    assert made[-4]["text"] == TEXT
    assert Response.model_validate(made[-1]["response"]).output_text == TEXT


def test_the_final_message_carries_the_figures() -> None:
    """Usage in OpenAI's fields, speculation in vLLM's, the seed to replay it."""
    response = json.loads(events(log(story()))[-1].data)["response"]
    found = Response.model_validate(response)
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, len(STORY))
    assert found.usage.input_tokens_details.cached_tokens == 2
    assert response["seed"] == SEED
    assert response["metrics"]["speculative_decoding"]["draft_acceptance_rate"] == 0.5
    assert response["metrics"]["time_to_first_token_ms"] == 100
    assert (found.instructions, found.metadata) == ("be kind", {"a": "b"})


@pytest.mark.parametrize(
    ("terminal", "kind", "status"),
    [
        pytest.param(done(1), "completed", "completed", id="completed"),
        pytest.param(
            Done(0, "", (FinishReason.LENGTH,), 1, done(1).usage, done(1).speculation),
            *("incomplete", "incomplete"),
            id="incomplete",
        ),
        pytest.param(Failed("x", "y"), "failed", "failed", id="failed"),
        pytest.param(Failed("cancelled", "", None, 499), "failed", "cancelled", id="cancelled"),
    ],
)
def test_a_response_says_how_it_ended(terminal: Record, kind: str, status: str) -> None:
    """Exactly one event is the last, and its response has the status."""
    last = events(log([*tokens("a"), terminal]))[-1]
    response = json.loads(last.data)["response"]
    assert (last.type, response["status"]) == (f"response.{kind}", status)
    assert response["output"][0]["content"][0]["text"] == "a"


def test_a_number_inside_a_record_is_refused() -> None:
    """No event had it; guessing would repeat or lose text."""
    with pytest.raises(ClientError) as caught:
        events(log(tokens("a", "b", per_record=2)), starting_after=4)
    assert caught.value.code == "invalid_cursor"


def test_events_become_server_sent_events() -> None:
    """Name, number as id, JSON."""
    assert as_sse([Event("x", 7, b"{}")]) == b"event: x\nid: 7\ndata: {}\n\n"
