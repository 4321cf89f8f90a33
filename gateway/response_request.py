"""The body of a response, turned into the chat completion body that travels in the jobs stream.

What both APIs name alike is passed on as it came and checked by shared.protocol.requests; what a
response names otherwise is checked here, so that an error names the field the client wrote.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from gateway.job import Job, Origin, make_job
from shared.common.errors import ClientError
from shared.protocol import limits
from shared.protocol.requests import ChatMessage, TextPart, read_json

_NAMES = {"max_completion_tokens": "max_output_tokens", "messages": "input"}  # chat's to ours
_PASSED_ON = (
    "temperature",
    "top_p",
    "metadata",
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "min_tokens",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "seed",
    "speculation",
    "on_disconnect",
)


class InputItem(msgspec.Struct, frozen=True):
    """One message of `input`. Output items of earlier responses are messages too."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    type: Literal["message"] = "message"


Items = Annotated[list[InputItem], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]


class ResponseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/responses`. Empty `Raw`: absent."""

    model: str
    input: str | Items
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_CAP)] | None = None
    previous_response_id: Annotated[str, Meta(max_length=limits.MAX_ID_CHARS)] | None = None
    stream: bool | None = None
    temperature: Raw = Raw()
    top_p: Raw = Raw()
    metadata: Raw = Raw()
    user: Raw = Raw()
    service_tier: Raw = Raw()
    safety_identifier: Raw = Raw()
    prompt_cache_key: Raw = Raw()
    min_tokens: Raw = Raw()
    top_k: Raw = Raw()
    min_p: Raw = Raw()
    repetition_penalty: Raw = Raw()
    presence_penalty: Raw = Raw()
    frequency_penalty: Raw = Raw()
    logit_bias: Raw = Raw()
    stop: Raw = Raw()
    stop_token_ids: Raw = Raw()
    ignore_eos: Raw = Raw()
    seed: Raw = Raw()
    speculation: Raw = Raw()
    on_disconnect: Raw = Raw()
    # Accepted for compatibility; they change nothing here.
    store: bool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    stream_options: dict[str, Any] | None = None
    # Known to clients, not served: any value but the default is an error that says so.
    background: bool | None = None
    generate: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    include: list[Any] | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    conversation: Any = None
    prompt: Any = None


class CreateFrame(ResponseRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`response.create` over a WebSocket: the same body in an envelope."""

    type: str = "response.create"
    stream_id: str | None = None


_request_decoder = msgspec.json.Decoder(ResponseRequest)
_frame_decoder = msgspec.json.Decoder(CreateFrame)


def parse_response_request(body: bytes, *, is_frame: bool = False) -> ResponseRequest:
    """Read a body, or with `is_frame` the text of a `response.create` frame.

    Raises:
        ClientError: not JSON, or a field is unknown, unsupported or malformed; `param` names it.
    """
    request = read_json(_frame_decoder, body) if is_frame else read_json(_request_decoder, body)
    _refuse_unsupported(request)
    return request


def response_job(
    job_id: str, request: ResponseRequest, *, earlier: tuple[ChatMessage, ...], created_ms: int
) -> Job:
    """The job of a checked request.

    Args:
        job_id: of the new response.
        request: see parse_response_request.
        earlier: the conversation so far, without the instructions of earlier responses.
        created_ms: Unix time.
    Raises:
        ClientError: as of shared.protocol.requests.parse_request, with this API's field names.
    """
    new = (
        (ChatMessage("user", request.input),)
        if isinstance(request.input, str)
        else tuple(ChatMessage(item.role, item.content) for item in request.input)
    )
    leading = (ChatMessage("system", request.instructions),) if request.instructions else ()
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_plain(message) for message in (*leading, *earlier, *new)],
    }
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    for name in _PASSED_ON:
        value: Raw = getattr(request, name)
        if value and bytes(value) != b"null":
            body[name] = value
    origin = Origin(created_ms, request.previous_response_id, bool(leading))
    try:
        return make_job(job_id, msgspec.json.encode(body), origin)
    except ClientError as error:
        if error.param is None:
            raise
        name = error.param.partition("[")[0].partition(".")[0]
        param = _NAMES.get(name, name) + error.param[len(name) :]
        message = error.message.replace(error.param, param)
        raise ClientError(message, param=param, code=error.code, status=error.status) from error


def conversation(job: Job, answer: str) -> tuple[ChatMessage, ...]:
    """What was said up to and with `answer`, without the instructions: they are not inherited."""
    messages = tuple(job.request.messages or ())[int(job.origin.has_instructions) :]
    return (*messages, ChatMessage("assistant", answer))


def _plain(message: ChatMessage) -> dict[str, str]:
    return {"role": message.role, "content": message.text}


def _refuse_unsupported(request: ResponseRequest) -> None:
    text_format = (request.text or {}).get("format") or {}
    kind = text_format.get("type", "text") if isinstance(text_format, dict) else None
    asked = {
        "background": bool(request.background),
        "generate": request.generate is False,
        "tools": bool(request.tools),
        "tool_choice": request.tool_choice not in (None, "none", "auto"),
        "include": bool(request.include),
        "reasoning": any(value is not None for value in (request.reasoning or {}).values()),
        "text.format": kind != "text",
        "top_logprobs": bool(request.top_logprobs),
        "truncation": request.truncation not in (None, "disabled"),
        "conversation": request.conversation is not None,
        "prompt": request.prompt is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ClientError(f"{name} is not supported", param=name, code="unsupported_parameter")
