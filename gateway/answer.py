"""One answer being read for one client: its entries, its share of the limits, its figures."""

from gateway.admission import Ticket
from gateway.config import FIRST_RECORD_S
from gateway.errors import STATUS_CLIENT_GONE, JobFailed
from gateway.job import Job
from gateway.metrics import Metrics
from gateway.subscriptions import Subscription
from gateway.transcript import Entry
from shared.common.clock import Clock
from shared.protocol.records import Done, Failed, Record, Tokens


class Meter:
    """Times one answer by this gateway's clock, when records arrive, whatever the client reads.

    Only the submission is metered: a stream that is read twice is generated once.
    """

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._start_s = clock.monotonic_s()
        self._last_s: dict[int, float] = {}
        self._is_over = False

    def observe(self, record: Record) -> None:
        """Note a record from the feed."""
        if not isinstance(record, Tokens) or not record.token_ids:
            return
        now_s, num_tokens = self._clock.monotonic_s(), len(record.token_ids)
        last_s = self._last_s.get(record.choice)
        if not self._last_s:
            self._metrics.ttft_s.observe(now_s - self._start_s)
        if last_s is not None:
            gap_s = (now_s - last_s) / num_tokens
            self._metrics.inter_token_latency_s.observe(gap_s, count=num_tokens)
        self._last_s[record.choice] = now_s

    def finish(self, record: Done | Failed | None, num_tokens: int) -> None:
        """Note how it ended; None: nobody waited for the end. Only the first call counts."""
        if self._is_over:
            return
        self._is_over = True
        metrics = self._metrics
        metrics.num_generation_tokens += num_tokens
        if isinstance(record, Done):
            metrics.num_prompt_tokens += record.usage.prompt_tokens
            metrics.outcomes[record.reasons[record.choice].value] += 1
            metrics.e2e_latency_s.observe(self._clock.monotonic_s() - self._start_s)
        elif record is None or record.status == STATUS_CLIENT_GONE:
            metrics.outcomes["abort"] += 1
        else:
            metrics.outcomes["error"] += 1


class Answer:
    """Reads a subscription and keeps the books."""

    def __init__(
        self, job: Job, subscription: Subscription, ticket: Ticket, meter: Meter | None
    ) -> None:
        self.job = job
        self._subscription = subscription
        self._ticket = ticket
        self._meter = meter

    @property
    def is_over(self) -> bool:
        """Whether the terminal record was returned."""
        return self._subscription.position.is_over

    async def first(self) -> list[Entry]:
        """The first entries, or none if the worker takes its time.

        Waiting a moment lets a request that only the worker can judge (is the prompt too long?) be
        refused with a proper status.

        Raises:
            JobFailed: it ended before any token.
        """
        entries = await self.read(FIRST_RECORD_S)
        if entries and isinstance(entries[0][1], Failed):
            raise JobFailed(entries[0][1])
        return entries

    async def read(self, timeout_s: float) -> list[Entry]:
        """See Subscription.read."""
        entries = await self._subscription.read(timeout_s)
        if entries:
            self._ticket.begin()
            last = entries[-1][1]
            if self._meter is not None and isinstance(last, Done | Failed):
                self._meter.finish(last, sum(self._subscription.position.lengths))
        return entries

    def close(self) -> None:
        """Note that nobody reads on."""
        if self._meter is not None:
            self._meter.finish(None, sum(self._subscription.position.lengths))
