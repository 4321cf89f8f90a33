"""Whether to speculate at all: decided by measured speed with and without, at the present load.

A model of the round alone cannot tell, since drafters compete for the same cores and links. So both
ways are measured where they happen anyway, and otherwise tried for a moment, at a bounded price.
Acceptance is not asked: it stays high while the right answer changes with the load.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from shared.common.clock import Clock


class Policy(StrEnum):
    """What the operator allows."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Mode(StrEnum):
    """How rounds are run."""

    PLAIN = "plain"
    SPECULATIVE = "speculative"


MEMORY_S = 2.0  # seconds of rounds after which a measurement counts a third
MIN_EVIDENCE_S = 0.2  # seconds of rounds that a speed needs to be believed
PROBE_S = 0.25  # seconds of rounds that one trial of the other mode collects
PROBE_LIMIT_S = 1.5  # wall clock; no drafter answered, or none could be measured
PROBE_BUDGET = 0.02  # share of the time that trials may take
FIRST_PROBE_AFTER_S = 0.5  # speculating without ever having seen plain speed: find out soon
MAX_PROBE_INTERVAL_S = 300.0
START_GAIN = 1.3  # a predicted gain (drafting free) from here on starts speculative
DOUBTFUL_GAIN = 1.15  # from here on plain, and tried soon; below, the drafter's work likely eats it
FIRST_TRY_AFTER_S = 2.0
PROBE_GAIN = 1.05  # below this not even free drafting would pay: no trial
SWITCH_OFF = 0.98  # speculative over plain speed; the gap between the two is the hysteresis
SWITCH_ON = 1.05


@dataclass(slots=True)
class _Arm:
    """Speed of one mode at one load: decayed worth over decayed seconds."""

    worth_s: float = 0.0
    seconds: float = 0.0

    def observe(self, worth_s: float, seconds: float) -> None:
        kept = math.exp(-seconds / MEMORY_S)
        self.worth_s = self.worth_s * kept + worth_s
        self.seconds = self.seconds * kept + seconds

    @property
    def is_known(self) -> bool:
        return self.seconds >= MIN_EVIDENCE_S

    @property
    def speed(self) -> float:
        return self.worth_s / self.seconds


@dataclass(slots=True)
class _Load:
    """What is known at one load (a power of two of streams)."""

    mode: Mode
    probe_interval_s: float
    since_probe_s: float = 0.0  # seconds of rounds in `mode`
    is_tried: bool = False  # the other mode, on purpose or by chance
    arms: dict[Mode, _Arm] = field(
        default_factory=lambda: {Mode.PLAIN: _Arm(), Mode.SPECULATIVE: _Arm()}
    )

    def settle(self) -> bool:
        """Take the faster mode, if both speeds are known. Returns whether that is a change."""
        plain, speculative = self.arms[Mode.PLAIN], self.arms[Mode.SPECULATIVE]
        if not (plain.is_known and speculative.is_known):
            return False
        needed = SWITCH_OFF if self.mode is Mode.SPECULATIVE else SWITCH_ON
        is_faster = speculative.speed >= needed * plain.speed
        chosen = Mode.SPECULATIVE if is_faster else Mode.PLAIN
        is_changed = chosen is not self.mode
        self.mode = chosen
        return is_changed


class Goodput:
    """Chooses the mode of the next round. One caller; never blocks."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._loads: dict[int, _Load] = {}
        self._current = -1
        self._probe_start_s: float | None = None
        self.num_probes = 0

    def choose(self, num_streams: int, predicted_gain: Callable[[], float]) -> Mode:
        """The mode for a round of `num_streams` decoding sessions.

        Args:
            num_streams: at least 1.
            predicted_gain: an upper bound of speculation's speed over plain; asked for when needed.
        """
        if self._policy is not Policy.AUTO:
            return Mode.SPECULATIVE if self._policy is Policy.ON else Mode.PLAIN
        bucket = (num_streams - 1).bit_length()
        load = self._loads.get(bucket)
        if load is None:
            load = self._loads[bucket] = _new_load(predicted_gain())
        if bucket != self._current:
            self._current = bucket
            self._probe_start_s = None  # a trial at another load says nothing
        if self._probe_start_s is not None:
            self._end_probe_if_over(load)
        elif self._is_probe_due(load, predicted_gain):
            self._probe_start_s = self._clock.monotonic_s()
            self.num_probes += 1
            load.arms[_other(load.mode)] = _Arm()
        return load.mode if self._probe_start_s is None else _other(load.mode)

    def observe(self, mode: Mode, *, worth_s: float, seconds: float) -> None:
        """Learn from one round at the load last chosen for.

        Args:
            mode: how it was run; rounds of neither kind (prefill, drafters starting) are not told.
            worth_s: seconds that plain decoding was expected to need for the same tokens.
            seconds: from the end of the round before, or from its own start after a pause.
        """
        load = self._loads.get(self._current)
        if load is None:
            return
        load.arms[mode].observe(worth_s, seconds)
        if self._probe_start_s is None:
            load.since_probe_s += seconds if mode is load.mode else 0.0
            if load.settle():
                self._schedule(load, spent_s=PROBE_S)

    def _is_probe_due(self, load: _Load, predicted_gain: Callable[[], float]) -> bool:
        if load.since_probe_s < load.probe_interval_s or not load.arms[load.mode].is_known:
            return False
        if not load.is_tried and load.arms[_other(load.mode)].is_known:
            load.is_tried = True  # rounds before the drafters came were the first trial
            self._schedule(load, spent_s=PROBE_S)
            return False
        load.is_tried = True
        return load.mode is Mode.SPECULATIVE or predicted_gain() >= PROBE_GAIN

    def _end_probe_if_over(self, load: _Load) -> None:
        assert self._probe_start_s is not None
        spent_s = self._clock.monotonic_s() - self._probe_start_s
        if load.arms[_other(load.mode)].seconds < PROBE_S and spent_s < PROBE_LIMIT_S:
            return
        self._probe_start_s = None
        before_s = load.probe_interval_s
        is_changed = load.settle()
        self._schedule(load, spent_s=spent_s)
        if not is_changed:  # confirmed: ask less and less often
            doubled_s = max(load.probe_interval_s, 2 * before_s)
            load.probe_interval_s = min(doubled_s, MAX_PROBE_INTERVAL_S)

    def _schedule(self, load: _Load, *, spent_s: float) -> None:
        load.since_probe_s = 0.0
        load.probe_interval_s = spent_s / PROBE_BUDGET


def _new_load(predicted_gain: float) -> _Load:
    if predicted_gain >= START_GAIN:
        return _Load(Mode.SPECULATIVE, FIRST_PROBE_AFTER_S)
    if predicted_gain >= DOUBTFUL_GAIN:
        return _Load(Mode.PLAIN, FIRST_TRY_AFTER_S)
    return _Load(Mode.PLAIN, PROBE_LIMIT_S / 2 / PROBE_BUDGET)


def _other(mode: Mode) -> Mode:
    return Mode.PLAIN if mode is Mode.SPECULATIVE else Mode.SPECULATIVE
