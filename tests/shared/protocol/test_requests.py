"""The body of a job: every field's bounds, and an error that names the field."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.common.errors import ClientError
from shared.protocol import limits
from shared.protocol.requests import ChatRequest, parse_request, sampling_params
from shared.protocol.sampling import SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]
VALID = {"model": "storyteller", "messages": MESSAGES}


def parse(**fields: Any) -> ChatRequest:  # noqa: ANN401 - any JSON
    """A valid body with these fields changed; `...` leaves a field out."""
    body = {name: value for name, value in (VALID | fields).items() if value is not ...}
    return parse_request(json.dumps(body).encode())


ALLOWED: dict[str, list[Any]] = {
    "prompt": ["text", [1, 2], [0], [2**31 - 1]],
    "max_tokens": [1, limits.MAX_TOKENS_CAP, None],
    "max_completion_tokens": [1, limits.MAX_TOKENS_CAP],
    "min_tokens": [0, limits.MAX_TOKENS_CAP],
    "temperature": [0, 0.0, 2.0, None],
    "top_p": [1e-9, 1.0],
    "top_k": [-1, 0, limits.MAX_TOP_K],
    "min_p": [0.0, 1.0],
    "repetition_penalty": [0.01, 10.0],
    "presence_penalty": [-2.0, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "logit_bias": [{}, {"0": 100, "999999999": -100.0}],
    "stop": ["x", ["x"] * limits.MAX_STOP_STRINGS, "x" * limits.MAX_STOP_STRING_CHARS, []],
    "stop_token_ids": [[], [0] * limits.MAX_STOP_TOKEN_IDS],
    "seed": [-(2**63), 2**64 - 1],
    "n": [1, limits.MAX_CHOICES],
    "speculation": [{"enabled": False}, {"num_speculative_tokens": limits.MAX_SPECULATIVE_TOKENS}],
    "on_disconnect": ["cancel", "detach"],
    "stream_options": [{"include_usage": True, "unknown_option": 1}],
    "logprobs": [False, None],
    "tools": [[], None],
    "tool_choice": ["none", "auto"],
    "response_format": [{"type": "text"}, {}],
    "echo": [False],
}

REFUSED: dict[str, list[Any]] = {
    "model": [..., None, 1],
    "messages": [..., [], "hi", [MESSAGES[0]] * (limits.MAX_MESSAGES + 1)],
    "messages[0].role": [[{"role": "tool", "content": "x"}], [{"role": None, "content": "x"}]],
    "messages[0].content": [[{"role": "user"}], [{"role": "user", "content": 1}]],
    "messages[0].content[0].type": [
        [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]
    ],
    "max_tokens": [0, -1, limits.MAX_TOKENS_CAP + 1, 1.5, "1", True],
    "max_completion_tokens": [0, limits.MAX_TOKENS_CAP + 1],
    "min_tokens": [-1, limits.MAX_TOKENS_CAP + 1],
    "temperature": [-0.1, 2.1, "hot"],
    "top_p": [0, 1.1],
    "top_k": [-2, limits.MAX_TOP_K + 1],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, 10.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "logit_bias": [{str(n): 0 for n in range(limits.MAX_LOGIT_BIAS + 1)}, []],
    "logit_bias.5": [{"5": 100.1}, {"5": -101}],
    "logit_bias.x": [{"x": 1}],
    "logit_bias.-1": [{"-1": 1}],
    "logit_bias.\uff11": [{"\uff11": 1}],
    "stop": ["", ["x"] * (limits.MAX_STOP_STRINGS + 1), "x" * (limits.MAX_STOP_STRING_CHARS + 1)],
    "stop[1]": [["x", ""]],
    "stop_token_ids": [[0] * (limits.MAX_STOP_TOKEN_IDS + 1)],
    "stop_token_ids[0]": [[-1], [2**31]],
    "seed": [2**64, -(2**63) - 1, 1.5],
    "n": [0, limits.MAX_CHOICES + 1],
    "speculation.num_speculative_tokens": [
        {"num_speculative_tokens": limits.MAX_SPECULATIVE_TOKENS + 1},
        {"num_speculative_tokens": 0},
    ],
    "speculation.depth": [{"depth": 1}],
    "on_disconnect": ["ignore"],
    "logprobs": [True],
    "top_logprobs": [5],
    "tools": [[{"type": "function"}]],
    "tool_choice": ["required", {"type": "function"}],
    "response_format": [{"type": "json_object"}],
    "echo": [True],
    "best_of": [2],
}


def _cases(table: dict[str, list[Any]]) -> Any:  # noqa: ANN401 - pytest's own type is private
    return [
        pytest.param(name, value, id=f"{name}={value!r:.40}")
        for name, values in table.items()
        for value in values
    ]


@pytest.mark.parametrize(("field", "value"), _cases(ALLOWED))
def test_the_edge_of_what_is_allowed(field: str, value: Any) -> None:  # noqa: ANN401 - any JSON
    """Each bound itself is inside."""
    parse(**{field: value}, **({"messages": ...} if field == "prompt" else {}))


@pytest.mark.parametrize(("path", "value"), _cases(REFUSED))
def test_one_step_beyond(path: str, value: Any) -> None:  # noqa: ANN401 - any JSON
    """Refused, with the path of the field and a status below 500; nothing is clamped."""
    field = path.partition(".")[0].partition("[")[0]
    with pytest.raises(ClientError) as caught:
        parse(**{field: value})
    assert caught.value.param == path
    assert 400 <= caught.value.status < 500
    assert caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": ..., "prompt": ""}, "prompt"),
        ({"messages": ..., "prompt": []}, "prompt"),
        ({"prompt": "both"}, "messages"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ],
    ids=str,
)
def test_combinations_that_make_no_sense(fields: dict[str, Any], param: str) -> None:
    """Each field alone would be fine."""
    with pytest.raises(ClientError) as caught:
        parse(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"tools": ' + b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_value"),
        (b" " * (limits.MAX_BODY_BYTES + 1), "too_large"),
        (b'{"temperature": NaN}', "invalid_json"),
    ],
    ids=["empty", "half", "utf-16", "bad utf-8", "deep", "list", "huge", "nan"],
)
def test_bodies_that_are_no_request(body: bytes, code: str) -> None:
    """Each has a code for a program."""
    with pytest.raises(ClientError) as caught:
        parse_request(body)
    assert caught.value.code == code


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
fields = st.sampled_from(list(ChatRequest.__struct_fields__))


@given(st.binary(max_size=300) | st.dictionaries(fields, json_values).map(msgspec.json.encode))
def test_whatever_comes_is_a_request_or_a_client_error(body: bytes) -> None:
    """No bytes raise anything else."""
    try:
        request = parse_request(body)
    except ClientError as error:
        assert 400 <= error.status < 500  # noqa: PT017 - either outcome is right
    else:
        sampling_params(request, seed=1, stop_token_ids=(2,))


@given(st.dictionaries(fields, json_values))
def test_a_valid_request_with_anything_added(extra: dict[str, Any]) -> None:
    """The same from the other side: most of these get past the required fields."""
    try:
        parse(**extra)
    except ClientError as error:
        assert 400 <= error.status < 500  # noqa: PT017 - either outcome is right


def test_what_is_absent_takes_the_default_of_the_openai_api() -> None:
    """One choice, as long as the context, temperature 1, nothing filtered."""
    request = parse()
    assert (request.num_choices, request.output_limit, request.stop_strings) == (1, None, ())
    params = sampling_params(request, seed=-1, stop_token_ids=(2, 3))
    assert params == SamplingParams(seed=2**64 - 1, stop_token_ids=(2, 3))


def test_every_parameter_reaches_the_sampler() -> None:
    """Under its own name; stop ids without repeats, the model's own last."""
    request = parse(
        temperature=0.0,
        top_k=-1,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={"7": -1.5},
        min_tokens=2,
        stop_token_ids=[5, 2],
    )
    assert sampling_params(request, seed=9, stop_token_ids=(2, 3)) == SamplingParams(
        *(9, 0.0, 0, 0.5, 0.1, 1.1, 0.2, 0.3),
        logit_bias=((7, -1.5),),
        min_tokens=2,
        stop_token_ids=(5, 2, 3),
    )
    own = sampling_params(parse(ignore_eos=True, stop_token_ids=[5]), seed=0, stop_token_ids=(2,))
    assert own.stop_token_ids == (5,)


def test_penalties_are_seen() -> None:
    """So that a batch without any can skip them."""
    assert not SamplingParams(seed=0).has_penalties
    for name, value in (
        ("repetition_penalty", 1.1),
        ("presence_penalty", 0.1),
        ("frequency_penalty", -0.1),
    ):
        assert msgspec.structs.replace(SamplingParams(seed=0), **{name: value}).has_penalties


def test_content_parts_are_one_text() -> None:
    """A list of parts and a string say the same; limits of both names hold."""
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    request = parse(messages=[{"role": "user", "content": parts}], max_tokens=9, stop=["x", "y"])
    assert request.messages is not None
    assert request.messages[0].text == "ab"
    assert (request.output_limit, request.stop_strings) == (9, ("x", "y"))
    assert parse(max_tokens=9, max_completion_tokens=5).output_limit == 5
    plain = parse(stop="x")
    assert plain.stop_strings == ("x",)
    assert plain.messages is not None
    assert plain.messages[0].text == "hi"
