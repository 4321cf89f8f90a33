"""From a claimed entry to a job for the engine: checked against the model, rendered, tokenised.

Pure and slow: runs in a thread of its own, never on the event loop. Anyone may have written the
entry, so nothing in it is trusted, whatever a gateway has checked before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.bus.jobs import Claim
from shared.common.errors import ClientError, PeerError
from shared.engine.sampling import choice_seed
from shared.engine.text import TextStream, TextTokenizer
from shared.protocol.jobs import JobEntry
from shared.protocol.records import Finished, FinishReason, Record, Tokens
from shared.protocol.requests import ChatRequest, sampling_params
from target_worker.admitted import AdmittedJob, Choice


@dataclass(frozen=True, slots=True)
class Served:
    """The model as requests see it."""

    name: str
    tokenizer: TextTokenizer
    vocab_size: int  # ids that the model can embed and choose
    max_model_len: int  # tokens, prompt and output together
    eos_token_ids: tuple[int, ...]
    num_speculative_tokens: int  # K; 0: none


@dataclass(frozen=True, slots=True)
class Progress:
    """What the log holds of one choice: what an earlier owner did."""

    output_ids: tuple[int, ...] = ()
    reason: FinishReason | None = None


def admit(
    entry: JobEntry, request: ChatRequest, claim: Claim, served: Served, log: Sequence[Record]
) -> AdmittedJob:
    """A job for the engine.

    Args:
        entry: as it was queued.
        request: its body.
        claim: ours.
        served: the model.
        log: the records written before this claim.

    Raises:
        ClientError: the request does not fit the model; `param` names what.
        PeerError: the log does not belong to this request.
    """
    if request.model != served.name:
        raise ClientError(
            f"the model {request.model!r} does not exist; this worker serves {served.name!r}",
            param="model",
            code="model_not_found",
            status=404,
        )
    prompt_ids = _prompt_ids(request, served)
    max_len = _max_len(request, len(prompt_ids), served)
    _check_token_ids(request, served)
    choices = tuple(
        Choice(
            sampling_params(
                request,
                seed=choice_seed(claim.seed, index),
                stop_token_ids=served.eos_token_ids,
            ),
            progress.output_ids,
            _text(request, served, prompt_ids, progress.output_ids),
            progress.reason,
        )
        for index, progress in enumerate(_progress(log, request.num_choices))
    )
    if any(
        choice.reason is None and len(prompt_ids) + len(choice.output_ids) >= max_len
        for choice in choices
    ) or all(choice.reason for choice in choices):
        raise PeerError("the log holds more tokens than this worker's context, or no open choice")
    options = request.speculation
    wanted = options.num_speculative_tokens or served.num_speculative_tokens
    return AdmittedJob(
        claim=claim,
        prompt_ids=tuple(prompt_ids),
        max_len=max_len,
        choices=choices,
        max_drafts=min(wanted, served.num_speculative_tokens) if options.enabled else 0,
        tenant=entry.tenant,
        deadline_ms=entry.deadline_ms,
    )


def _prompt_ids(request: ChatRequest, served: Served) -> list[int]:
    if request.messages is not None:
        # `developer` is the newer name of `system`; templates know the older one.
        turns = [
            ("system" if message.role == "developer" else message.role, message.text)
            for message in request.messages
        ]
        prompt_ids = served.tokenizer.encode_chat(turns)
    elif isinstance(request.prompt, str):
        prompt_ids = served.tokenizer.encode(request.prompt)
    else:
        prompt_ids = list(request.prompt or ())
        if any(token_id >= served.vocab_size for token_id in prompt_ids):
            raise ClientError(
                f"prompt ids must be below {served.vocab_size}, the vocabulary's size",
                param="prompt",
            )
    if not prompt_ids:
        raise ClientError("the prompt is empty", param=_prompt_param(request))
    return prompt_ids


def _max_len(request: ChatRequest, prompt_len: int, served: Served) -> int:
    most = served.max_model_len
    num_output = request.output_limit or max(1, request.min_tokens)
    if prompt_len + num_output > most:
        raise ClientError(
            f"this model's context is {most} tokens; the prompt has {prompt_len}, "
            f"and at least {num_output} more were asked for",
            param=_prompt_param(request),
            code="context_length_exceeded",
        )
    return most if request.output_limit is None else prompt_len + request.output_limit


def _prompt_param(request: ChatRequest) -> str:
    return "messages" if request.messages is not None else "prompt"


def _check_token_ids(request: ChatRequest, served: Served) -> None:
    size = served.vocab_size
    for key in request.logit_bias or {}:
        if int(key) >= size:
            raise ClientError(f"token ids must be below {size}", param=f"logit_bias.{key}")
    for index, token_id in enumerate(request.stop_token_ids or ()):
        if token_id >= size:
            raise ClientError(f"token ids must be below {size}", param=f"stop_token_ids[{index}]")


def _text(
    request: ChatRequest, served: Served, prompt_ids: Sequence[int], output_ids: Sequence[int]
) -> TextStream:
    """The text of a choice, fed with what is in the log: shown then, not again."""
    text = TextStream(served.tokenizer, prompt_ids, request.stop_strings)
    for token_id in output_ids:
        text.push(token_id)
    return text


def _progress(log: Sequence[Record], num_choices: int) -> list[Progress]:
    """What each choice has in the log."""
    outputs: list[list[int]] = [[] for _ in range(num_choices)]
    reasons: list[FinishReason | None] = [None] * num_choices
    for record in log:
        if isinstance(record, Tokens | Finished) and not 0 <= record.choice < num_choices:
            raise PeerError(f"the log has a choice {record.choice} of {num_choices}")
        if isinstance(record, Tokens):
            if record.offset != len(outputs[record.choice]):
                raise PeerError(f"the log of choice {record.choice} has a gap")
            outputs[record.choice].extend(record.token_ids)
        elif isinstance(record, Finished):
            reasons[record.choice] = record.reason
    return [
        Progress(tuple(output), reason) for output, reason in zip(outputs, reasons, strict=True)
    ]
