"""The body of a job: an OpenAI chat completion request, checked field by field.

Gateways check it to answer at once; targets check it again, since anyone may write to the jobs
stream. What needs the model (context length, vocabulary) is checked by the target alone. Nothing is
clamped: a value out of range is an error.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from shared.common.errors import ClientError
from shared.protocol import limits
from shared.protocol.sampling import SamplingParams

Stop = Annotated[str, Meta(min_length=1, max_length=limits.MAX_STOP_STRING_CHARS)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Count = Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_CAP)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Body = TypeVar("Body")


class TextPart(msgspec.Struct, frozen=True):
    """A piece of a message's content. Only text is served."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )


class SpeculationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How this job may be drafted for. Changes speed, never text."""

    enabled: bool = True
    num_speculative_tokens: Annotated[int, Meta(ge=1, le=limits.MAX_SPECULATIVE_TOKENS)] | None = (
        None
    )


class StreamOptions(msgspec.Struct, frozen=True):
    """What a streamed answer carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body: `messages` or `prompt`. What is absent takes the OpenAI default."""

    model: str
    messages: (
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.MAX_MESSAGES)] | None
    ) = None
    prompt: str | Annotated[list[TokenId], Meta(max_length=limits.MAX_PROMPT_TOKENS)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=limits.MAX_TOKENS_CAP)] = 0
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=limits.MAX_TOP_K)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=limits.MAX_LOGIT_BIAS)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=limits.MAX_STOP_STRINGS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=limits.MAX_STOP_TOKEN_IDS)] | None = (
        None
    )
    ignore_eos: bool = False
    seed: int | None = None  # 64 bits, signed or not
    n: Annotated[int, Meta(ge=1, le=limits.MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    speculation: SpeculationOptions = SpeculationOptions()
    on_disconnect: Literal["cancel", "detach"] = "cancel"
    # Accepted for compatibility; they change nothing here.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Known to clients, not served: any value but the default is an error that says so.
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    echo: bool | None = None

    @property
    def num_choices(self) -> int:
        """`n`, 1 by default."""
        return self.n or 1

    @property
    def output_limit(self) -> int | None:
        """The most output tokens of one choice, or None for as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop`, always a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


_TOKEN_ID_DIGITS = 9
_decoder = msgspec.json.Decoder(ChatRequest)
_PATH = re.compile(r" - at `\$?\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def parse_request(body: bytes) -> ChatRequest:
    """Read and check one body.

    Raises:
        ClientError: not JSON, an unknown or unsupported field, or a value out of range; `param`
            names the field.
    """
    if len(body) > limits.MAX_BODY_BYTES:
        raise ClientError(
            f"the body must be at most {limits.MAX_BODY_BYTES} bytes", code="too_large", status=413
        )
    request = read_json(_decoder, body)
    _check_combinations(request)
    return request


def read_json(decoder: msgspec.json.Decoder[Body], data: bytes, *, what: str = "body") -> Body:
    """What a client sent, checked by its type; `what` is what the client calls it.

    Raises:
        ClientError: not JSON, or a field is unknown or malformed; `param` names it.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _client_error(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(f"the {what} is not JSON: {error}", code="invalid_json") from error


def _client_error(error: msgspec.ValidationError) -> ClientError:
    """msgspec's words as an error that names the field."""
    text = str(error)
    found = _PATH.search(text)
    path = found["path"] if found else ""
    message = text[: found.start()] if found else text
    if named := _UNKNOWN.match(message) or _MISSING.match(message):
        path = f"{path}.{named['name']}" if path else named["name"]
        word = (
            "unknown_parameter"
            if message.startswith("Object contains")
            else "missing_required_parameter"
        )
        sentence = "is not a parameter" if word == "unknown_parameter" else "is required"
        return ClientError(f"{path} {sentence}", param=path, code=word)
    return ClientError(f"{path or 'body'}: {message}", param=path or None)


def sampling_params(
    request: ChatRequest, *, seed: int, stop_token_ids: tuple[int, ...]
) -> SamplingParams:
    """The sampler's view of a request.

    Args:
        request: a checked body.
        seed: of this choice; any 64-bit integer, signed or not.
        stop_token_ids: the model's own end ids; left out when the request ignores them.
    """
    own = tuple(request.stop_token_ids or ())
    ends = own if request.ignore_eos else own + stop_token_ids
    return SamplingParams(
        seed=seed & (1 << 64) - 1,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=max(0, request.top_k or 0),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0
        if request.repetition_penalty is None
        else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple((int(token), bias) for token, bias in (request.logit_bias or {}).items()),
        min_tokens=request.min_tokens,
        stop_token_ids=tuple(dict.fromkeys(ends)),
    )


def _check_combinations(request: ChatRequest) -> None:
    if (request.messages is None) == (request.prompt is None):
        raise ClientError("exactly one of messages and prompt is required", param="messages")
    if request.prompt is not None and len(request.prompt) == 0:
        raise ClientError("prompt must not be empty", param="prompt")
    if request.output_limit is not None and request.min_tokens > request.output_limit:
        raise ClientError("min_tokens must not exceed max_tokens", param="min_tokens")
    if request.seed is not None and not -(1 << 63) <= request.seed < 1 << 64:
        raise ClientError("seed must fit in 64 bits", param="seed")
    for key, bias in (request.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= _TOKEN_ID_DIGITS):
            raise ClientError("logit_bias keys must be token ids", param=f"logit_bias.{key[:32]}")
        if not abs(bias) <= limits.MAX_ABS_LOGIT_BIAS:
            raise ClientError("logit_bias must be from -100 to 100", param=f"logit_bias.{key}")
    _refuse_unsupported(request)


def _refuse_unsupported(request: ChatRequest) -> None:
    asked = {
        "logprobs": bool(request.logprobs),
        "top_logprobs": bool(request.top_logprobs),
        "tools": bool(request.tools),
        "tool_choice": request.tool_choice not in (None, "none", "auto"),
        "response_format": (request.response_format or {}).get("type", "text") != "text",
        "echo": bool(request.echo),
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ClientError(f"{name} is not supported", param=name, code="unsupported_parameter")
