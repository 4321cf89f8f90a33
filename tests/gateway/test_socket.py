import json
from typing import Any

import pytest
from openai.types.responses import ResponsesServerEvent
from openai.types.responses.responses_server_event import ResponseWsCompleted, ResponseWsError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode

from gateway.server import MAX_FRAME_BYTES
from gateway.transport import MAX_FRAGMENTS
from tests.gateway.conftest import Running, StartGateway, eventually
from tests.gateway.scripted import MODEL, ScriptedTarget
from tests.gateway.scripts import RESPONSE, TEXT, Gated, closed, flood, refuse, until

pytestmark = pytest.mark.server

CREATE = {"type": "response.create", **RESPONSE}


def open_socket(served: Running, **options: Any) -> connect:  # noqa: ANN401 - of websockets
    """A raw connection."""
    return connect(f"ws://{served.address}/v1/responses", **options)


async def send(socket: ClientConnection, **fields: object) -> None:
    """Send a frame."""
    await socket.send(json.dumps(fields))


async def test_the_official_client_talks_in_lanes(served: Running) -> None:
    """Its own connection, its own types: two lanes at once, and an answer to an answer."""
    async with served.client.responses.connect() as connection:
        for lane in ("a", "b"):
            await connection.response.create(
                model=MODEL, input="Tell me a story.", stream_id=lane, temperature=0.5
            )
        events: dict[str, list[ResponsesServerEvent]] = {"a": [], "b": []}
        finished: dict[str, ResponseWsCompleted] = {}
        while len(finished) < 2:
            event = await connection.recv()
            assert event.stream_id is not None
            events[event.stream_id].append(event)
            if isinstance(event, ResponseWsCompleted):
                finished[event.stream_id] = event
        for lane, found in events.items():
            deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
            assert "".join(deltas) == finished[lane].response.output_text == TEXT
        await connection.response.create(
            model=MODEL, input="More!", previous_response_id=finished["a"].response.id
        )
        while not isinstance(event := await connection.recv(), ResponseWsCompleted):
            assert not isinstance(event, ResponseWsError)
        assert event.response.previous_response_id == finished["a"].response.id


async def test_one_lane_is_in_order(served: Running, target: ScriptedTarget) -> None:
    """The second answer of a lane begins after the first has ended; other lanes do not wait."""
    target.script = script = Gated()
    async with open_socket(served) as socket:
        await send(socket, **CREATE, stream_id="a")
        await send(socket, **CREATE, stream_id="a")
        await send(socket, **CREATE, stream_id="b")
        await eventually(lambda: len(target.turns) == 2)
        script.gate.set()
        found = await until(socket, "response.completed")
        while sum(event["type"] == "response.completed" for event in found) < 3:
            found += await until(socket, "response.completed")
    ids = [event["response"]["id"] for event in found if "response" in event]
    lane = [event for event in found if event["stream_id"] == "a"]
    assert len(set(ids)) == 3
    assert [event["sequence_number"] for event in lane].count(0) == 2
    numbers = [event["sequence_number"] for event in lane]
    assert numbers[: len(numbers) // 2] == numbers[len(numbers) // 2 :] == sorted(set(numbers))


async def test_a_response_is_cancelled_in_band(served: Running, target: ScriptedTarget) -> None:
    """The lane hears how it ended, and is free again."""
    target.script = script = Gated()
    async with open_socket(served) as socket:
        await send(socket, **CREATE)
        created = (await until(socket, "response.created"))[-1]["response"]["id"]
        await send(socket, type="response.cancel", response_id=created)
        ended = (await until(socket, "response.failed"))[-1]
        assert ended["response"]["status"] == "cancelled"
        script.gate.set()
        await send(socket, **CREATE)
        await until(socket, "response.completed")


async def test_a_refusal_by_the_worker_ends_the_response(
    served: Running, target: ScriptedTarget
) -> None:
    """What only the model can judge is told in OpenAI's words and in ours; the lane is free."""
    target.script = refuse
    async with open_socket(served) as socket:
        for _ in range(2):
            await send(socket, **CREATE)
            error = (await until(socket, "response.failed"))[-1]["response"]["error"]
            assert (error["code"], error["type"]) == ("invalid_prompt", "context_length_exceeded")


async def test_a_response_continues_on_another_connection(
    served: Running, start_gateway: StartGateway
) -> None:
    """`response.resume` with the last number seen, at another gateway: no gap, no repeat."""
    other = await start_gateway()
    async with open_socket(served) as socket, open_socket(other) as second:
        await send(socket, **CREATE)
        whole = await until(socket, "response.completed")
        created = whole[0]["response"]["id"]
        for cut, event in enumerate(whole[:-1], 1):
            number = event["sequence_number"]
            await send(second, type="response.resume", response_id=created, starting_after=number)
            assert await until(second, "response.completed") == whole[cut:]
        await send(second, type="response.resume", response_id=created, starting_after=100)


async def test_a_client_that_leaves_ends_what_it_asked_for(
    served: Running, target: ScriptedTarget
) -> None:
    """All lanes, except what was to go on without it."""
    target.script = Gated()
    async with open_socket(served) as socket:
        for lane in "ab":
            await send(socket, **CREATE, stream_id=lane)
        await send(socket, **CREATE, stream_id="c", on_disconnect="detach")
        await eventually(lambda: len(target.turns) == 3)
    await eventually(lambda: sum(turn.is_cancelled for turn in target.turns) == 2)
    detached = [turn for turn in target.turns if turn.request.on_disconnect == "detach"]
    assert not detached[0].is_cancelled
    await eventually(lambda: served.gateway.admission.num_sockets == 0)


HOSTILE: dict[str, tuple[str | bytes, str, str | None]] = {
    "no-json": ("hello", "invalid_json", None),
    "no-utf8": (b"\xff\xfe", "invalid_json", None),
    "no-object": ("[1]", "invalid_value", None),
    "deep": ("[" * 100_000, "invalid_value", None),
    "deep-field": (
        '{"type":"response.create","model":"m","input":"x","metadata":' + "[" * 100_000,
        "invalid_json",
        None,
    ),
    "no-type": ("{}", "missing_required_parameter", "type"),
    "unknown-type": ('{"type":"session.update"}', "unknown_event", "type"),
    "no-model": ('{"type":"response.create","input":"x"}', "missing_required_parameter", "model"),
    "bad-field": (json.dumps(CREATE | {"temperature": 9}), "invalid_value", "temperature"),
    "background": (
        json.dumps(CREATE | {"background": True}),
        "unsupported_parameter",
        "background",
    ),
    "bad-model": (json.dumps(CREATE | {"model": "x"}), "model_not_found", "model"),
    "bad-lane": (json.dumps(CREATE | {"stream_id": "x" * 200}), "invalid_value", "stream_id"),
    "bad-previous": (
        json.dumps(CREATE | {"previous_response_id": "resp_0"}),
        "previous_response_not_found",
        "previous_response_id",
    ),
    "cancel-unknown": (
        '{"type":"response.cancel","response_id":"resp_0"}',
        "response_not_found",
        None,
    ),
    "resume-unknown": (
        '{"type":"response.resume","response_id":"resp_0"}',
        "response_not_found",
        "response_id",
    ),
    "resume-bad-number": (
        '{"type":"response.resume","response_id":"r","starting_after":-2}',
        "invalid_value",
        "starting_after",
    ),
}


@pytest.mark.parametrize(("frame", "code", "param"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_bad_frame_is_answered_and_survived(
    served: Running, frame: str | bytes, code: str, param: str | None
) -> None:
    """An error in OpenAI's shape; the connection goes on."""
    async with open_socket(served) as socket:
        await socket.send(frame)
        error = (await until(socket, "error"))[-1]
        assert error["error"]["code"] == code
        assert 400 <= error["status"] < 500
        if param is not None:
            assert error["error"]["param"] == param
        await send(socket, **CREATE)
        await until(socket, "response.completed")


async def test_an_error_names_its_lane(served: Running) -> None:
    """So that a client knows which of its requests it was."""
    async with open_socket(served) as socket:
        await send(socket, **CREATE | {"top_p": 7}, stream_id="a")
        assert (await until(socket, "error"))[-1]["stream_id"] == "a"


async def test_lanes_and_their_queues_are_bounded(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """What does not fit is refused with 429, the rest is served."""
    served = await start_gateway(max_lanes=1, max_lane_queue=1)
    target.script = script = Gated()
    async with open_socket(served) as socket:
        for lane in ("a", "a", "a", "b"):
            await send(socket, **CREATE, stream_id=lane)
        codes = [(await until(socket, "error"))[-1]["error"]["code"] for _ in range(2)]
        assert codes == ["lane_full", "too_many_lanes"]
        script.gate.set()
        for _ in range(2):
            await until(socket, "response.completed")


async def test_text_that_is_no_utf8_closes_the_connection(served: Running) -> None:
    """1007, as RFC 6455 has it."""
    async with open_socket(served) as socket:
        await socket.send(b"\xff\xfe", text=True)
        assert await closed(socket) == 1007


async def test_a_message_that_is_too_big_closes_the_connection(served: Running) -> None:
    """1009, before it is in memory."""
    async with open_socket(served) as socket:
        await socket.send("x" * (MAX_FRAME_BYTES + 1))
        assert await closed(socket) == 1009


async def test_a_message_of_too_many_fragments_closes_the_connection(served: Running) -> None:
    """Fragments without bytes cost memory, too."""
    async with open_socket(served) as socket:
        empty = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True)
        first = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
        socket.transport.write(first + empty * (MAX_FRAGMENTS + 1))
        assert await closed(socket) == 1009


async def test_a_page_of_another_site_is_refused(served: Running) -> None:
    """Browsers send the origin; connections without one are no browsers."""
    with pytest.raises(InvalidStatus) as caught:
        async with open_socket(served, origin="http://evil.example"):
            pass
    assert caught.value.response.status_code == 403
    async with open_socket(served, origin=f"http://{served.address}"):
        pass


async def test_too_many_connections_are_refused(start_gateway: StartGateway) -> None:
    """503 with a time to come back, instead of a connection."""
    served = await start_gateway(max_streams=1)
    async with open_socket(served):
        with pytest.raises(InvalidStatus) as caught:
            async with open_socket(served):
                pass
    assert caught.value.response.status_code == 503
    assert "retry-after" in caught.value.response.headers


async def test_a_client_that_never_reads_is_let_go(
    start_gateway: StartGateway, target: ScriptedTarget
) -> None:
    """1013, and its jobs end."""
    served = await start_gateway(send_deadline_s=0.2)

    target.script = flood
    async with open_socket(served, max_queue=1, max_size=None) as socket:
        await send(socket, **CREATE)
        await eventually(lambda: target.turns and target.turns[0].is_cancelled, 20.0)
        assert served.gateway.metrics.num_slow_clients == 1
        assert await closed(socket) == 1013


async def test_compression_is_not_negotiated(served: Running) -> None:
    """It costs memory and time on every token."""
    async with open_socket(served, compression="deflate") as socket:
        assert socket.protocol.extensions == []
