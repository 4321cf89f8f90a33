"""Counts of all target workers together, which never go back when a worker goes away."""

from collections.abc import Iterable

import msgspec

from gateway.roster import TARGET
from shared.protocol.workers import WorkerStatus

MAX_WORKERS = 4_096  # remembered one by one; older ones are only remembered in the sums


class Totals(msgspec.Struct):
    """Of one model."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # of the fullest worker
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_preemptions: int = 0
    accepted_per_position: tuple[int, ...] = ()


class FleetTotals:
    """Sums the last heartbeat of every worker ever seen."""

    def __init__(self) -> None:
        self._last: dict[str, WorkerStatus] = {}
        self._gone: dict[str, Totals] = {}
        self.by_model: dict[str, Totals] = {}

    def update(self, workers: Iterable[WorkerStatus]) -> None:
        """Take in a look at the heartbeats."""
        alive = {worker.worker_id: worker for worker in workers if worker.role == TARGET}
        # The most recently seen stay at the end, so that the longest gone is forgotten first.
        for worker_id, worker in alive.items():
            self._last.pop(worker_id, None)
            self._last[worker_id] = worker
        while len(self._last) > MAX_WORKERS:
            oldest = self._last.pop(next(iter(self._last)))
            _add_counts(self._gone.setdefault(oldest.model, Totals()), oldest)
        sums = {model: msgspec.structs.replace(totals) for model, totals in self._gone.items()}
        for worker in self._last.values():
            totals = sums.setdefault(worker.model, Totals())
            _add_counts(totals, worker)
            if worker.worker_id in alive:
                totals.num_running += worker.num_running
                totals.num_waiting += worker.num_waiting
                totals.kv_cache_usage = max(totals.kv_cache_usage, worker.kv_cache_usage)
        self.by_model = sums


def _add_counts(totals: Totals, worker: WorkerStatus) -> None:
    speculation = worker.speculation
    totals.num_drafts += speculation.num_drafts
    totals.num_draft_tokens += speculation.num_draft_tokens
    totals.num_accepted_tokens += speculation.num_accepted_tokens
    totals.num_preemptions += worker.num_preemptions
    ours, theirs = totals.accepted_per_position, speculation.accepted_per_position
    length = max(len(ours), len(theirs))
    totals.accepted_per_position = tuple(
        (ours[i] if i < len(ours) else 0) + (theirs[i] if i < len(theirs) else 0)
        for i in range(length)
    )
