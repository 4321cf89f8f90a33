import asyncio
import json

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.gateway.conftest import Running, StartGateway, eventually
from tests.gateway.scripted import MODEL, STORY, ScriptedTarget, Turn
from tests.gateway.scripts import CHAT, RESPONSE, TEXT, Gated, refuse

pytestmark = pytest.mark.server


async def create(served: Running, **fields: object) -> Response:
    """A whole response through the official client."""
    found = await served.client.responses.create(**RESPONSE, **fields)  # type: ignore[call-overload]
    assert isinstance(found, Response)
    return found


def said(turn: Turn) -> list[tuple[str, str]]:
    """What the worker was shown."""
    return [(message.role, message.text) for message in turn.request.messages or ()]


async def test_a_response_is_what_the_official_client_expects(served: Running) -> None:
    """Text, status, usage; it validates strictly, and is read back the same."""
    found = await create(served, instructions="be kind", metadata={"a": "b"}, max_output_tokens=50)
    assert (found.output_text, found.status) == (TEXT, "completed")
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, len(STORY))
    assert (found.instructions, found.metadata, found.max_output_tokens) == (
        "be kind",
        {"a": "b"},
        50,
    )
    assert await served.client.responses.retrieve(found.id) == found


async def test_a_streamed_response_ends_with_itself(served: Running) -> None:
    """The client's own accumulator accepts every event."""
    async with served.client.responses.stream(model=MODEL, input="Tell me a story.") as stream:
        deltas = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == TEXT


async def test_a_response_continues_at_another_gateway_after_any_event(
    served: Running, start_gateway: StartGateway
) -> None:
    """For all cut points: what was read here and what is read there is the uncut stream."""
    other = await start_gateway()
    async with httpx.AsyncClient() as client:
        whole = (
            await client.post(f"{served.url}/v1/responses", json=RESPONSE | {"stream": True})
        ).text
        frames = [frame + "\n\n" for frame in whole.split("\n\n")[:-1]]
        events = [json.loads(frame.split("data: ")[1]) for frame in frames]
        url = f"{other.url}/v1/responses/{events[0]['response']['id']}"
        for cut, event in enumerate(events[:-1], 1):
            number = event["sequence_number"]
            rest = await client.get(url, params={"stream": "true", "starting_after": number})
            assert "".join(frames[:cut]) + rest.text == whole
            assert (await client.get(url, headers={"Last-Event-ID": str(number)})).text == rest.text


async def test_the_official_client_resumes(served: Running, start_gateway: StartGateway) -> None:
    """`retrieve(stream=True, starting_after=…)` at another gateway."""
    other = await start_gateway()
    stream = await served.client.responses.create(**RESPONSE, stream=True)  # type: ignore[call-overload]
    seen = [event async for event in stream]
    rest = await other.client.responses.retrieve(
        seen[0].response.id, stream=True, starting_after=seen[5].sequence_number
    )
    assert [event async for event in rest] == seen[6:]


async def test_a_conversation_goes_on_at_another_gateway(
    served: Running, start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """Earlier turns are rebuilt from stored body and log; instructions are not inherited."""
    other = await start_gateway()
    first = await create(served, instructions="be kind")
    second = await create(other, previous_response_id=first.id)
    await create(served, previous_response_id=second.id, instructions="be brief")
    ask = ("user", "Tell me a story.")
    assert said(target.turns[-1]) == [
        ("system", "be brief"),
        *(ask, ("assistant", TEXT)),
        *(ask, ("assistant", TEXT)),
        ask,
    ]
    assert second.previous_response_id == first.id


async def test_an_unknown_earlier_response_is_named(served: Running) -> None:
    """OpenAI's code for it."""
    with pytest.raises(openai.BadRequestError) as caught:
        await create(served, previous_response_id="resp_0")
    assert (caught.value.code, caught.value.param) == (
        "previous_response_not_found",
        "previous_response_id",
    )


async def test_a_response_can_be_cancelled_at_another_gateway(
    served: Running, start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """Whoever knows the id; the stream ends with a failed event, and what was said stays."""
    other = await start_gateway()
    target.script = Gated()
    stream = await served.client.responses.create(**RESPONSE, stream=True)  # type: ignore[call-overload]
    created = await anext(stream)
    await eventually(lambda: target.turns)
    found = await other.client.responses.cancel(created.response.id)
    assert found.status == "cancelled"
    assert [event async for event in stream][-1].type == "response.failed"
    with pytest.raises(openai.BadRequestError) as caught:
        await create(served, previous_response_id=created.response.id)
    assert caught.value.code == "previous_response_not_completed"


async def test_a_running_response_shows_what_it_has(
    served: Running, target: ScriptedTarget
) -> None:
    """`GET` without `stream` does not wait."""
    target.script = script = Gated()
    stream = await served.client.responses.create(**RESPONSE, stream=True)  # type: ignore[call-overload]
    created = await anext(stream)
    for _ in range(6):
        await anext(stream)
    found = await served.client.responses.retrieve(created.response.id)
    assert (found.status, found.output_text) == ("in_progress", "".join(STORY[:3]))
    script.gate.set()
    assert [event async for event in stream][-1].type == "response.completed"


async def test_a_client_that_leaves_ends_its_job(served: Running, target: ScriptedTarget) -> None:
    """Streamed or not."""
    target.script = Gated()
    stream = await served.client.responses.create(**RESPONSE, stream=True)  # type: ignore[call-overload]
    await anext(stream)
    await stream.close()
    asking = asyncio.create_task(create(served))
    await eventually(lambda: len(target.turns) == 2)
    asking.cancel()
    await eventually(lambda: all(turn.is_cancelled for turn in target.turns))


async def test_a_refusal_by_the_worker_is_a_proper_status(
    served: Running, target: ScriptedTarget
) -> None:
    """What only the model can judge is told before a stream begins."""
    target.script = refuse
    for is_stream in (True, False):
        with pytest.raises(openai.BadRequestError, match="too long"):
            await served.client.responses.create(**RESPONSE, stream=is_stream)  # type: ignore[call-overload]


async def test_both_apis_read_the_same_job(served: Running) -> None:
    """An answer is one log; an API is a way to show it."""
    response = await create(served)
    async with httpx.AsyncClient() as client:
        chat = await client.get(f"{served.url}/v1/chat/completions/{response.id}")
        assert chat.json()["choices"][0]["message"]["content"] == TEXT
        two = await client.post(f"{served.url}/v1/chat/completions", json=CHAT | {"n": 2})
        refused = await client.get(f"{served.url}/v1/responses/{two.json()['id']}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/responses/resp_0", 404, "not_found"),
        ("GET", f"/v1/responses/{'x' * 2_000}", 404, "not_found"),
        ("POST", "/v1/responses/resp_0/cancel", 404, "not_found"),
        ("GET", "/v1/chat/completions/%00%7B%7D", 404, "not_found"),
    ],
    ids=["unknown", "long", "cancel", "odd"],
)
async def test_an_unknown_id_is_not_found(
    served: Running, method: str, path: str, status: int, code: str
) -> None:
    """404 with a code, whatever the id looks like."""
    async with httpx.AsyncClient() as client:
        found = await client.request(method, served.url + path)
    assert (found.status_code, found.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("number", ["x", "-1", "9" * 30, "4.0"], ids=str)
async def test_a_bad_number_is_refused(served: Running, number: str) -> None:
    """The field is named."""
    found = await create(served)
    async with httpx.AsyncClient() as client:
        params = {"stream": "true", "starting_after": number}
        answer = await client.get(f"{served.url}/v1/responses/{found.id}", params=params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "starting_after")
    assert MODEL not in answer.text
