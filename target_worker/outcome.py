"""What the engine hands to the I/O side: records to commit, mail to send, facts to log.

Plain data; made by the engine thread, then owned by the event loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.bus.jobs import Claim
from shared.protocol.messages import DraftRequest, Message
from shared.protocol.records import Record
from target_worker.job import Ended


@dataclass(slots=True)
class Outcome:
    """Everything one round, or several, has to say."""

    records: dict[tuple[str, int], tuple[Claim, list[Record]]] = field(default_factory=dict)
    mail: dict[str, list[Message]] = field(default_factory=dict)  # by worker id
    requests: list[DraftRequest] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.records or self.mail or self.requests or self.ended)

    def append(self, claim: Claim, records: Sequence[Record]) -> None:
        """Records for a job's log, after those already here."""
        key = (claim.job_id, claim.epoch)
        if key not in self.records:
            self.records[key] = (claim, [])
        self.records[key][1].extend(records)

    def send(self, worker_id: str, message: Message) -> None:
        """A message for a draft worker."""
        self.mail.setdefault(worker_id, []).append(message)

    def merge(self, later: "Outcome") -> None:
        """Take in what came after."""
        for claim, records in later.records.values():
            self.append(claim, records)
        for worker_id, messages in later.mail.items():
            self.mail.setdefault(worker_id, []).extend(messages)
        self.requests += later.requests
        self.ended += later.ended
