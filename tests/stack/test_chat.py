from collections.abc import Callable

import httpx
import msgspec
import pytest

from stack.chat import Figures, Message, ServiceError, answer, make_client

STORY = [Message("user", "Tell me a story.")]
FINAL = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    "metrics": {
        "tokens_per_second": 120.0,
        "speculative_decoding": {
            "num_draft_tokens": 4, "draft_acceptance_rate": 0.5, "mean_acceptance_length": 2.0,
        },
    },
}  # fmt: skip


def sse(*events: object) -> bytes:
    return b"".join(b"id: 1\ndata: " + msgspec.json.encode(event) + b"\n\n" for event in events)


def text(content: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content}}]}


async def pieces(
    respond: Callable[[httpx.Request], httpx.Response],
) -> list[str | Figures]:
    transport = httpx.MockTransport(respond)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        stream = answer(client, model="storyteller", messages=STORY, temperature=0.7)
        return [piece async for piece in stream]


async def test_an_answer_is_its_text_then_its_figures() -> None:
    """Comments, ids and chunks without text are skipped."""
    body = (
        b": keep-alive\n\n"
        + sse(text(""), text("Once "), text("upon"), FINAL)
        + b"data: [DONE]\n\n"
    )

    def respond(request: httpx.Request) -> httpx.Response:
        asked = msgspec.json.decode(request.content)
        assert (asked["model"], asked["stream"]) == ("storyteller", True)
        assert asked["messages"] == [{"role": "user", "content": "Tell me a story."}]
        return httpx.Response(200, content=body)

    assert await pieces(respond) == ["Once ", "upon", Figures(3, 120.0, 0.5, 2.0)]


async def test_without_drafts_there_is_no_acceptance() -> None:
    """Zero of zero is not a rate."""
    final = FINAL | {"metrics": {"tokens_per_second": None}}
    body = sse(final) + b"data: [DONE]\n\n"
    found = await pieces(lambda _: httpx.Response(200, content=body))
    assert found == [Figures(3, None, None, None)]


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (404, b'{"error":{"message":"no model","code":"not_found"}}', "no model", "not_found"),
        (502, b"<html>", "the gateway answered with status 502", ""),
        (200, sse({"error": {"message": "worker\nlost", "code": "lost"}}), "worker lost", "lost"),
        (200, sse(text("Once")), "the answer broke off", ""),
        (200, b"data: {\n\n", "the gateway sent what is no chunk", ""),
    ],
    ids=["refused", "not-ours", "in-stream", "broken-off", "garbage"],
)  # fmt: skip
async def test_a_failure_is_one_line(status: int, body: bytes, expected: str, code: str) -> None:
    """Whatever goes wrong, a person reads one sentence."""
    with pytest.raises(ServiceError, match=expected) as error:
        await pieces(lambda _: httpx.Response(status, content=body))
    assert error.value.code == code
    assert "\n" not in str(error.value)


async def test_nobody_there_is_one_line() -> None:
    """A gateway that died is not a traceback."""
    async with make_client("http://127.0.0.1:9") as client:
        with pytest.raises(ServiceError, match="the gateway does not answer"):
            await anext(answer(client, model="m", messages=STORY, temperature=0))
