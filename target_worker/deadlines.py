"""When jobs expire. Asked before every round, so it costs nothing while none is due."""


class Deadlines:
    """The deadlines of the jobs that have any. One owner, the engine."""

    def __init__(self) -> None:
        self._by_job: dict[str, int] = {}
        self._next_ms: int | None = None  # none is due before; some job's, or one's that has ended

    def add(self, job_id: str, deadline_ms: int | None) -> None:
        """A job must end by then, in Unix milliseconds; None: whenever."""
        if deadline_ms is not None:
            self._by_job[job_id] = deadline_ms
            self._next_ms = min(deadline_ms, self._next_ms or deadline_ms)

    def discard(self, job_id: str) -> None:
        """A job is over; unknown ones are."""
        self._by_job.pop(job_id, None)

    def due(self, now_ms: int) -> list[str]:
        """The jobs whose time has come."""
        if self._next_ms is None or now_ms < self._next_ms:
            return []
        due = [job_id for job_id, deadline_ms in self._by_job.items() if deadline_ms <= now_ms]
        self._next_ms = min(
            (deadline_ms for deadline_ms in self._by_job.values() if deadline_ms > now_ms),
            default=None,
        )
        return due
