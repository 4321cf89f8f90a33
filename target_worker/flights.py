"""A round on its way through the engine: under way, then landed, then booked."""

from collections.abc import Sequence
from dataclasses import dataclass

from target_worker.job import Job
from target_worker.rounds import Begun, Verified
from target_worker.speculation import Offers


@dataclass(frozen=True, slots=True)
class Flight:
    """A round under way."""

    begun: Begun
    offers: Offers
    started_s: float
    listens: bool = False  # drafters may have news while it computes
    listens_until_s: float = 0.0  # it surely computes until then


@dataclass(frozen=True, slots=True)
class Accepted:
    """Tokens that a session has taken, not yet told."""

    result: Verified
    offer: Sequence[int]
    job: Job
    choice: int
    base_len: int  # tokens before
    kept: Sequence[int]


@dataclass(frozen=True, slots=True)
class Landing:
    """A round whose tokens are taken in, and not all of what they mean said."""

    flight: Flight
    accepted: Sequence[Accepted]
    landed_s: float
    period_s: float  # since the round before
    is_told: bool = False  # drafters have heard of it
