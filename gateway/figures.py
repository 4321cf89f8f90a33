"""Usage, speculation and time figures of a final message, in the fields that clients know.

OpenAI's usage objects, and vLLM's `metrics` object, which benchmarks read for acceptance lengths.
"""

from itertools import pairwise

from msgspec import Struct

from gateway.transcript import Times
from shared.protocol.records import Done, SpeculationStats, Usage


class PromptDetails(Struct, frozen=True):
    """See ChatUsage."""

    cached_tokens: int


class CompletionDetails(Struct, frozen=True):
    """Draft tokens in OpenAI's slots for predicted outputs."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class ChatUsage(Struct, frozen=True):
    """`usage` of a chat completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class RunningUsage(Struct, frozen=True):
    """`usage` of a chunk that is not the last; the prompt is counted when the job is done."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class InputDetails(Struct, frozen=True):
    """See ResponseUsage."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct, frozen=True):
    """Draft tokens beside OpenAI's own count."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class ResponseUsage(Struct, frozen=True):
    """`usage` of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class SpeculativeDecoding(Struct, frozen=True):
    """vLLM's per-request figures. `acceptance_histogram[i]`: rounds that accepted exactly i."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_spec_tokens: int  # K
    acceptance_histogram: tuple[int, ...]  # [K + 1]
    drafted_per_position: tuple[int, ...]  # [K]
    accepted_per_position: tuple[int, ...]  # [K]


class Metrics(Struct, frozen=True):
    """vLLM's `metrics`, by the clocks of the log and of the submitting gateway."""

    time_to_first_token_ms: int | None
    generation_time_ms: int | None  # first tokens to the end
    duration_ms: int | None  # submission to the end
    mean_itl_ms: float | None  # per token, of all choices
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding


def chat_usage(usage: Usage, speculation: SpeculationStats) -> ChatUsage:
    """OpenAI's chat usage."""
    rejected = speculation.num_draft_tokens - speculation.num_accepted_tokens
    return ChatUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptDetails(usage.cached_tokens),
        completion_tokens_details=CompletionDetails(speculation.num_accepted_tokens, rejected),
    )


def response_usage(usage: Usage, speculation: SpeculationStats) -> ResponseUsage:
    """OpenAI's response usage."""
    rejected = speculation.num_draft_tokens - speculation.num_accepted_tokens
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(0, speculation.num_accepted_tokens, rejected),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def speculative_decoding(stats: SpeculationStats) -> SpeculativeDecoding:
    """vLLM's object. A round accepts a prefix, so counts per position give the histogram."""
    at_least = (stats.num_rounds, *stats.accepted_per_position, 0)
    histogram = tuple(more - fewer for more, fewer in pairwise(at_least))
    return SpeculativeDecoding(
        mean_acceptance_length=stats.mean_acceptance_length,
        draft_acceptance_rate=stats.acceptance_rate,
        num_spec_steps=stats.num_rounds,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_draft_tokens=stats.num_accepted_tokens,
        num_spec_tokens=len(stats.accepted_per_position),
        acceptance_histogram=histogram,
        drafted_per_position=stats.drafted_per_position,
        accepted_per_position=stats.accepted_per_position,
    )


def metrics(done: Done, times: Times, created_ms: int) -> Metrics:
    """The `metrics` of a finished job.

    Args:
        done: its terminal record.
        times: of its whole log.
        created_ms: submission by the gateway's clock; 0 leaves out what needs it.
    """
    num_tokens = done.usage.completion_tokens
    span_ms = _since(times.first_ms or 0, times.last_ms)
    return Metrics(
        time_to_first_token_ms=_since(created_ms, times.first_ms),
        generation_time_ms=span_ms,
        duration_ms=_since(created_ms, times.last_ms),
        mean_itl_ms=span_ms / (num_tokens - 1) if span_ms and num_tokens > 1 else None,
        tokens_per_second=num_tokens * 1e3 / span_ms if span_ms else None,
        speculative_decoding=speculative_decoding(done.speculation),
    )


def _since(start_ms: int, moment_ms: int | None) -> int | None:
    """Two clocks may differ by some milliseconds; a time is never negative."""
    return max(0, moment_ms - start_ms) if start_ms and moment_ms is not None else None
