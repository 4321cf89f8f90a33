"""One verify round: a pass of the model over all rows, and what the sampler makes of it.

A session that makes the pass or the sampler fail is found and named; the others get their tokens in
the same round all the same. Knows nothing of queues, drafters or policy.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from shared.engine.adjustments import changes_logits
from shared.engine.following import Follow, Follower
from shared.engine.samplers import Collect, Sampler
from shared.engine.sampling import VerifyRequest
from shared.engine.spans import Runner, Span
from target_worker.scheduler import Row
from target_worker.session import Session

_log = structlog.get_logger()


class EngineBroken(Exception):
    """The model fails even at a pass that has always worked. The process must end."""


class SessionFailed(Exception):
    """This session's logits or tokens cannot be used."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a round gave one row."""

    row: Row
    token_ids: list[int]  # confirmed, the corrected or bonus one last; empty for a prefill chunk
    error: Exception | None = None
    is_repeated: bool = False  # in a pass of its own, because the round failed

    @property
    def num_accepted(self) -> int:
        """Guesses that were right."""
        return max(0, len(self.token_ids) - 1)


@dataclass(frozen=True, slots=True)
class Begun:
    """A round under way. One of the two is set."""

    rows: Sequence[Row]
    collect: Collect | None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Following:
    """A round ready to begin behind another; `Rounds` makes and takes it."""

    follower: Follower
    rows: Sequence[Row]
    spans: Sequence[Span]
    follows: Sequence[Follow]


class Rounds:
    """Runs rounds on one model. One caller: the engine thread.

    Args:
        runner: the model.
        sampler: chooses tokens from its logits.
        self_test: a pass that any working model survives; tells a broken engine from bad sessions.
        follower: begins rounds behind one under way, where the device can.
    """

    def __init__(
        self,
        runner: Runner,
        sampler: Sampler,
        self_test: Callable[[], None],
        follower: Follower | None = None,
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._self_test = self_test
        self._follower = follower

    def run(self, rows: Sequence[Row], copies: Sequence[tuple[int, int]] = ()) -> list[Verified]:
        """Compute and verify all rows: `begin` and `finish`."""
        return self.finish(self.begin(rows, copies))

    def begin(self, rows: Sequence[Row], copies: Sequence[tuple[int, int]] = ()) -> Begun:
        """Start computing and verifying rows; on a GPU it goes on by itself.

        Args:
            rows: at least one; their block tables have room for all tokens.
            copies: cache blocks to copy before the pass.
        """
        if copies:
            self._runner.copy_blocks(copies)
        try:
            return Begun(rows, self._begin_pass(rows))
        except Exception as error:  # noqa: BLE001 -- whatever one session's tokens provoke is pinned on it
            return Begun(rows, None, error)

    def is_over(self, begun: Begun) -> bool:
        """Whether `finish` has nothing to wait for, of the last round that was begun."""
        return begun.collect is None or self._sampler.is_over()

    def prepare_following(self, begun: Begun, rows: Sequence[Row]) -> Following | None:
        """Rows that can begin while what they go on from is unknown to this side; None: they can't.

        Args:
            begun: the round under way.
            rows: at least one; one token each, without guesses, of sessions that are sampled there.
        """
        follower = self._follower
        if follower is None or begun.collect is None:
            return None
        if any(_is_adjusted(row.session) for row in rows):
            return None
        follows, spans = zip(*_places(begun, rows), strict=True)
        return Following(follower, rows, spans, follows) if follower.has_room(spans) else None

    def begin_following(
        self, following: Following, copies: Sequence[tuple[int, int]] = ()
    ) -> Begun:
        """Start a round behind the one that it was prepared for, which is finished first.

        Should a row of that one have to be repeated, or none of them be usable, this one is of no
        use and not to be finished: it went on from what the device chose before, and what was run
        since has used the sampler.
        """
        if copies:
            self._runner.copy_blocks(copies)
        rows = following.rows
        try:
            requests = [_request(row) for row in rows]
            return Begun(
                rows, following.follower.begin(following.spans, requests, following.follows)
            )
        except Exception as error:  # noqa: BLE001 -- as in `begin`
            return Begun(rows, None, error)

    def finish(self, begun: Begun) -> list[Verified]:
        """Wait for what was begun: once, in the order of beginning, before another `begin`.

        Raises:
            EngineBroken: it failed for everybody, and so did the self-test.
        """
        rows, error, verified = begun.rows, begun.error, None
        if begun.collect is not None:
            try:
                verified = _paired(rows, begun.collect())
            except Exception as failure:  # noqa: BLE001 -- as in `begin`
                error = failure
        if verified is None:
            _log.warning("round_failed", num_rows=len(rows), error=repr(error))
            verified = [self._alone(row) for row in rows]
        self._check_health(verified)
        return verified

    def _begin_pass(self, rows: Sequence[Row]) -> Collect:
        logits = self._runner.run([row.span() for row in rows])
        requests = [_request(row) for row in rows if row.is_sampled]
        return self._sampler.begin_verify(logits, requests)

    def _alone(self, row: Row) -> Verified:
        """One row in a pass of its own. What it computed in the failed pass is computed again."""
        try:
            (result,) = _paired([row], self._begin_pass([row])())
            return replace(result, is_repeated=True)
        except Exception as error:  # noqa: BLE001 -- it becomes this session's failure
            return Verified(row, [], error, is_repeated=True)

    def _check_health(self, verified: Sequence[Verified]) -> None:
        if any(result.error is None for result in verified):
            return
        try:
            self._self_test()
        except Exception as error:
            raise EngineBroken("no row of a round and not the self-test either") from error


def _places(begun: Begun, rows: Sequence[Row]) -> Iterator[tuple[Follow, Span]]:
    """Where each row goes on, and its span, as though every guess under way were right."""
    leaders: dict[Session, tuple[int, Row]] = {}
    first_row = 0
    for leader in begun.rows:
        if leader.is_sampled:
            leaders[leader.session] = first_row, leader
            first_row += 1 + len(leader.draft_token_ids)
    for row in rows:
        first_row, leader = leaders[row.session]
        table, num_drafts = row.session.table, len(leader.draft_token_ids)
        assert table is not None
        start = row.session.num_computed + leader.num_tokens + num_drafts
        yield Follow(first_row, num_drafts), Span([0], start, table.block_ids, 1)


def _is_adjusted(session: Session) -> bool:
    """Whether its next logits depend on tokens before, other than by the model."""
    return changes_logits(session.params, session.num_output)


def _paired(rows: Sequence[Row], confirmed: Iterable[list[int]]) -> list[Verified]:
    """Rows with the tokens of those that are sampled."""
    tokens = iter(confirmed)
    return [_verified(row, next(tokens)) if row.is_sampled else Verified(row, []) for row in rows]


def _request(row: Row) -> VerifyRequest:
    return VerifyRequest(
        params=row.session.params,
        token_ids=row.session.token_ids,
        prompt_len=row.session.prompt_len,
        draft_token_ids=row.draft_token_ids,
    )


def _verified(row: Row, token_ids: list[int]) -> Verified:
    if token_ids:
        return Verified(row, token_ids)
    return Verified(row, [], SessionFailed("the model's logits are not usable (NaN or infinite)"))
