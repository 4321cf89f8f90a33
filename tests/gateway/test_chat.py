import asyncio
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from openai import AsyncStream
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.chat_frames import DONE_FRAME
from shared.protocol.records import Failed, Record
from tests.gateway.conftest import Running, StartGateway, eventually
from tests.gateway.scripted import (
    SEED,
    STORY,
    ScriptedTarget,
    Turn,
    done,
    tokens,
)
from tests.gateway.scripts import CHAT, TEXT, Gated, flood, refuse

pytestmark = pytest.mark.server


async def create(served: Running, **fields: object) -> ChatCompletion:
    """A whole completion through the official client."""
    found = await served.client.chat.completions.create(**CHAT, **fields)  # type: ignore[call-overload]
    assert isinstance(found, ChatCompletion)
    return found


async def create_stream(served: Running, **fields: object) -> AsyncStream[ChatCompletionChunk]:
    """A streamed completion through the official client."""
    found = await served.client.chat.completions.create(**CHAT, **fields, stream=True)  # type: ignore[call-overload]
    assert isinstance(found, AsyncStream)
    return found


async def post_raw(
    served: Running, *, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream over a socket that takes in no more than about `limit` bytes unread."""
    host, port = served.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=limit)
    body = httpx.Request("POST", "http://x", json=CHAT | {"stream": True}).content
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    return reader, writer


async def test_a_completion_carries_text_usage_and_speculation(served: Running) -> None:
    """The final message holds everything there is to know about an answer."""
    found = await create(served)
    assert found.choices[0].message.content == TEXT
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (5, len(STORY))
    extra = found.model_extra or {}
    assert extra["seed"] == SEED
    assert extra["metrics"]["speculative_decoding"]["num_spec_steps"] == 4


async def test_a_stream_adds_up_for_every_choice(served: Running) -> None:
    """Two choices interleave; each is whole."""
    texts = ["", ""]
    async for chunk in await create_stream(served, n=2, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert texts == [TEXT, TEXT]
    assert usage is not None
    assert usage.total_tokens == 5 + 2 * len(STORY)


@pytest.mark.parametrize("num_choices", [1, 2])
async def test_a_stream_continues_at_another_gateway_after_any_frame(
    served: Running, start_gateway: StartGateway, num_choices: int
) -> None:
    """For all cut points: what was read here and what is read there is the uncut stream."""
    other = await start_gateway()
    body = CHAT | {"n": num_choices, "stream": True, "stream_options": {"include_usage": True}}
    async with httpx.AsyncClient() as client:
        whole = (await client.post(f"{served.url}/v1/chat/completions", json=body)).text
        frames = [frame + "\n\n" for frame in whole.split("\n\n")[:-1]]
        assert frames[-1].encode() == DONE_FRAME
        job_id = ChatCompletionChunk.model_validate_json(frames[0].split("data: ")[1]).id
        url = f"{other.url}/v1/chat/completions/{job_id}"
        for cut in range(1, len(frames)):
            cursor = frames[cut - 1].split("\n")[0].removeprefix("id: ")
            by_header = await client.get(url, headers={"Last-Event-ID": cursor})
            assert "".join(frames[:cut]) + by_header.text == whole
            by_query = await client.get(url, params={"starting_after": cursor})
            assert by_query.text == by_header.text
        assert (await client.get(url, params={"stream": "true"})).text == whole
        assert (await client.get(url)).json()["choices"][0]["message"]["content"] == TEXT


async def test_a_running_stream_is_read_by_two_gateways(
    served: Running, start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """The second one joins in the middle and both see the end."""
    other = await start_gateway()
    target.script = script = Gated()
    first = await create_stream(served)
    head = [await anext(first) for _ in range(4)]
    second = asyncio.create_task(
        asyncio.to_thread(
            httpx.get,
            f"{other.url}/v1/chat/completions/{head[0].id}",
            headers={"Last-Event-ID": "3"},
            timeout=10.0,
        )
    )
    await eventually(lambda: other.gateway.admission.num_streams == 1)
    script.gate.set()
    rest = [chunk async for chunk in first]
    assert "".join(c.choices[0].delta.content or "" for c in head + rest) == TEXT
    assert (await second).text.count("data: ") == len(rest) + 1


async def test_a_client_that_leaves_ends_its_job(served: Running, target: ScriptedTarget) -> None:
    """The cancel flag reaches the worker within a round."""
    target.script = Gated()
    stream = await create_stream(served)
    await anext(stream)
    await stream.close()
    await eventually(lambda: target.turns and target.turns[0].is_cancelled)
    await eventually(lambda: served.gateway.metrics.outcomes["abort"] == 1)


async def test_a_client_that_leaves_before_the_first_token_ends_its_job(
    served: Running, target: ScriptedTarget
) -> None:
    """Also without a stream, while the answer is still waited for."""
    target.script = Gated(0)
    asking = asyncio.create_task(create(served))
    await eventually(lambda: target.turns)
    asking.cancel()
    await eventually(lambda: target.turns[0].is_cancelled)


async def test_a_detached_answer_goes_on_without_its_client(
    served: Running, target: ScriptedTarget
) -> None:
    """It can be read to the end later."""
    target.script = script = Gated()
    stream = await create_stream(served, extra_body={"on_disconnect": "detach"})
    job_id = (await anext(stream)).id
    await stream.close()
    await eventually(lambda: served.gateway.admission.num_streams == 0)
    script.gate.set()
    async with httpx.AsyncClient() as client:
        found = await client.get(f"{served.url}/v1/chat/completions/{job_id}")
    assert found.json()["choices"][0]["message"]["content"] == TEXT
    assert not target.turns[0].is_cancelled


async def test_a_refusal_by_the_worker_is_a_proper_status(
    served: Running, target: ScriptedTarget
) -> None:
    """What only the model can judge is told before a stream begins."""
    target.script = refuse
    for ask in (create, create_stream):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(served)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_a_failure_in_the_middle_reaches_the_client(
    served: Running, target: ScriptedTarget
) -> None:
    """The official client raises it; what came before was true."""

    async def break_down(_turn: Turn) -> AsyncIterator[tuple[Record, ...]]:
        yield tuple(tokens("Once"))
        yield (Failed("engine_failed", "broken", None, 500),)

    target.script = break_down
    with pytest.raises(openai.APIError, match="broken"):
        async for _ in await create_stream(served):
            pass


async def test_an_idempotency_key_is_one_answer(
    served: Running, start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """Asked twice, at two gateways at once or later, it is generated once."""
    other = await start_gateway()
    headers = {"Idempotency-Key": "k1"}
    asked = (create(gateway, extra_headers=headers) for gateway in (served, other))
    found = [*await asyncio.gather(*asked), await create(served, extra_headers=headers)]
    assert len({(answer.id, answer.choices[0].message.content) for answer in found}) == 1
    assert len(target.turns) == 1
    with pytest.raises(openai.ConflictError) as caught:
        await create(served, temperature=0.5, extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"


async def test_a_silent_stream_shows_signs_of_life(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """Comments keep proxies from closing it; clients do not see them."""
    served = await start_gateway(keepalive_s=0.05)
    target.script = script = Gated()
    body = CHAT | {"stream": True}
    seen = ""
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response,
    ):
        async for part in response.aiter_text():
            seen += part
            if seen.count(": keep-alive\n\n") == 2:
                script.gate.set()
    assert seen.endswith(DONE_FRAME.decode())
    assert seen.replace(": keep-alive\n\n", "").count("data: ") == len(STORY) + 3


async def test_a_slow_client_costs_no_memory_and_loses_nothing(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """While its socket is full the tokens stay in the log; it reads them all in the end."""
    served = await start_gateway()
    num_tokens, text = 3_000, "x" * 2_000
    finished = asyncio.Event()

    async def tell(_turn: Turn) -> AsyncIterator[tuple[Record, ...]]:
        for offset in range(0, num_tokens, 50):
            yield tuple(tokens(*[text] * 50, offset=offset))
        yield (done(num_tokens),)
        finished.set()

    target.script = tell
    reader, writer = await post_raw(served, limit=2**16)
    await asyncio.wait_for(finished.wait(), 30.0)
    received = 0
    async with asyncio.timeout(30.0):
        while not (part := await reader.read(2**16)).endswith(b"0\r\n\r\n"):
            received += part.count(b"x")
    writer.close()
    assert received + part.count(b"x") >= num_tokens * len(text)
    assert served.gateway.feed.num_catch_ups > 0


async def test_a_client_that_never_reads_is_let_go(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """Its job ends, and it is counted."""
    served = await start_gateway(send_deadline_s=0.2)

    target.script = flood
    _, writer = await post_raw(served, limit=1_024)
    await eventually(lambda: target.turns and target.turns[0].is_cancelled, 20.0)
    assert served.gateway.metrics.num_slow_clients == 1
    writer.close()
