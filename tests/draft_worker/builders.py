"""Shorthands of the draft worker's tests."""

from draft_worker.limits import DraftLimits
from draft_worker.model_drafter import ModelDrafter
from shared.common.clock import SystemClock
from shared.engine.blocks import BlockPool
from shared.engine.ranking import HostRanker
from shared.protocol.messages import DraftRequest, Verdict
from shared.protocol.sampling import SamplingParams
from tests.fakes import BoundedRunner, BoundedSampler

V = 48
# Ten ahead, and every guess and branch that there is room for, whatever the odds.
EAGER = DraftLimits(max_ahead=10, num_branches=8, step_cost=1e9, min_odds=0.0, chunk=4)
GREEDY = SamplingParams(seed=7, temperature=0.0)
WARM = SamplingParams(seed=7, temperature=0.7, top_k=20, top_p=0.95)
PENALISED = SamplingParams(
    seed=11,
    temperature=1.0,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias=((3, 2.0),),
)


def make_request(
    session_id: str = "job/0",
    *,
    token_ids: tuple[int, ...] = (1, 2, 3),
    prompt_len: int | None = None,
    sampling: SamplingParams = GREEDY,
    max_len: int = 200,
    epoch: int = 1,
    target_id: str = "target:a",
) -> DraftRequest:
    """A request whose tokens are all prompt unless told otherwise."""
    return DraftRequest(
        session_id=session_id,
        target_id=target_id,
        epoch=epoch,
        vocabulary="v",
        prompt_len=len(token_ids) if prompt_len is None else prompt_len,
        max_len=max_len,
        token_ids=token_ids,
        sampling=sampling,
    )


def make_verdict(base_len: int, *token_ids: int, session_id: str = "job/0") -> Verdict:
    """What a round confirmed after `base_len` tokens."""
    return Verdict(session_id, base_len, token_ids)


def make_drafter(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    limits: DraftLimits | None = None,
    model: type[BoundedRunner] = BoundedRunner,
    can_follow: bool = False,
) -> ModelDrafter:
    """A model drafter on a fake model, with nothing left to odds unless told otherwise."""
    limits = limits or EAGER
    max_rows = limits.max_num_batched_tokens
    runner = model(max_rows, vocab_size=V, num_blocks=num_blocks, block_size=block_size)
    return ModelDrafter(
        HostRanker(runner, BoundedSampler(max_rows), can_follow=can_follow),
        BlockPool(num_blocks, block_size),
        vocab_size=V,
        max_model_len=400,
        limits=limits,
        clock=SystemClock(),
    )
