"""What `bench.timeline` is made of: a clock that is only moved, and two workers that live by it."""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from draft_worker.limits import DraftLimits
from draft_worker.model_drafter import ModelDrafter
from draft_worker.service import DraftService, Mail
from kernels.gumbel_top import Top
from shared.engine.blocks import BlockPool
from shared.engine.ranking import Collect, HostRanker
from shared.engine.runner import ModelRunner
from shared.engine.samplers import HostSampler
from shared.engine.sampling import Row
from shared.engine.spans import Runner, Span
from shared.protocol.messages import Message
from target_worker.admitted import AdmittedJob
from target_worker.cost import Measured
from target_worker.engine import Engine
from target_worker.equipment import OVERLAP_FROM
from target_worker.goodput import Policy
from target_worker.rounds import Rounds
from target_worker.scheduler import Scheduler
from target_worker.speculation import Identity, Speculation

NUM_BLOCKS, BLOCK_SIZE = 4_096, 16
MAX_SEQS, MAX_ROWS = 64, 512
PROFILED = ((1, 1), (1, 4), (1, 8), (4, 4), (8, 1), (8, 2), (16, 2), (32, 1), (64, 1))
US = 1e-6


@dataclass(frozen=True)
class Costs:
    """Seconds, rounded from what H200s take at short contexts (bench/results/gpu.md).

    Those of the drafter are from a trace (docs/decisions.md, "A drafter's step begun behind the one
    under way"). The hop is `bench.path`'s 0.2 ms and 0.1 ms for threads to wake up, which is
    assumed.
    """

    round_s: float = 4_280 * US  # 8B, with sampler and host
    round_row_s: float = 15 * US
    step_s: float = 1_000 * US  # 1B, with ranking
    step_row_s: float = 6 * US
    plan_s: float = 330 * US  # of a step, by its host: planned, forked, staged, launched, read
    plan_row_s: float = 16 * US
    hop_s: float = 300 * US  # from one worker to the other

    def of_round(self, num_rows: int) -> float:
        """A round of the target."""
        return self.round_s + self.round_row_s * num_rows

    def of_step(self, num_rows: int) -> float:
        """What a step of the drafter computes."""
        return self.step_s + self.step_row_s * num_rows

    def of_plan(self, num_rows: int) -> float:
        """What it takes its host."""
        return self.plan_s + self.plan_row_s * num_rows


@dataclass
class Timeline:
    """A clock, and what happens when. Calls of one moment are made in the order they were added."""

    now_s: float = 0.0
    _calls: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _num_added: int = 0

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Have something called."""
        self._num_added += 1
        heapq.heappush(self._calls, (self.now_s + seconds, self._num_added, call))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Until nothing is left to call, or it is over."""
        while self._calls and not is_over():
            self.now_s, _, call = heapq.heappop(self._calls)
            call()

    def monotonic_s(self) -> float:
        """See shared.common.clock.Clock."""
        return self.now_s

    def unix_ms(self) -> int:
        """See shared.common.clock.Clock."""
        return int(1_000 * self.now_s)


class Counting(Runner):
    """A model that remembers how much it was asked for."""

    def __init__(self, model_dir: Path) -> None:
        self._runner = ModelRunner.load(model_dir, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
        self.max_model_len = self._runner.config.max_model_len
        self.vocab_size = self._runner.config.vocab_size
        self.num_runs = self.num_rows = 0  # in all; of the last one

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See Runner."""
        self.num_runs += 1
        self.num_rows = sum(len(span.token_ids) for span in spans)
        return self._runner.run(spans)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """See Runner."""
        self._runner.copy_blocks(copies)


class Target:
    """An engine whose rounds take their time, as on a device that computes by itself."""

    def __init__(self, time: Timeline, costs: Costs, runner: Counting, policy: Policy) -> None:
        profile = [Measured(n, n * rows, costs.of_round(n * rows)) for n, rows in PROFILED]
        speculation = Speculation(policy, Identity("t", "v"), profile=profile, clock=time)
        pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
        scheduler = Scheduler(pool, max_num_seqs=MAX_SEQS, max_batched_tokens=MAX_ROWS)
        rounds = Rounds(runner, HostSampler(), lambda: None)
        vocab_size = runner.vocab_size
        self.engine = Engine(
            rounds, scheduler, speculation, vocab_size=vocab_size, clock=time,
            overlap_from=OVERLAP_FROM,
        )  # fmt: skip
        self.drafter: Drafter | None = None
        self.waiting: list[AdmittedJob] = []  # each begins when another one ends
        self._time, self._costs, self._runner = time, costs, runner
        self._heard: list[Message] = []
        self._computes = False

    def hear(self, messages: Sequence[Message]) -> None:
        """Mail has come."""
        self._heard += messages
        self.wake()

    def wake(self) -> None:
        """Plan a round, unless one is under way; while it is, the engine listens."""
        self.engine.receive(self._heard, self._time.now_s)
        self._heard.clear()
        if not self._computes:
            self._step()

    def _land(self) -> None:
        self._computes = False
        self._step()

    def _step(self) -> None:
        num_runs = self._runner.num_runs
        pause = self.engine.step()
        self._say()
        if self._runner.num_runs > num_runs:
            self._computes = True
            self._time.after(self._costs.of_round(self._runner.num_rows), self._land)
        elif pause.seconds is not None:
            self._time.after(pause.seconds, self.wake)

    def _say(self) -> None:
        outcome = self.engine.take_outcome()
        for _ in outcome.ended:
            if self.waiting:
                self.engine.submit(self.waiting.pop(0))
                self._time.after(0.0, self.wake)
        messages = [*outcome.requests, *itertools.chain.from_iterable(outcome.mail.values())]
        if messages and self.drafter is not None:
            hear = self.drafter.hear
            self._time.after(self._costs.hop_s, lambda: hear(messages))


class Device(HostRanker):
    """A drafter's device and host: passes take their time, behind one another.

    Its time may be ahead of the timeline's while a call is played; who called is busy until then.
    """

    def __init__(self, time: Timeline, costs: Costs, runner: Counting, *, can_follow: bool) -> None:
        super().__init__(runner, HostSampler(), can_follow=can_follow)
        self._time, self._costs, self._counting = time, costs, runner
        self._now_s = self._free_s = 0.0

    def monotonic_s(self) -> float:
        """See shared.common.clock.Clock."""
        self._now_s = max(self._now_s, self._time.now_s)
        return self._now_s

    def unix_ms(self) -> int:
        """See shared.common.clock.Clock."""
        return int(1_000 * self.monotonic_s())

    def begin(
        self, spans: Sequence[Span], rows: Sequence[Row], num: int, follows: Sequence[int] = ()
    ) -> Collect:
        """See Ranker."""
        collect = super().begin(spans, rows, num, follows)
        num_rows = self._counting.num_rows
        self._now_s = self.monotonic_s() + self._costs.of_plan(num_rows)
        ends_s = self._free_s = max(self._now_s, self._free_s) + self._costs.of_step(num_rows)

        def collected() -> list[Top]:
            self._now_s = max(self.monotonic_s(), ends_s)
            return collect()

        return collected


class Drafter:
    """A drafter whose steps take their time; it hears between them."""

    def __init__(
        self,
        time: Timeline,
        costs: Costs,
        runner: Counting,
        limits: DraftLimits,
        target: Target,
        *,
        can_follow: bool,
    ) -> None:
        self._device = Device(time, costs, runner, can_follow=can_follow)
        self.model = ModelDrafter(
            self._device, BlockPool(NUM_BLOCKS, BLOCK_SIZE), limits=limits, clock=self._device,
            vocab_size=runner.vocab_size, max_model_len=runner.max_model_len,
        )  # fmt: skip
        self._service = DraftService(self.model, draft_id="d", clock=time, session_timeout_s=60.0)
        self._time, self._costs, self._target = time, costs, target
        self._heard: list[Message] = []
        self._is_busy = False
        self._num_naps = 0

    def hear(self, messages: Sequence[Message]) -> None:
        """Mail has come."""
        self._heard += messages
        self._turn()

    def _turn(self) -> None:
        """As `draft_worker.loop`."""
        if self._is_busy:
            return
        heard, self._heard = self._heard, []
        self._send(self._service.handle(heard))
        if not self._service.has_work:
            return
        self._num_naps += 1
        if self._service.listen_s > 0.0:
            nap = self._num_naps
            self._time.after(self._service.listen_s, lambda: self._wake(nap))
            return
        mail = self._service.step()
        self._is_busy = True
        busy_s = self._device.monotonic_s() - self._time.now_s
        self._time.after(busy_s, lambda: self._end_step(mail))

    def _wake(self, nap: int) -> None:
        if nap == self._num_naps:
            self._turn()

    def _end_step(self, mail: Mail) -> None:
        self._is_busy = False
        self._send(mail)
        self._turn()

    def _send(self, mail: Mail) -> None:
        messages = list(itertools.chain.from_iterable(mail.values()))
        if messages:
            self._time.after(self._costs.hop_s, lambda: self._target.hear(messages))
