"""Which sessions are in the cache, and what each of them computes in the next round.

First come, first served: a session that has to leave the cache for want of blocks is always the one
that came last, so the first one always goes on and nothing can wait for ever. Guesses never push
anybody out. Knows nothing of models, drafters or queues.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.engine.blocks import BlockPool, OutOfBlocks
from shared.engine.spans import Span
from target_worker.session import Session


@dataclass(slots=True)
class Row:
    """What one session computes in a round: confirmed tokens, then guesses to verify."""

    session: Session
    num_tokens: int  # confirmed ones
    is_sampled: bool  # it reaches the last confirmed token, so logits are wanted
    draft_token_ids: list[int] = field(default_factory=list)

    def span(self) -> Span:
        """The row for the model."""
        session = self.session
        assert session.table is not None
        start = session.num_computed
        tokens = session.token_ids[start : start + self.num_tokens]
        return Span(
            token_ids=tokens + self.draft_token_ids,
            start=start,
            block_ids=session.table.block_ids,
            num_logits=1 + len(self.draft_token_ids) if self.is_sampled else 0,
        )


class DoesNotFit(Exception):
    """A session that is alone in the cache has no room to go on."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.session_id)
        self.session = session


class Scheduler:
    """Sessions waiting and running, and the blocks they hold. One owner, the engine.

    Args:
        pool: of the model's cache.
        max_num_seqs: sessions in the cache at once.
        max_batched_tokens: rows of a round; greater than max_num_seqs.
    """

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, max_batched_tokens: int) -> None:
        assert max_batched_tokens > max_num_seqs
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.running: list[Session] = []  # by arrival
        self.waiting: list[Session] = []  # by arrival
        self.num_preemptions = 0
        self.copies: list[tuple[int, int]] = []  # blocks to copy before the next pass
        self._num_arrived = 0
        self._tried_free = -1  # free blocks when the first one waiting did not fit

    def add(self, session: Session) -> None:
        """A new session waits behind all others."""
        self._num_arrived += 1
        session.arrival = self._num_arrived
        self.waiting.append(session)

    def remove(self, session: Session) -> None:
        """A session is over; its blocks are free. Removing twice is harmless."""
        queue = self.running if session.table is not None else self.waiting
        if session in queue:
            queue.remove(session)
        session.end()
        self._tried_free = -1

    def start_waiting(self) -> None:
        """Let sessions in while there is room for all that they have and one token more.

        Raises:
            DoesNotFit: the first one waiting is larger than the whole cache.
        """
        for session in list(self.waiting):
            if len(self.running) >= self.max_num_seqs or self.pool.num_free == self._tried_free:
                return
            if session.leader is not None and not session.leader.is_prompt_computed:
                continue
            if not self._start(session):
                if not self.running:
                    raise DoesNotFit(session)
                self._tried_free = self.pool.num_free
                return
            self.waiting.remove(session)
            insort(self.running, session, key=_arrival)

    def plan(self) -> list[Row]:
        """Rows for all running sessions, without guesses: those that decode, then prefill.

        Sessions that find no block for their next token leave the cache, the last one first.

        Raises:
            DoesNotFit: the only session left has no room.
        """
        decoding = [
            Row(session, 1, is_sampled=True)
            for session in [session for session in self.running if session.is_decoding]
            if self._make_room(session)
        ]
        return decoding + self._prefills(self.max_batched_tokens - len(decoding))

    def follow(self, rows: Sequence[Row]) -> list[Row]:
        """Rows for the round after one that is under way, whatever that one confirms.

        One token for each session that may go on. None where planning needs to know the outcome:
        somebody may be let in or computes a prompt, or there is no free block. Nor behind a prompt:
        it seldom comes alone, and who comes during a round should be in the next one.
        """
        if self.waiting and len(self.running) < self.max_num_seqs:
            return []
        leaders = {row.session: row for row in rows if row.is_sampled and row.num_tokens == 1}
        following = []
        for session in self.running:
            leader = leaders.get(session)
            if leader is None:
                return []
            least = len(session.token_ids) + 1
            if least == session.max_len:
                continue  # the round under way is its last
            assert session.table is not None
            try:
                self._copied(session.table.extend(least + len(leader.draft_token_ids)))
            except OutOfBlocks:
                return []
            following.append(Row(session, 1, is_sampled=True))
        return following

    def max_drafts(self, rows: Sequence[Row]) -> int:
        """Guesses that may be added to these rows in all."""
        return self.max_batched_tokens - sum(row.num_tokens for row in rows)

    def add_draft(self, row: Row, draft_token_ids: list[int]) -> None:
        """Verify these guesses too, as many as there is free room for."""
        session = row.session
        assert session.table is not None
        while draft_token_ids:
            try:
                self._copied(session.table.extend(len(session.token_ids) + len(draft_token_ids)))
            except OutOfBlocks:
                # What is left of the last block; then nothing.
                room = len(session.table.block_ids) * self.pool.block_size - len(session.token_ids)
                draft_token_ids = draft_token_ids[: max(0, min(room, len(draft_token_ids) - 1))]
            else:
                break
        row.draft_token_ids = draft_token_ids

    def computed(self, row: Row, num_accepted: int) -> None:
        """The cache holds this row's confirmed tokens and its first `num_accepted` guesses.

        Called once the session has confirmed what the round gave, up to its end.
        """
        session = row.session
        table = session.table
        assert table is not None
        num_computed = session.num_computed + row.num_tokens + num_accepted
        session.num_computed = num_computed = min(num_computed, len(session.token_ids))
        if row.draft_token_ids:
            table.roll_back(len(session.token_ids))
        # Only after logits were seen to be finite: they depend on everything before them.
        if row.is_sampled and num_computed >= session.num_shared + self.pool.block_size:
            session.num_shared = num_computed - num_computed % self.pool.block_size
            table.publish(session.token_ids[: session.num_shared])

    def preempt(self, session: Session) -> None:
        """Take a session out of the cache; it waits for room again, at its place by arrival."""
        self.running.remove(session)
        session.suspend()
        insort(self.waiting, session, key=_arrival)
        self.num_preemptions += 1
        self._tried_free = -1

    def _start(self, session: Session) -> bool:
        table = self.pool.open(session.token_ids, salt=session.salt)
        # One block stays free per running session, or the newcomer would be thrown out at once.
        spare = len(self.running)
        num_new = -(-(len(session.token_ids) + 1) // self.pool.block_size) - len(table.block_ids)
        if num_new + spare > self.pool.num_free:
            table.release()
            return False
        self._copied(table.extend(len(session.token_ids)))
        session.table = table
        session.num_cached = table.num_cached_tokens
        session.num_computed = session.num_shared = table.num_cached_tokens
        return True

    def _make_room(self, session: Session) -> bool:
        """Room for the last confirmed token. False if the session itself had to leave."""
        while session.table is not None:
            try:
                self._copied(session.table.extend(len(session.token_ids)))
            except OutOfBlocks:
                last = self.running[-1]
                if len(self.running) == 1:
                    raise DoesNotFit(session) from None
                self.preempt(last)
            else:
                return True
        return False

    def _prefills(self, budget: int) -> list[Row]:
        rows = []
        for session in self.running:
            if budget <= 0:
                break
            if not session.is_decoding:
                num_left = len(session.token_ids) - session.num_computed
                num_tokens = min(budget, num_left)
                rows.append(Row(session, num_tokens, is_sampled=num_tokens == num_left))
                budget -= num_tokens
        return rows

    def _copied(self, copy: tuple[int, int] | None) -> None:
        if copy is not None:
            self.copies.append(copy)


def _arrival(session: Session) -> int:
    return session.arrival
