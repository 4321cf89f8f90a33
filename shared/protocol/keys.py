"""The names of all Redis keys. `{ID}` is a hash tag: a session's keys live in one cluster slot."""

from enum import StrEnum

import msgspec


class Priority(StrEnum):
    """Which jobs stream a job waits in. Workers empty `high` before `normal` before `low`."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


TARGET_GROUP = "target"
DRAFT_GROUP = "draft"


class Keys(msgspec.Struct, frozen=True):
    """Builds key names under one prefix, so that several systems can share a server."""

    prefix: str = "outrider:"

    def jobs(self, priority: Priority = Priority.NORMAL) -> str:
        """Stream of submissions, consumer group `target`."""
        return f"{self.prefix}jobs" + ("" if priority is Priority.NORMAL else f":{priority}")

    @property
    def all_jobs(self) -> tuple[str, ...]:
        """The jobs streams, most urgent first."""
        return tuple(self.jobs(priority) for priority in Priority)

    def job(self, job_id: str) -> str:
        """Hash: state, epoch, owner, lengths, seed, cancel flag, usage."""
        return f"{self.prefix}{{{job_id}}}:job"

    def log(self, job_id: str) -> str:
        """Stream: the tokens of a job, then one terminal record."""
        return f"{self.prefix}{{{job_id}}}:out"

    @property
    def drafts(self) -> str:
        """Stream of draft requests, consumer group `draft`."""
        return f"{self.prefix}drafts"

    def inbox(self, worker_id: str) -> str:
        """Stream read by one process alone. `worker_id` is `target:…`, `draft:…` or `gateway:…`."""
        return f"{self.prefix}{worker_id}"

    def heartbeat(self, worker_id: str) -> str:
        """String with a TTL, present only while the worker makes progress."""
        return f"{self.prefix}worker:{worker_id}"

    @property
    def workers(self) -> str:
        """Set of worker ids that may have a heartbeat; a reader drops those that have none."""
        return f"{self.prefix}workers"

    @property
    def dead(self) -> str:
        """Stream of jobs that failed too often, with the reason."""
        return f"{self.prefix}jobs:dead"
