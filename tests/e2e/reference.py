"""What a job's tokens must be: plain decoding of one sequence, token by token, in this process."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from shared.engine.blocks import BlockPool
from shared.engine.runner import ModelRunner
from shared.engine.sampling import Row, sample
from shared.engine.spans import Span
from shared.engine.text import TextTokenizer
from shared.protocol.requests import parse_request, sampling_params
from shared.protocol.sampling import SamplingParams
from tests.e2e.processes import TARGET_MODEL

_BLOCK_SIZE = 16
_NUM_BLOCKS = 80  # one sequence of the model's whole context


@cache
def _model() -> tuple[ModelRunner, TextTokenizer]:
    runner = ModelRunner.load(TARGET_MODEL, num_blocks=_NUM_BLOCKS, block_size=_BLOCK_SIZE)
    return runner, TextTokenizer.load(TARGET_MODEL)


def plain_tokens(body: Mapping[str, Any]) -> tuple[int, ...]:
    """The output tokens of a request that names its seed, by the definition of the sampler."""
    runner, tokenizer = _model()
    request = parse_request(msgspec.json.encode(body))
    assert request.messages is not None
    assert request.seed is not None
    chat = [(message.role, message.text) for message in request.messages]
    prompt = tokenizer.encode_chat(chat)
    ends = runner.config.eos_token_ids
    params = sampling_params(request, seed=request.seed, stop_token_ids=ends)
    return tuple(_decode(runner, prompt, params, request.output_limit or 64)[len(prompt) :])


def _decode(
    runner: ModelRunner, prompt: Sequence[int], params: SamplingParams, limit: int
) -> list[int]:
    token_ids, computed = list(prompt), 0
    table = BlockPool(_NUM_BLOCKS, _BLOCK_SIZE).open(token_ids)
    while len(token_ids) < len(prompt) + limit:
        table.extend(len(token_ids))
        logits = runner.run([Span(token_ids[computed:], computed, table.block_ids, 1)])
        computed = len(token_ids)
        token_ids += sample(logits, [Row(params, token_ids, len(prompt))])
        if token_ids[-1] in params.stop_token_ids:
            break
    return token_ids
