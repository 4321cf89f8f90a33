"""The warm-up: prices from a few rounds, whatever the limits are."""

import pytest

from shared.engine.blocks import BlockPool
from shared.engine.samplers import HostSampler
from target_worker.warmup import profile, self_test
from tests.fakes import BoundedRunner, BoundedSampler, FakeRunner, ManualClock


@pytest.mark.parametrize("num_blocks", [1, 4, 64])
@pytest.mark.parametrize("max_model_len", [4, 64, 1_000])
@pytest.mark.parametrize("max_batched_tokens", [5, 7, 48, 256])
def test_the_profile_fits_any_limits(
    num_blocks: int, max_model_len: int, max_batched_tokens: int
) -> None:
    """One sequence of one row at least; all blocks are given back; no time passes, no zero."""
    pool = BlockPool(num_blocks, 4)
    runner = BoundedRunner(max_batched_tokens, vocab_size=5, num_blocks=num_blocks, block_size=4)
    measured = profile(
        runner,
        BoundedSampler(max_batched_tokens),
        pool,
        ManualClock(),
        max_num_seqs=4,
        max_batched_tokens=max_batched_tokens,
        max_model_len=max_model_len,
    )
    assert measured[0][:2] == (1, 1)
    assert max(one.num_sequences for one in measured) == 4
    assert max(one.num_rows for one in measured) <= max_batched_tokens
    assert min(one.seconds for one in measured) > 0.0
    assert pool.num_free == num_blocks


def test_two_rows_a_round_are_enough_for_a_profile() -> None:
    """The least that a worker can be set to."""
    pool = BlockPool(64, 4)
    runner = BoundedRunner(2, vocab_size=5, num_blocks=64, block_size=4)
    measured = profile(
        runner,
        BoundedSampler(2),
        pool,
        ManualClock(),
        max_num_seqs=1,
        max_batched_tokens=2,
        max_model_len=64,
    )
    assert [one[:2] for one in measured] == [(1, 1), (1, 2)]


def test_the_self_test_needs_a_block_and_gives_it_back() -> None:
    """A full cache cannot be tested, and is no evidence against the model."""
    pool = BlockPool(1, 4)
    runner = FakeRunner(vocab_size=5, num_blocks=1, block_size=4)
    self_test(runner, HostSampler(), pool)
    assert (runner.num_runs, pool.num_free) == (1, 1)
    pool.open([0]).extend(1)
    self_test(runner, HostSampler(), pool)
    assert runner.num_runs == 1
