import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.protocol.limits import MAX_BODY_BYTES
from tests.gateway.conftest import Running, StartGateway, eventually
from tests.gateway.scripted import MODEL, ScriptedTarget
from tests.gateway.scripts import CHAT, RESPONSE, Gated

pytestmark = pytest.mark.server

JSON_HEADERS = {"content-type": "application/json"}
PATHS = ("/v1/chat/completions", "/v1/responses")


def nested(depth: int) -> bytes:
    """A body whose `metadata` is deep."""
    return json.dumps(CHAT)[:-1].encode() + b',"metadata":' + b"[" * depth + b"]" * depth + b"}"


BAD_BODIES = {
    "empty": (b"", 400),
    "no-json": (b"hello", 400),
    "no-object": (b"[]", 400),
    "no-utf8": (b'{"model":"\xff"}', 400),
    "surrogate": (b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}', 400),
    "deep": (nested(100_000), 400),
    "deep-and-known": (nested(100_000).replace(b"metadata", b"tools"), 400),
    "null": (b"null", 400),
    "too-large": (b'"' + b"x" * MAX_BODY_BYTES + b'"', 413),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "status"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_is_the_clients_error(
    served: Running, path: str, body: bytes, status: int
) -> None:
    """Never a 500, always OpenAI's shape."""
    async with httpx.AsyncClient(base_url=served.url) as client:
        found = await client.post(path, content=body, headers=JSON_HEADERS)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}


async def test_a_body_without_a_length_is_bounded_while_it_is_read(served: Running) -> None:
    """A chunked body cannot hide its size."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b"x" * 65_536

    async with httpx.AsyncClient(base_url=served.url) as client:
        found = await client.post(PATHS[0], content=parts(), headers=JSON_HEADERS)
    assert (found.status_code, found.headers["connection"]) == (413, "close")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_only_json_is_taken(served: Running, kind: str) -> None:
    """Pages of other sites can post anything else without asking."""
    async with httpx.AsyncClient(base_url=served.url) as client:
        headers = {"content-type": kind}
        found = await client.post(PATHS[0], content=json.dumps(CHAT), headers=headers)
    assert (found.status_code, found.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"n": 99}, "n"),
        ({"no_such": 1}, "no_such"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"tools": [{}]}, "tools"),
        ({"stop": [""]}, "stop[0]"),
        ({"speculation": {"enabled": 3}}, "speculation.enabled"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_field_is_named_before_anything_is_queued(
    served: Running, target: ScriptedTarget, fields: dict[str, object], param: str
) -> None:
    """The official client raises its own error with the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.create(  # type: ignore[call-overload]
            **CHAT, extra_body=fields
        )
    assert caught.value.param == param
    assert not target.turns


async def test_an_unknown_model_is_not_found(served: Running) -> None:
    """OpenAI's code."""
    with pytest.raises(openai.NotFoundError) as caught:
        await served.client.responses.create(model="x", input="hi")
    assert caught.value.code == "model_not_found"


async def test_without_a_target_nothing_is_queued(start_gateway: StartGateway) -> None:
    """503 with a time to come back; alive, but not ready."""
    served = await start_gateway()
    async with httpx.AsyncClient(base_url=served.url) as client:
        found = await client.post(PATHS[0], json=CHAT)
        assert (found.status_code, found.json()["error"]["code"]) == (503, "no_target")
        assert "retry-after" in found.headers
        assert (await client.get("/ready")).json()["reason"] == "no_target"
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [({"max_streams": 1}, 429, "too_many_streams"), ({"max_waiting": 1}, 503, "too_many_waiting")],
    ids=["streams", "waiting"],
)
async def test_overload_is_told_at_once(
    start_gateway: StartGateway,
    target: ScriptedTarget,
    limits: dict[str, int],
    status: int,
    code: str,
) -> None:
    """With a time to come back; and room again when the first answer is gone."""
    served = await start_gateway(**limits)
    target.script = script = Gated(0)
    async with httpx.AsyncClient(base_url=served.url) as client:
        first = asyncio.create_task(client.post(PATHS[0], json=CHAT))
        await eventually(lambda: target.turns)
        found = await client.post(PATHS[1], json=RESPONSE)
        assert (found.status_code, found.json()["error"]["code"]) == (status, code)
        assert "retry-after" in found.headers
        script.gate.set()
        assert (await first).status_code == 200
        async with asyncio.timeout(10.0):  # what waits at the workers is known by heartbeats
            while (await client.post(PATHS[1], json=RESPONSE)).status_code != 200:
                await asyncio.sleep(0.05)
        text = (await client.get("/metrics")).text
    assert f'vllm:admission_rejections_total{{reason="{code}"}} 0.0' not in text


async def test_models_are_listed(served: Running) -> None:
    """Id, root and context length, as clients and benchmarks read them."""
    (found,) = (await served.client.models.list()).data
    extra = found.model_extra or {}
    assert (found.id, extra["root"], extra["max_model_len"]) == (MODEL, MODEL, 512)
    assert (await served.client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await served.client.models.retrieve("x")


async def test_metrics_count_answers_and_show_the_workers(served: Running) -> None:
    """Latencies and outcomes of this gateway, speculation of all workers."""
    await served.client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    async with httpx.AsyncClient(base_url=served.url) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    assert 'vllm:request_success_total{finished_reason="stop"} 1.0' in lines
    assert "vllm:generation_tokens_total 7.0" in lines
    assert "vllm:prompt_tokens_total 5.0" in lines
    assert f'vllm:time_to_first_token_seconds_count{{model_name="{MODEL}"}} 1.0' in lines
    assert f'vllm:spec_decode_num_drafts_total{{model_name="{MODEL}"}} 10.0' in lines


async def test_request_ids_go_in_and_out(served: Running) -> None:
    """A client's own is kept if it can be; otherwise there is a new one."""
    async with httpx.AsyncClient(base_url=served.url) as client:
        given = await client.get("/health", headers={"X-Request-Id": "mine-1"})
        made = await client.get("/health", headers={"X-Request-Id": "a b" * 100})
        error = await client.post(PATHS[0])
    assert given.headers["x-request-id"] == "mine-1"
    assert made.headers["x-request-id"].startswith("req_")
    assert error.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", PATHS[0], 405), ("DELETE", PATHS[1], 405)],
)
async def test_unknown_urls_and_methods_have_the_same_shape(
    served: Running, method: str, path: str, status: int
) -> None:
    """Clients parse every error alike."""
    async with httpx.AsyncClient(base_url=served.url) as client:
        found = await client.request(method, path)
    assert found.status_code == status
    assert found.json()["error"]["message"]


BASES: tuple[dict[str, Any], ...] = (CHAT, RESPONSE)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["model", "messages", "prompt", "stop", "n", "seed", "stream", "metadata", "x"]
    ),
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=3)),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=FIELDS)
async def test_no_body_is_a_server_error(served: Running, fields: dict[str, object]) -> None:
    """Whatever JSON is sent: an answer or a client's error."""
    async with httpx.AsyncClient(base_url=served.url) as client:
        for path, base in zip(PATHS, BASES, strict=True):
            body = msgspec.json.encode(base | fields)
            found = await client.post(path, content=body, headers=JSON_HEADERS)
            assert found.status_code < 500, found.text
