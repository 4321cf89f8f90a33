"""The `response` object of OpenAI's Responses API: one job, as far as its log goes."""

from msgspec import Struct

from gateway import errors, figures
from gateway.job import Job
from gateway.transcript import Transcript
from shared.protocol.records import Done, Failed, FinishReason

_FIRST_SERVER_STATUS = 500


class Part(Struct, frozen=True):
    """A piece of text."""

    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[()] = ()
    type: str = "output_text"


class Item(Struct, frozen=True):
    """The assistant's message."""

    id: str
    status: str  # in_progress, completed or incomplete
    content: tuple[Part, ...]
    role: str = "assistant"
    type: str = "message"


class Failure(Struct, frozen=True):
    """Why a response failed. `code` is one of OpenAI's; `type` is the precise word."""

    code: str
    message: str
    param: str | None
    type: str


class TextFormat(Struct, frozen=True):
    """See TextSettings."""

    type: str = "text"


class TextSettings(Struct, frozen=True):
    """The only format there is."""

    format: TextFormat = TextFormat()


class ResponseObject(Struct, frozen=True, kw_only=True):
    """What every client of the Responses API parses."""

    id: str
    created_at: int  # Unix time in seconds
    completed_at: int | None
    status: str  # in_progress, completed, incomplete, failed or cancelled
    model: str
    output: tuple[Item, ...]
    error: Failure | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    previous_response_id: str | None
    metadata: dict[str, str]
    max_output_tokens: int | None
    temperature: float
    top_p: float
    usage: figures.ResponseUsage | None
    seed: int | None
    metrics: figures.Metrics | None
    object: str = "response"
    background: bool = False
    parallel_tool_calls: bool = False
    reasoning: None = None
    store: bool = True
    text: TextSettings = TextSettings()
    tool_choice: str = "none"
    tools: tuple[()] = ()
    truncation: str = "disabled"
    user: str | None = None


def item(job: Job, text: str | None, status: str) -> Item:
    """The response's only output item; without content while there is none."""
    parts = () if text is None else (Part(text),)
    return Item(f"msg_{job.job_id.removeprefix('resp_')}", status, parts)


def response_object(job: Job, transcript: Transcript) -> ResponseObject:
    """The object after `transcript`: a running response as well as a finished one."""
    terminal = transcript.terminal
    done = terminal if isinstance(terminal, Done) else None
    status = _status(terminal)
    request = job.request
    leading = (request.messages or [])[0].text if job.origin.has_instructions else None
    last_ms = transcript.times.last_ms
    return ResponseObject(
        id=job.job_id,
        created_at=job.created_s,
        completed_at=last_ms // 1_000 if status == "completed" and last_ms else None,
        status=status,
        model=request.model,
        output=_output(job, transcript, status),
        error=_failure(terminal) if isinstance(terminal, Failed) else None,
        incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
        instructions=leading,
        previous_response_id=job.origin.previous_response_id,
        metadata=job.metadata,
        max_output_tokens=request.output_limit,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        usage=figures.response_usage(done.usage, done.speculation) if done else None,
        seed=done.seed if done else request.seed,
        metrics=figures.metrics(done, transcript.times, job.origin.created_ms) if done else None,
        user=request.user,
    )


def _status(terminal: Done | Failed | None) -> str:
    match terminal:
        case None:
            return "in_progress"
        case Done():
            return "incomplete" if terminal.reasons[0] is FinishReason.LENGTH else "completed"
        case Failed():
            return "cancelled" if terminal.status == errors.STATUS_CLIENT_GONE else "failed"


def _output(job: Job, transcript: Transcript, status: str) -> tuple[Item, ...]:
    if status == "completed":
        return (item(job, transcript.text(), "completed"),)
    if status == "in_progress":
        return (item(job, transcript.text(), status),) if transcript.lengths[0] else ()
    return (item(job, transcript.text(), "incomplete"),)


def _failure(record: Failed) -> Failure | None:
    if record.status == errors.STATUS_CLIENT_GONE:
        return None
    is_ours = record.status >= _FIRST_SERVER_STATUS
    code = "server_error" if is_ours else "invalid_prompt"
    return Failure(code, record.message, record.param, record.code)
