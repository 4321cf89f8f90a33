from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.job import Job
from gateway.response_request import conversation, parse_response_request, response_job
from shared.common.errors import ClientError
from shared.protocol.requests import ChatMessage

BASE = {"model": "m", "input": "hi"}


def make(**fields: object) -> Job:
    """The job of a body."""
    return follow((), **fields)


def follow(earlier: tuple[ChatMessage, ...], /, **fields: object) -> Job:
    """The job of a body that continues a conversation."""
    request = parse_response_request(msgspec.json.encode(BASE | fields))
    return response_job("resp_1", request, earlier=earlier, created_ms=1)


def said(job: Job) -> list[tuple[str, str]]:
    """The messages a worker sees."""
    return [(message.role, message.text) for message in job.request.messages or ()]


def test_text_becomes_a_users_message() -> None:
    """The simplest input."""
    assert said(make()) == [("user", "hi")]


def test_items_become_messages() -> None:
    """Input items, and output items of earlier responses as clients send them back."""
    items = [
        {"role": "developer", "content": "short"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "ho", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": "more"},
    ]
    expected = [("developer", "short"), ("user", "hi"), ("assistant", "ho"), ("user", "more")]
    assert said(make(input=items)) == expected


def test_instructions_lead_and_are_not_inherited() -> None:
    """They come first, and a response that follows has only its own."""
    first = make(instructions="be kind")
    earlier = conversation(first, "ho")
    second = follow(earlier, instructions="be brief", previous_response_id="resp_1")
    assert said(first)[0] == ("system", "be kind")
    assert said(second) == [
        ("system", "be brief"),
        ("user", "hi"),
        ("assistant", "ho"),
        ("user", "hi"),
    ]
    assert second.origin.previous_response_id == "resp_1"


def test_settings_are_passed_on() -> None:
    """What both APIs name alike, and the limit they name differently."""
    request = make(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=["x"],
        top_k=4,
        on_disconnect="detach",
        speculation={"enabled": False},
        top_logprobs=0,
        tools=[],
        text={"format": {"type": "text"}},
        ignore_eos=None,
    ).request
    assert (request.output_limit, request.temperature, request.top_p) == (9, 0.5, 0.9)
    assert (request.seed, request.stop_strings, request.top_k) == (3, ("x",), 4)
    assert (request.on_disconnect, request.speculation.enabled) == ("detach", False)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"generate": False}, "generate", "unsupported_parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "unsupported_parameter"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "unsupported_parameter"),
        ({"text": {"format": 1}}, "text.format", "unsupported_parameter"),
        ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"no_such": 1}, "no_such", "unknown_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 2, "min_tokens": 3}, "min_tokens", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"role": "robot", "content": ""}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "function_call", "role": "user", "content": ""}]}, None, None),
        ({"metadata": {"outrider": "x"}}, "metadata", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_named(
    fields: dict[str, object], param: str | None, code: str | None
) -> None:
    """Errors speak of the client's own field names."""
    with pytest.raises(ClientError) as caught:
        make(**fields)
    if param is not None:
        assert (caught.value.param, caught.value.code) == (param, code)


def test_errors_use_this_apis_names() -> None:
    """A worker's field names do not leak."""
    with pytest.raises(ClientError) as caught:
        follow((ChatMessage("user", "x"),) * 1_024)
    assert caught.value.param == "input"
    assert "messages" not in caught.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null"], ids=range(6))
def test_what_is_no_body_is_the_clients_error(body: bytes) -> None:
    """Malformed and deeply nested bodies never become a server error."""
    with pytest.raises(ClientError):
        parse_response_request(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = ("input", "tools", "text", "stop", "metadata", "reasoning", "speculation", "logit_bias")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_value_is_a_job_or_a_clients_error(fields: dict[str, object]) -> None:
    """Whatever JSON a field holds, the answer is a job or a named error."""
    with suppress(ClientError):
        make(**fields)
