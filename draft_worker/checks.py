"""Whether a draft request makes sense. Anyone may write to the stream, so nothing is believed."""

import math
from collections.abc import Sequence

from shared.protocol.limits import MAX_ABS_LOGIT_BIAS, MAX_ID_CHARS, MAX_LOGIT_BIAS
from shared.protocol.messages import DraftRequest
from shared.protocol.sampling import SamplingParams

_MAX_SESSION_ID_CHARS = MAX_ID_CHARS + 8  # a job id and its choice
_MAX_STOP_IDS = 256  # a client's 64 and whatever the model itself has
_MAX_TEMPERATURE = 2.0


def is_servable(request: DraftRequest, vocab_size: int, max_model_len: int) -> bool:
    """Whether a model of these sizes can guess for this session. Time linear in its tokens."""
    num_tokens = len(request.token_ids)
    return (
        0 < len(request.session_id) <= _MAX_SESSION_ID_CHARS
        and 0 < num_tokens < min(request.max_len, max_model_len)
        and 0 < request.prompt_len <= num_tokens
        and are_token_ids(request.token_ids, vocab_size)
        and is_sampling_sound(request.sampling)
    )


def are_token_ids(token_ids: Sequence[int], vocab_size: int) -> bool:
    """Whether all of them are ids of this vocabulary."""
    return not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size)


def is_sampling_sound(params: SamplingParams) -> bool:
    """Whether the sampler may be called with these; ranges as in `shared.protocol.requests`."""
    penalties = (params.presence_penalty, params.frequency_penalty)
    return (
        0 <= params.seed < 1 << 64
        and 0.0 <= params.temperature <= _MAX_TEMPERATURE
        and 0 <= params.top_k < 1 << 31
        and 0.0 < params.top_p <= 1.0
        and 0.0 <= params.min_p <= 1.0
        and 0.0 < params.repetition_penalty < math.inf
        and all(math.isfinite(value) for value in penalties)
        and 0 <= params.min_tokens < 1 << 31
        and len(params.stop_token_ids) <= _MAX_STOP_IDS
        and all(0 <= token_id < 1 << 31 for token_id in params.stop_token_ids)
        and len(params.logit_bias) <= MAX_LOGIT_BIAS
        and all(
            0 <= token_id < 1 << 31 and abs(bias) <= MAX_ABS_LOGIT_BIAS
            for token_id, bias in params.logit_bias
        )
    )
