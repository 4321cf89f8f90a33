import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shared.engine.blocks import BlockCopy, BlockPool, BlockTable, OutOfBlocks


def filled(pool: BlockPool, token_ids: list[int], *, salt: str = "") -> BlockTable:
    """A table with room for the tokens, all of them published."""
    table = pool.open(token_ids, salt=salt)
    table.extend(len(token_ids))
    table.publish(token_ids)
    return table


@pytest.mark.parametrize("num_blocks", [1, 2, 63, 64, 1009])
def test_every_block_can_be_allocated_once(num_blocks: int) -> None:
    """A table may take the whole pool: each block comes once, and one more is refused."""
    pool = BlockPool(num_blocks, 4)
    table = pool.open([1])
    table.extend(num_blocks * 4)
    assert sorted(table.block_ids) == list(range(num_blocks))
    assert (pool.num_free, pool.usage) == (0, 1.0)
    with pytest.raises(OutOfBlocks):
        pool.open([1]).extend(1)


def test_a_refused_extend_changes_nothing() -> None:
    """All or nothing: a table that cannot have all blocks gets none."""
    pool = BlockPool(3, 4)
    table = pool.open([1])
    table.extend(5)
    before = list(table.block_ids)
    with pytest.raises(OutOfBlocks):
        table.extend(13)
    assert (table.block_ids, table.num_tokens, pool.num_free) == (before, 5, 1)
    table.extend(12)


def test_tables_that_grow_in_turn_get_consecutive_blocks() -> None:
    """Two growing sequences do not interleave while there is room."""
    pool = BlockPool(64, 4)
    tables = [pool.open([1]) for _ in range(4)]
    for length in range(1, 41):
        for table in tables:
            table.extend(length)
    for table in tables:
        first = table.block_ids[0]
        assert table.block_ids == list(range(first, first + 10))


def test_a_prompt_shares_all_published_blocks_but_its_last_token() -> None:
    """A repeated prompt of whole blocks computes its last block again: it needs the logits."""
    pool = BlockPool(16, 4)
    prompt = list(range(12))
    first = filled(pool, prompt)
    again = pool.open(prompt)
    longer = pool.open([*prompt, 99])
    other = pool.open([7, *prompt])
    assert again.block_ids == first.block_ids[:2]
    assert again.num_cached_tokens == 8
    assert longer.block_ids == first.block_ids
    assert other.num_cached_tokens == 0


def test_a_prefix_outlives_its_owner() -> None:
    """Released blocks stay cached until their room is needed, and are counted as free."""
    pool = BlockPool(8, 4)
    prompt = list(range(9))
    table = filled(pool, prompt)
    table.release()
    assert pool.num_free == 8
    again = pool.open(prompt)
    assert again.num_cached_tokens == 8
    assert pool.num_free == 6


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    """When room is needed, what is left of a cached prompt is still a usable prefix."""
    pool = BlockPool(4, 4)
    prompt = list(range(17))
    filled(pool, prompt[:16]).release()
    other = pool.open([50])
    other.extend(8)
    assert pool.open(prompt).num_cached_tokens == 8


def test_the_least_recently_used_prefix_goes_first() -> None:
    """A prefix that was used again since outlives one that was not."""
    pool = BlockPool(4, 4)
    old, new = [1] * 9, [2] * 9
    filled(pool, old[:8]).release()
    filled(pool, new[:8]).release()
    pool.open(old).release()
    pool.open([3]).extend(8)
    assert pool.open(new).num_cached_tokens == 0
    assert pool.open(old).num_cached_tokens == 8


def test_tenants_never_share() -> None:
    """The same tokens under another salt are another prefix, also for branches."""
    pool = BlockPool(16, 4)
    prompt = list(range(9))
    table = filled(pool, prompt, salt="a")
    branch, _ = table.fork(8)
    branch.extend(12)
    branch.publish(list(range(12)))
    assert pool.open(prompt, salt="b").num_cached_tokens == 0
    assert pool.open(prompt).num_cached_tokens == 0
    assert pool.open(list(range(13)), salt="a").num_cached_tokens == 12


def test_two_publishers_of_the_same_tokens_keep_their_own_blocks() -> None:
    """Sequences that computed the same prompt side by side: one is offered, both stay valid."""
    pool = BlockPool(16, 4)
    prompt = list(range(9))
    tables = [pool.open(prompt) for _ in range(2)]
    for table in tables:
        table.extend(9)
    for table in tables:
        table.publish(prompt)
    assert not set(tables[0].block_ids) & set(tables[1].block_ids)
    assert pool.open(prompt).block_ids == tables[0].block_ids[:2]


def test_only_full_blocks_are_published() -> None:
    """A block that is still being filled cannot be shared."""
    pool = BlockPool(16, 4)
    table = filled(pool, [1, 2, 3])
    assert pool.open([1, 2, 3, 4]).num_cached_tokens == 0
    table.extend(4)
    table.publish([1, 2, 3, 4])
    assert pool.open([1, 2, 3, 4, 5]).num_cached_tokens == 4


def test_a_fork_shares_full_blocks_and_copies_the_partial_one() -> None:
    """The branch writes into its own last block; the trunk's is untouched."""
    pool = BlockPool(16, 4)
    trunk = pool.open([1])
    trunk.extend(10)
    branch, copy = trunk.fork(6)
    assert branch.block_ids[:1] == trunk.block_ids[:1]
    assert copy == BlockCopy(trunk.block_ids[1], branch.block_ids[1])
    even, no_copy = trunk.fork(8)
    assert (even.block_ids, no_copy) == (trunk.block_ids[:2], None)
    trunk.release()
    branch.release()
    even.release()
    assert pool.num_free == 16


def test_a_fork_without_room_changes_nothing() -> None:
    """No block for the partial copy: OutOfBlocks, and nobody holds anything more."""
    pool = BlockPool(2, 4)
    trunk = pool.open([1])
    trunk.extend(6)
    with pytest.raises(OutOfBlocks):
        trunk.fork(6)
    trunk.release()
    assert pool.num_free == 2


def test_rolling_back_gives_back_blocks_wholly_beyond() -> None:
    """The block with the last kept token stays; an own one is written on without a copy."""
    pool = BlockPool(16, 4)
    table = pool.open([1])
    table.extend(12)
    kept = table.block_ids[:2]
    table.roll_back(5)
    assert (table.block_ids, pool.num_free) == (kept, 14)
    assert table.extend(9) is None
    table.roll_back(100)
    assert table.num_tokens == 9


def test_going_on_inside_a_published_block_takes_a_copy() -> None:
    """Others may open the published prefix at any time: it must keep its tokens."""
    pool = BlockPool(16, 4)
    table = filled(pool, list(range(8)))
    published = list(table.block_ids)
    table.roll_back(6)
    copy = table.extend(7)
    assert copy == BlockCopy(published[1], table.block_ids[1])
    assert table.block_ids[1] != published[1]
    assert pool.open(list(range(9))).block_ids == published


def test_what_is_published_after_rolling_back_has_the_new_tokens_name() -> None:
    """The chain of names goes back too: nobody finds the new tokens under the old ones."""
    pool = BlockPool(16, 4)
    table = filled(pool, list(range(8)))
    table.roll_back(6)
    table.extend(12)
    new = [0, 1, 2, 3, 4, 5, 60, 70, 8, 9, 10, 11]
    table.publish(new)
    assert pool.open([*new, 1]).block_ids == table.block_ids
    assert pool.open([*range(12), 1]).num_cached_tokens == 8


def test_going_on_inside_a_shared_block_takes_a_copy_only_while_shared() -> None:
    """A branch reads the trunk's block: the trunk leaves it, or waits for the branch to end."""
    pool = BlockPool(16, 4)
    trunk = pool.open([1])
    trunk.extend(10)
    branch, _ = trunk.fork(8)
    trunk.roll_back(6)
    assert trunk.extend(7) == BlockCopy(branch.block_ids[1], trunk.block_ids[1])
    other, _ = trunk.fork(7)
    other.release()
    trunk.roll_back(5)
    assert trunk.extend(6) is None


def test_a_copy_without_room_changes_nothing() -> None:
    """The copied block counts: extend is refused as a whole when it has no room."""
    pool = BlockPool(2, 4)
    trunk = pool.open([1])
    trunk.extend(8)
    branch, _ = trunk.fork(8)
    trunk.roll_back(6)
    with pytest.raises(OutOfBlocks):
        trunk.extend(7)
    assert trunk.num_tokens == 6
    branch.release()
    assert trunk.extend(7) is None


NUM_BLOCKS, BLOCK_SIZE = 9, 3
PICK = st.integers(0, 11)  # a sequence, by its index modulo how many there are
DROP = st.integers(0, 7)  # tokens from the end
TOKEN_ID = st.integers(0, 2)  # few, so that sequences often become alike again
PROMPT = [0, 1, 2, 1, 0, 2, 2, 1, 0, 1]


class Sequence:
    """The model of a table: which tokens must be found through it."""

    def __init__(self, table: BlockTable, token_ids: list[int], salt: str) -> None:
        self.table = table
        self.token_ids = token_ids
        self.salt = salt


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences of two tenants open, write, roll back, fork, publish and go, in any order.

    `slots` is the cache: what was written where. New tokens and copies take effect together in a
    pass, copies first, as in a worker's round.
    """

    @initialize()
    def start(self) -> None:
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        self.live: list[Sequence] = []
        self.slots = [[(-1, "")] * BLOCK_SIZE for _ in range(NUM_BLOCKS)]
        self.copies: list[BlockCopy] = []
        self.writes: list[tuple[Sequence, int]] = []

    def run_pass(self) -> None:
        for source, destination in self.copies:
            self.slots[destination] = list(self.slots[source])
        for sequence, start in self.writes:
            for index in range(start, len(sequence.token_ids)):
                block_id = sequence.table.block_ids[index // BLOCK_SIZE]
                slot = (sequence.token_ids[index], sequence.salt)
                self.slots[block_id][index % BLOCK_SIZE] = slot
        self.copies, self.writes = [], []

    def write(self, sequence: Sequence, token_ids: list[int]) -> None:
        table, length = sequence.table, len(sequence.token_ids)
        before = (list(table.block_ids), table.num_tokens, self.pool.num_free)
        try:
            copy = table.extend(length + len(token_ids))
        except OutOfBlocks:
            assert (table.block_ids, table.num_tokens, self.pool.num_free) == before
            return
        self.copies += [copy] if copy else []
        self.writes.append((sequence, length))
        sequence.token_ids += token_ids

    @rule(
        prompt=st.sampled_from([PROMPT, PROMPT[:7], PROMPT[:6], [*PROMPT[:4], 2, 2, 2, 2]]),
        salt=st.sampled_from(["a", "b"]),
        is_published=st.booleans(),
    )
    def open(self, prompt: list[int], salt: str, is_published: bool) -> None:  # noqa: FBT001  drawn
        table = self.pool.open(prompt, salt=salt)
        assert table.num_cached_tokens < len(prompt)
        sequence = Sequence(table, prompt[: table.num_cached_tokens], salt)
        self.live.append(sequence)
        self.write(sequence, prompt[table.num_cached_tokens :])
        if is_published:
            self.run_pass()
            table.publish(sequence.token_ids)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, drop=DROP, token_ids=st.lists(TOKEN_ID, max_size=5))
    def go_on(self, pick: int, drop: int, token_ids: list[int]) -> None:
        """Reject the last tokens, as after a wrong draft, and write others."""
        sequence = self.live[pick % len(self.live)]
        self.run_pass()
        length = max(0, len(sequence.token_ids) - drop)
        sequence.table.roll_back(length)
        del sequence.token_ids[length:]
        self.write(sequence, token_ids)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, drop=DROP)
    def publish(self, pick: int, drop: int) -> None:
        sequence = self.live[pick % len(self.live)]
        self.run_pass()
        sequence.table.publish(sequence.token_ids[: max(0, len(sequence.token_ids) - drop)])

    @precondition(lambda self: self.live)
    @rule(pick=PICK, drop=DROP)
    def fork(self, pick: int, drop: int) -> None:
        sequence = self.live[pick % len(self.live)]
        self.run_pass()
        length = max(0, len(sequence.token_ids) - drop)
        try:
            branch, copy = sequence.table.fork(length)
        except OutOfBlocks:
            assert self.pool.num_free == 0
            return
        self.copies += [copy] if copy else []
        self.live.append(Sequence(branch, sequence.token_ids[:length], sequence.salt))

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        sequence = self.live.pop(pick % len(self.live))
        self.writes = [write for write in self.writes if write[0] is not sequence]
        sequence.table.release()
        sequence.table.release()

    @rule()
    def compute(self) -> None:
        self.run_pass()

    @invariant()
    def every_block_has_as_many_holders_as_tables_with_it(self) -> None:
        holders = [0] * NUM_BLOCKS
        for sequence in self.live:
            table = sequence.table
            assert len(table.block_ids) == -(-len(sequence.token_ids) // BLOCK_SIZE)
            assert len(set(table.block_ids)) == len(table.block_ids)
            for block_id in table.block_ids:
                holders[block_id] += 1
        assert self.pool._num_holders == holders
        assert self.pool.num_free == holders.count(0)

    @invariant()
    def readers_find_their_own_tokens(self) -> None:
        if self.copies or self.writes:
            return
        for sequence in self.live:
            found = itertools.chain(*(self.slots[i] for i in sequence.table.block_ids))
            expected = [(token_id, sequence.salt) for token_id in sequence.token_ids]
            assert list(found)[: len(expected)] == expected

    def teardown(self) -> None:
        self.run_pass()
        self.readers_find_their_own_tokens()
        for sequence in self.live:
            sequence.table.release()
        assert self.pool.num_free == NUM_BLOCKS
        everything = self.pool.open([9])
        everything.extend(NUM_BLOCKS * BLOCK_SIZE)
        assert sorted(everything.block_ids) == list(range(NUM_BLOCKS))


TestBlockPoolMachine = BlockPoolMachine.TestCase
TestBlockPoolMachine.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
