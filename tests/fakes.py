"""Stand-ins for what is slow or outside: time and the model. No mock of a class of our own."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kernels.gumbel_top import Top
from shared.engine.adjustments import changes_logits
from shared.engine.following import Follow, Follower
from shared.engine.samplers import Collect, HostSampler
from shared.engine.sampling import Row, VerifyRequest
from shared.engine.spans import Span


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def monotonic_s(self) -> float:
        """See shared.common.clock.Clock."""
        return self.elapsed_s

    def unix_ms(self) -> int:
        """See shared.common.clock.Clock."""
        return 1_700_000_000_000 + int(self.elapsed_s * 1_000)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.elapsed_s += seconds


class FakeRunner:
    """A model without weights whose cache can be wrong: logits are a function of the whole prefix.

    Keeps the token of every slot, as a paged cache would keep keys and values, and computes each
    row from what the block table leads to. A wrong block table, a stale slot or a missed copy
    gives other logits.
    """

    def __init__(
        self, *, vocab_size: int, num_blocks: int, block_size: int, sharpness: float = 4.0
    ) -> None:
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.slots = [[-1] * block_size for _ in range(num_blocks)]
        self.sharpness = sharpness
        self.num_runs = 0

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See shared.engine.spans.Runner."""
        self.num_runs += 1
        for span in spans:
            for index, token_id in enumerate(span.token_ids, span.start):
                block = span.block_ids[index // self.block_size]
                self.slots[block][index % self.block_size] = token_id
        rows = [row for span in spans for row in self._rows(span)]
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See shared.engine.spans.Runner."""
        for source, destination in copies:
            self.slots[destination] = list(self.slots[source])

    def _rows(self, span: Span) -> list[Tensor]:
        end = span.start + len(span.token_ids)
        prefix = [
            self.slots[span.block_ids[index // self.block_size]][index % self.block_size]
            for index in range(end)
        ]
        return [self.logits(prefix[: end - back]) for back in range(span.num_logits - 1, -1, -1)]

    def logits(self, prefix: Sequence[int]) -> Tensor:
        """The row that follows `prefix`: [V] float32, the same on every call."""
        state = hash(tuple(prefix)) & 0xFFFF_FFFF  # integers hash alike in every process
        generator = torch.Generator().manual_seed(state)
        return torch.randn(self.vocab_size, generator=generator) * self.sharpness


def check_rows(num_rows: int, max_rows: int) -> None:
    """Fail the test, not only the round: an engine survives what a round raises."""
    if num_rows > max_rows:
        pytest.fail(f"{num_rows} rows, with buffers for {max_rows}")


class BoundedRunner(FakeRunner):
    """Refuses a pass of more rows than were set aside for one, as a GPU's buffers do."""

    def __init__(self, max_rows: int, *, vocab_size: int, num_blocks: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, num_blocks=num_blocks, block_size=block_size)
        self.max_rows = max_rows

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See shared.engine.spans.Runner."""
        check_rows(sum(len(span.token_ids) for span in spans), self.max_rows)
        return super().run(spans)


class BoundedSampler(HostSampler):
    """Refuses more rows than were set aside, as a GPU's sampler does."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See Sampler."""
        check_rows(len(logits), self.max_rows)
        return super().verify(logits, requests)

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        """See Sampler."""
        check_rows(len(logits), self.max_rows)
        return super().begin_verify(logits, requests)

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """See Sampler."""
        check_rows(len(logits), self.max_rows)
        return super().rank(logits, rows, num)


class FakeFollower(Follower):
    """Plays a device that goes on by itself, with what the engine has not read yet.

    Also the sampler of its runner: it knows what the last round confirmed.
    """

    def __init__(self, runner: FakeRunner, sampler: HostSampler) -> None:
        self.num_rounds = 0
        self.num_asks = 0  # a round is over when it was asked about so often
        self._num_asked = 0
        self._runner = runner
        self._sampler = sampler
        self._confirmed: dict[int, list[int]] = {}  # by first row, of the last round

    def verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> list[list[int]]:
        """See Sampler."""
        return self.begin_verify(logits, requests)()

    def begin_verify(self, logits: Tensor, requests: Sequence[VerifyRequest]) -> Collect:
        """See Sampler."""
        self._num_asked = 0
        collect = self._sampler.begin_verify(logits, requests)
        confirmed, first_row = collect(), 0
        self._confirmed = {}
        for request, tokens in zip(requests, confirmed, strict=True):
            self._confirmed[first_row] = tokens
            first_row += 1 + len(request.draft_token_ids)
        return collect

    def is_over(self) -> bool:
        """See Sampler."""
        self._num_asked += 1
        return self._num_asked > self.num_asks

    def rank(self, logits: Tensor, rows: Sequence[Row], num: int) -> list[Top]:
        """See Sampler."""
        return self._sampler.rank(logits, rows, num)

    def has_room(self, spans: Sequence[Span]) -> bool:
        """See Follower. The runner refuses what it has no room for."""
        return bool(spans)

    def begin(
        self,
        spans: Sequence[Span],
        requests: Sequence[VerifyRequest],
        follows: Sequence[Follow],
    ) -> Collect:
        """See Follower."""
        self.num_rounds += 1
        placed, known = [], []
        for span, request, follow in zip(spans, requests, follows, strict=True):
            assert len(span.token_ids) == span.num_logits == 1
            assert not request.draft_token_ids
            assert not changes_logits(request.params, len(request.token_ids) - request.prompt_len)
            tokens = self._confirmed[follow.first_row]
            start = span.start - (follow.num_drafts + 1 - max(1, len(tokens)))
            assert not tokens or start == len(request.token_ids) + len(tokens) - 1
            token_ids = [*request.token_ids, *tokens]
            placed.append(Span(token_ids[-1:], start, list(span.block_ids), 1))
            known.append(VerifyRequest(request.params, token_ids, request.prompt_len, ()))
        return self.begin_verify(self._runner.run(placed), known)
