"""Rounds: who is to blame is found, and the others lose nothing (see also test_engine.py)."""

from collections.abc import Sequence

import pytest
from torch import Tensor

from shared.engine.blocks import BlockPool
from shared.engine.samplers import HostSampler
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams
from target_worker.rounds import EngineBroken, Rounds, SessionFailed
from target_worker.scheduler import Row
from target_worker.session import Session
from tests.fakes import FakeRunner
from tests.target_worker.engines import LetterText, V


class Moody(FakeRunner):
    """Raises or answers NaN where it is told to."""

    def __init__(self) -> None:
        super().__init__(vocab_size=V, num_blocks=32, block_size=4)
        self.raises_at: set[int] = set()  # first tokens of spans
        self.nan_at: set[int] = set()

    def run(self, spans: Sequence[Span]) -> Tensor:
        if self.raises_at & {span.token_ids[0] for span in spans}:
            raise IndexError("out of range")
        logits = super().run(spans)
        start = 0
        for span in spans:
            if span.token_ids[0] in self.nan_at:
                logits[start + span.num_logits - 1] = float("nan")
            start += span.num_logits
        return logits


def make_row(pool: BlockPool, first: int, draft: Sequence[int] = ()) -> Row:
    session = Session(
        f"{first}/0",
        [first, 1, 2],
        prompt_len=3,
        max_len=99,
        params=SamplingParams(seed=first),
        text=LetterText(),
        vocab_size=V,
    )
    session.table = pool.open(session.token_ids)
    session.table.extend(3 + len(draft))
    return Row(session, 3, is_sampled=True, draft_token_ids=list(draft))


@pytest.fixture
def pool() -> BlockPool:
    """Blocks for the fake."""
    return BlockPool(32, 4)


def broken() -> None:
    raise RuntimeError("no device")


def test_the_culprit_of_a_failed_pass_is_named(pool: BlockPool) -> None:
    """The others get what they would have got; a pass is repeated once for each row."""
    runner = Moody()
    rows = [make_row(pool, first) for first in (10, 11, 12)]
    good = [result.token_ids for result in Rounds(runner, HostSampler(), broken).run(rows)]
    runner.raises_at = {11}
    results = Rounds(runner, HostSampler(), broken).run(rows)
    assert [result.token_ids for result in results] == [good[0], [], good[2]]
    assert isinstance(results[1].error, IndexError)
    assert runner.num_runs == 1 + 2


def test_a_row_that_cannot_be_sampled_fails_alone(pool: BlockPool) -> None:
    """NaN in its only row: no token, an error; no second pass."""
    runner = Moody()
    runner.nan_at = {11}
    results = Rounds(runner, HostSampler(), broken).run([make_row(pool, 10), make_row(pool, 11)])
    assert [result.error is None for result in results] == [True, False]
    assert isinstance(results[1].error, SessionFailed)
    assert runner.num_runs == 1


def test_accepted_guesses_are_counted(pool: BlockPool) -> None:
    """A right guess and the bonus token: one accepted."""
    rounds = Rounds(Moody(), HostSampler(), broken)
    ((first,),) = [rounds.run([make_row(pool, 10)])[0].token_ids]
    (result,) = rounds.run([make_row(pool, 10, [first])])
    assert result.token_ids[0] == first
    assert (len(result.token_ids), result.num_accepted) == (2, 1)


def test_a_chunk_confirms_nothing(pool: BlockPool) -> None:
    """A prefill row that is not the last has no logits and no error."""
    row = make_row(pool, 10)
    row.num_tokens, row.is_sampled = 2, False
    (result,) = Rounds(Moody(), HostSampler(), broken).run([row])
    assert (result.token_ids, result.error, result.num_accepted) == ([], None, 0)


def test_a_model_that_fails_at_everything_is_broken(pool: BlockPool) -> None:
    """Only if the self-test fails too; else it is the rows."""
    runner = Moody()
    runner.raises_at = {10}
    (result,) = Rounds(runner, HostSampler(), lambda: None).run([make_row(pool, 10)])
    assert result.error is not None
    with pytest.raises(EngineBroken):
        Rounds(runner, HostSampler(), broken).run([make_row(pool, 10)])


def test_blocks_are_copied_before_the_pass(pool: BlockPool) -> None:
    """A forked block holds its source's tokens when the pass reads it."""
    runner = Moody()
    runner.slots[5] = [1, 2, 3, 4]
    Rounds(runner, HostSampler(), broken).run([make_row(pool, 10)], [(5, 6)])
    assert runner.slots[6] == [1, 2, 3, 4]
