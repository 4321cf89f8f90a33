"""draft_worker/batch.py: a plan becomes spans, within tokens and blocks."""

from draft_worker.batch import Batch
from draft_worker.confidence import Confidence, Guess
from draft_worker.limits import DraftLimits
from draft_worker.plan import Plan, make_plan
from draft_worker.session import DraftSession
from shared.engine.blocks import BlockPool
from shared.engine.ranking import HostRanker
from shared.engine.samplers import HostSampler
from tests.draft_worker.builders import V, make_request
from tests.fakes import FakeRunner

LIMITS = DraftLimits(min_odds=0.0, step_cost=1e9, max_num_batched_tokens=32)


def make_session(pool: BlockPool, name: str, num_tokens: int, num_guesses: int = 0) -> DraftSession:
    request = make_request(name, token_ids=(1,) * num_tokens)
    table = pool.open(request.token_ids)
    table.extend(num_tokens)
    session = DraftSession(request, table, Confidence())
    for _ in range(num_guesses):
        session.main.span(100)
        session.main.push(Guess([10, 11, 12], 0.5, 0.5))
    return session


def make_batch(plan: Plan, sessions: list[DraftSession], pool: BlockPool) -> Batch:
    runner = FakeRunner(vocab_size=V, num_blocks=pool.num_blocks, block_size=pool.block_size)
    return Batch(plan, sessions, HostRanker(runner, HostSampler()), LIMITS, {})


def test_decodes_come_before_prefill_chunks_and_branches_get_the_rest() -> None:
    """The token budget is spent in this order."""
    pool = BlockPool(64, 4)
    old = make_session(pool, "a/0", 3, num_guesses=2)
    new = make_session(pool, "b/0", 29)
    batch = make_batch(make_plan([new, old], LIMITS), [new, old], pool)
    first, second, *branches = batch.growths
    assert (first.chain, second.chain) == (old.main, new.main)
    assert [growth.session for growth in branches] == [old, old]
    assert sum(len(growth.span.token_ids) for growth in batch.growths) == 32


def test_a_main_chain_takes_the_blocks_of_branches() -> None:
    """Without a free block all branches go, and none is started in this step."""
    pool = BlockPool(4, 4)
    session = make_session(pool, "a/0", 3, num_guesses=2)
    session.fork(4, 11)
    session.fork(3, 11)
    while session.main.num_pending == 1 and len(session.main.token_ids) < 9:
        session.main.push(Guess([10, 11, 12], 0.5, 0.5))
        batch = make_batch(make_plan([session], LIMITS), [session], pool)
    assert batch.growths[0].chain is session.main
    assert batch.starved == []
    session.release()
    assert pool.usage == 0.0


def test_a_session_without_a_block_left_is_starved() -> None:
    """It is reported; the others have their rows."""
    pool = BlockPool(3, 4)
    full = make_session(pool, "a/0", 4)
    full.main.span(100)
    full.main.push(Guess([10, 11], 0.5, 0.5))
    other = make_session(pool, "b/0", 5)
    batch = make_batch(make_plan([full, other], LIMITS), [full, other], pool)
    assert batch.starved == [full]
    assert [growth.session for growth in batch.growths] == [other]
