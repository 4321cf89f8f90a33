"""Speculation on and off by measured speed: simulated machines, a clock that is told the time."""

from dataclasses import dataclass, field

import pytest

from target_worker.goodput import PROBE_LIMIT_S, Goodput, Mode, Policy
from tests.fakes import ManualClock

ROUND_S = 0.01


@dataclass
class Machine:
    """Runs rounds at a speed for each mode; speed 1 is one unit of worth a second."""

    speculative: float
    plain: float = 1.0
    gain: float = 1.5
    num_streams: int = 1
    answers: bool = True  # whether drafters come when asked
    clock: ManualClock = field(default_factory=ManualClock)
    worth_s: float = 0.0
    seconds: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(Mode, 0.0))

    def __post_init__(self) -> None:
        self.goodput = Goodput(Policy.AUTO, self.clock)

    def run(self, seconds: float) -> Mode:
        """So much time; the mode at the end."""
        mode = Mode.PLAIN
        for _ in range(round(seconds / ROUND_S)):
            mode = self.goodput.choose(self.num_streams, lambda: self.gain)
            really = mode if self.answers else Mode.PLAIN
            speed = self.speculative if really is Mode.SPECULATIVE else self.plain
            self.clock.advance(ROUND_S)
            self.seconds[mode] += ROUND_S
            self.worth_s += speed * ROUND_S
            self.goodput.observe(really, worth_s=speed * ROUND_S, seconds=ROUND_S)
        return mode

    @property
    def speed(self) -> float:
        """Of everything so far."""
        return self.worth_s / sum(self.seconds.values())


@pytest.mark.parametrize("speculative", [0.5, 0.8, 0.94, 1.1, 1.5, 3.0])
@pytest.mark.parametrize("gain", [1.1, 1.2, 2.0])
def test_the_total_is_never_below_95_percent_of_plain(speculative: float, gain: float) -> None:
    """Whatever was predicted: ten seconds and ten minutes, trials included."""
    machine = Machine(speculative, gain=gain)
    machine.run(20)
    assert machine.speed >= 0.95
    machine.run(580)
    assert machine.speed >= 0.97


@pytest.mark.parametrize("speculative", [1.2, 1.5, 3.0])
def test_speculation_that_pays_stays_on(speculative: float) -> None:
    """Trials of plain decoding cost at most three percent of the time."""
    machine = Machine(speculative)
    assert machine.run(300) is Mode.SPECULATIVE
    assert machine.seconds[Mode.PLAIN] < 0.03 * 300
    assert machine.speed > 0.96 * speculative


@pytest.mark.parametrize("speculative", [0.5, 0.9])
def test_speculation_that_does_not_pay_goes_off_within_a_second_or_two(speculative: float) -> None:
    """The first trial comes early; later ones are rare."""
    machine = Machine(speculative)
    assert machine.run(3) is Mode.PLAIN
    machine.run(297)
    assert machine.seconds[Mode.SPECULATIVE] < 0.03 * 300


def test_nothing_is_tried_where_even_free_drafts_would_not_pay() -> None:
    """A predicted gain of nothing: no trial at all."""
    machine = Machine(0.5, gain=1.0)
    machine.run(600)
    assert machine.seconds[Mode.SPECULATIVE] == 0.0
    assert machine.goodput.num_probes == 0


@pytest.mark.parametrize(("gain", "plain_s", "tried_s"), [(1.2, 1.5, 2), (1.1, 30, 15)])
def test_a_doubtful_gain_starts_plain_and_is_tried_later(
    gain: float, plain_s: float, tried_s: float
) -> None:
    """Below the threshold a trial decides: the less likely it is to pay, the later."""
    machine = Machine(1.4, gain=gain)
    assert machine.run(plain_s) is Mode.PLAIN
    assert machine.run(tried_s) is Mode.SPECULATIVE


def test_each_load_has_its_own_answer() -> None:
    """Off at sixteen streams, on again at once when the load drops."""
    machine = Machine(2.0)
    machine.run(5)
    machine.num_streams, machine.speculative = 16, 0.7
    machine.run(5)
    assert machine.run(0.1) is Mode.PLAIN
    machine.num_streams, machine.speculative = 1, 2.0
    assert machine.run(0.1) is Mode.SPECULATIVE


def test_a_machine_that_changes_is_followed() -> None:
    """Speculation stops paying, and pays again: both are found out."""
    machine = Machine(2.0)
    machine.run(30)
    machine.speculative = 0.6
    assert machine.run(60) is Mode.PLAIN
    machine.speculative = 2.0
    assert machine.run(700) is Mode.SPECULATIVE


def test_without_drafters_rounds_are_plain_and_nobody_minds() -> None:
    """Nobody answers: no decision, no endless trial."""
    machine = Machine(2.0, gain=1.2, answers=False)
    machine.run(300)
    assert machine.speed == pytest.approx(1.0)
    assert machine.seconds[Mode.SPECULATIVE] < 0.05 * 300


def test_noise_does_not_make_it_flap() -> None:
    """Equal speeds with ten percent of noise: few changes of mind."""
    machine = Machine(1.02, gain=2.0)
    changes, last = 0, Mode.PLAIN
    for index in range(600):
        machine.speculative = 1.02 + (0.1 if index % 3 else -0.2)
        machine.plain = 1.0 + (0.1 if index % 2 else -0.1)
        mode = machine.run(0.5)
        changes += mode is not last
        last = mode
    assert changes < 60


@pytest.mark.parametrize(
    ("policy", "mode"), [(Policy.ON, Mode.SPECULATIVE), (Policy.OFF, Mode.PLAIN)]
)
def test_the_operator_has_the_last_word(policy: Policy, mode: Mode) -> None:
    """Fixed modes are never tried against."""
    goodput = Goodput(policy, ManualClock())
    assert goodput.choose(4, lambda: 0.1) is mode
    goodput.observe(mode, worth_s=0.0, seconds=100.0)
    assert goodput.choose(4, lambda: 9.0) is mode


def test_a_trial_ends_when_the_load_changes() -> None:
    """What is measured at another load says nothing; and a trial has a limit."""
    machine = Machine(0.5, gain=1.2)
    for _ in range(10_000):
        if machine.run(ROUND_S) is Mode.SPECULATIVE:
            break
    machine.num_streams = 8
    assert machine.run(ROUND_S) is Mode.PLAIN
    assert machine.run(PROBE_LIMIT_S) is Mode.PLAIN
