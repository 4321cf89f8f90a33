"""draft_worker/chain.py: one sequence of confirmed tokens and guesses."""

from draft_worker.chain import Chain
from draft_worker.confidence import Guess
from shared.engine.blocks import BlockPool
from tests.draft_worker.builders import GREEDY


def make_chain(pool: BlockPool, num_tokens: int = 6) -> Chain:
    tokens = list(range(num_tokens))
    return Chain(tokens, pool.open(tokens), params=GREEDY, prompt_len=2, num_computed=0)


def test_a_span_covers_what_is_pending_up_to_the_budget() -> None:
    """Only the last chunk asks for logits."""
    chain = make_chain(BlockPool(8, 4))
    first, _ = chain.span(4)
    last, _ = chain.span(4)
    assert (first.token_ids, first.start, first.num_logits) == ([0, 1, 2, 3], 0, 0)
    assert (last.token_ids, last.start, last.num_logits) == ([4, 5], 4, 1)
    assert chain.num_computed == 6


def test_the_row_sees_the_tokens_grow() -> None:
    """One row for life, at the position of the next token."""
    chain = make_chain(BlockPool(8, 4))
    chain.push(Guess([9], 1.0, 0.5))
    assert list(chain.row.token_ids) == [0, 1, 2, 3, 4, 5, 9]


def test_guesses_are_due_one_then_twice_as_many_then_in_chunks() -> None:
    """The target is told more rarely the more it has."""
    chain = make_chain(BlockPool(8, 4))
    sent = []
    for number in range(1, 13):
        chain.push(Guess([9], 1.0, 0.5))
        if chain.is_due(4):
            chain.num_sent = len(chain.token_ids)
            sent.append(number)
    assert sent == [1, 3, 7, 11]


def test_a_fork_has_its_own_tokens_and_copies_the_partial_block() -> None:
    """Full blocks are shared; both may go on writing."""
    pool = BlockPool(8, 4)
    chain = make_chain(pool)
    chain.span(6)
    branch, copy = chain.fork(5, 77)
    assert branch.token_ids == [0, 1, 2, 3, 4, 77]
    assert (branch.num_computed, branch.num_pending) == (5, 1)
    assert branch.table.block_ids[0] == chain.table.block_ids[0]
    assert copy == (chain.table.block_ids[1], branch.table.block_ids[1])
    branch.release()
    chain.release()
    assert pool.usage == 0.0
