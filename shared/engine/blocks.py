"""Who holds which block of the paged cache: one pool, reference counts, shared prefixes, forks.

Knows nothing of models or tensors: a block is a number, and what is in it is the runner's business.
A full block of confirmed tokens can be **published** under a chained SHA-256 of everything before
it and the tenant's salt; who opens a table with the same beginning shares it. A block that nobody
holds but that is published stays in the cache until its room is needed, least recently used first.

A block may be written by its holder only while it has one holder and is not published. `extend`
keeps that rule: going on from the middle of any other block takes a fresh one and asks for a copy.

After vLLM's block manager and prefix cache (Kwon et al. 2023, arXiv:2309.06180).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class OutOfBlocks(Exception):
    """Fewer blocks are free than asked for. Nothing was allocated; preempt somebody or wait."""


class BlockCopy(NamedTuple):
    """A whole block to be copied in the cache before the next pass, in the order returned."""

    source: int
    destination: int


class BlockPool:
    """All blocks of one cache. Not thread-safe: one owner."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size  # tokens
        self._num_holders = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks  # of published blocks
        self._published: dict[bytes, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()  # published, not held; oldest first
        # Last in, first out, and spread: tables that start far apart can grow by consecutive ids.
        bits = (num_blocks - 1).bit_length()
        spread = sorted(range(num_blocks), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
        self._free = dict.fromkeys(reversed(spread))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return len(self._free) + len(self._evictable)

    @property
    def usage(self) -> float:
        """Share of blocks that somebody holds, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks

    def open(self, token_ids: Sequence[int], *, salt: str = "") -> "BlockTable":
        """A table for a sequence of these tokens, holding the longest published beginning of them.

        At most len(token_ids) - 1 tokens come from the cache: computing the last one gives the
        logits to go on from. Only tables with the same `salt` share.
        """
        table = BlockTable(self, hashlib.sha256(salt.encode()).digest())
        for index in range((len(token_ids) - 1) // self.block_size):
            digest = table.digest_block(token_ids, index)
            block_id = self._published.get(digest)
            if block_id is None:
                break
            self.hold(block_id)
            table.adopt(block_id, digest)
        table.num_cached_tokens = len(table.block_ids) * self.block_size
        return table

    def allocate(self, after: int | None) -> int:
        """A block with one holder and no content: `after + 1` if free. Callers check `num_free`."""
        if after is not None and after + 1 in self._free:
            block_id = after + 1
            del self._free[block_id]
        elif self._free:
            block_id, _ = self._free.popitem()
        else:
            block_id, _ = self._evictable.popitem(last=False)
            digest = self._digests[block_id]
            assert digest is not None
            del self._published[digest]
            self._digests[block_id] = None
        self._num_holders[block_id] = 1
        return block_id

    def hold(self, block_id: int) -> None:
        """One more holder."""
        if self._num_holders[block_id] == 0:
            del self._evictable[block_id]
        self._num_holders[block_id] += 1

    def let_go(self, block_ids: Sequence[int]) -> None:
        """One holder less of each. The last ones will be evicted first: give them in order."""
        for block_id in reversed(block_ids):
            self._num_holders[block_id] -= 1
            assert self._num_holders[block_id] >= 0
            if self._num_holders[block_id] == 0:
                unused = self._free if self._digests[block_id] is None else self._evictable
                unused[block_id] = None

    def publish(self, block_id: int, digest: bytes) -> None:
        """Offer a full block to others, unless the same tokens already are."""
        if self._digests[block_id] is None and digest not in self._published:
            self._digests[block_id] = digest
            self._published[digest] = block_id

    def is_writable(self, block_id: int) -> bool:
        """Whether its holder may change what is in it: not shared, not published."""
        return self._num_holders[block_id] == 1 and self._digests[block_id] is None


class BlockTable:
    """The blocks of one sequence, in order. Made by `BlockPool.open` and `fork`."""

    def __init__(self, pool: BlockPool, root: bytes) -> None:
        self.block_ids: list[int] = []
        self.num_cached_tokens = 0  # at the start, whose keys and values need not be computed
        self.num_tokens = 0  # room asked for and not rolled back
        self._pool = pool
        self._chain = [root]  # digest before each block; grows with adopt and publish

    def extend(self, num_tokens: int) -> BlockCopy | None:
        """Make room for `num_tokens` tokens in all. Only then may the new slots be written.

        Returns:
            A copy to make first, if the last kept tokens lie in a block that this table shares or
            has published (after `roll_back` into one). Usually None.
        Raises:
            OutOfBlocks: nothing was allocated and nothing changed.
        """
        if num_tokens <= self.num_tokens:
            return None
        pool = self._pool
        is_copied = self.num_tokens % pool.block_size != 0 and not pool.is_writable(
            self.block_ids[-1]
        )
        num_new = -(-num_tokens // pool.block_size) - len(self.block_ids)
        if not (num_new or is_copied):
            self.num_tokens = num_tokens
            return None
        if num_new + is_copied > pool.num_free:
            raise OutOfBlocks(f"{num_new + is_copied} blocks needed, {pool.num_free} free")
        copy = self._replace_last() if is_copied else None
        for _ in range(num_new):
            self.block_ids.append(pool.allocate(self.block_ids[-1] if self.block_ids else None))
        self.num_tokens = num_tokens
        return copy

    def roll_back(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens` tokens; give back the blocks wholly beyond."""
        if num_tokens >= self.num_tokens:
            return
        num_kept = -(-num_tokens // self._pool.block_size)
        self._pool.let_go(self.block_ids[num_kept:])
        del self.block_ids[num_kept:]
        del self._chain[num_tokens // self._pool.block_size + 1 :]
        self.num_tokens = num_tokens

    def publish(self, token_ids: Sequence[int]) -> None:
        """Offer every full block of these tokens, the sequence's first, to others.

        They must be confirmed and computed: keys and values in the cache, never to be rolled back
        in the ordinary course. Repeated calls with more tokens hash only what is new.
        """
        assert len(token_ids) <= self.num_tokens
        for index in range(len(self._chain) - 1, len(token_ids) // self._pool.block_size):
            digest = self.digest_block(token_ids, index)
            self._pool.publish(self.block_ids[index], digest)
            self._chain.append(digest)

    def fork(self, num_tokens: int) -> tuple["BlockTable", BlockCopy | None]:
        """A second table over the first `num_tokens` tokens: a branch.

        Full blocks are shared. A partial one is the branch's own, and must be copied.

        Raises:
            OutOfBlocks: no block for the partial one; nothing changed.
        """
        assert num_tokens <= self.num_tokens
        pool = self._pool
        num_full, num_partial = divmod(num_tokens, pool.block_size)
        if num_partial and not pool.num_free:
            raise OutOfBlocks("1 block needed, 0 free")
        branch = BlockTable(pool, self._chain[0])
        branch._chain = self._chain[: num_full + 1]
        branch.block_ids = self.block_ids[:num_full]
        branch.num_tokens = branch.num_cached_tokens = num_tokens
        for block_id in branch.block_ids:
            pool.hold(block_id)
        if not num_partial:
            return branch, None
        branch.block_ids.append(pool.allocate(None))
        return branch, BlockCopy(self.block_ids[num_full], branch.block_ids[-1])

    def release(self) -> None:
        """Give everything back. The published part stays cached. Releasing twice is harmless."""
        self.roll_back(0)

    def adopt(self, block_id: int, digest: bytes) -> None:
        """Append a held, published block: `BlockPool.open` found it."""
        self.block_ids.append(block_id)
        self.num_tokens += self._pool.block_size
        self._chain.append(digest)

    def digest_block(self, token_ids: Sequence[int], index: int) -> bytes:
        """The name of full block `index` of these tokens, given that the chain reaches it."""
        size = self._pool.block_size
        tokens = array("q", token_ids[index * size : (index + 1) * size])
        return hashlib.sha256(self._chain[index] + tokens.tobytes()).digest()

    def _replace_last(self) -> BlockCopy:
        source = self.block_ids.pop()
        self.block_ids.append(self._pool.allocate(self.block_ids[-1] if self.block_ids else None))
        self._pool.let_go([source])
        return BlockCopy(source, self.block_ids[-1])
