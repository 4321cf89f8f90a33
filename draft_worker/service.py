"""Whose guesses go where: sessions, their targets, and who is gone. No I/O and no thread here.

Soft state throughout: a session may be dropped at any moment, and its target asks again or decodes
plainly.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from draft_worker.drafter import Drafter
from shared.common.clock import Clock
from shared.protocol.messages import (
    DraftAccepted,
    DraftClosed,
    DraftRequest,
    Message,
    Verdict,
)

Mail = dict[str, list[Message]]  # by the worker id of the target


@dataclass(slots=True)
class _Client:
    """The owner of a session."""

    target_id: str
    epoch: int
    heard_s: float  # when the last message about the session came


class DraftService:
    """Feeds a drafter with messages and addresses what it says. One caller at a time.

    Args:
        drafter: makes the guesses.
        draft_id: this worker's id: where targets send verdicts.
        clock: for the sessions that nobody asks about any more.
        session_timeout_s: a session without a message for so long is dropped; its target has died.
    """

    def __init__(
        self, drafter: Drafter, *, draft_id: str, clock: Clock, session_timeout_s: float
    ) -> None:
        self._drafter = drafter
        self._draft_id = draft_id
        self._clock = clock
        self._session_timeout_s = session_timeout_s
        self._clients: dict[str, _Client] = {}

    @property
    def num_sessions(self) -> int:
        """Sessions guessed for."""
        return len(self._clients)

    @property
    def num_free(self) -> int:
        """How many new requests would probably be accepted."""
        return self._drafter.num_free

    @property
    def has_work(self) -> bool:
        """Whether `step` could achieve anything before the next message."""
        return self._drafter.has_work

    @property
    def listen_s(self) -> float:
        """Seconds to wait for messages before the next `step`."""
        return self._drafter.listen_s

    @property
    def usage(self) -> float:
        """How full the drafter's memory is, 0 to 1."""
        return self._drafter.usage

    @property
    def counts(self) -> Mapping[str, int]:
        """What the drafter has done so far."""
        return self._drafter.counts

    def handle(self, messages: Iterable[Message]) -> Mail:
        """Take in messages, and answer those that need it at once. Others' kinds are ignored."""
        mail: Mail = defaultdict(list)
        for message in messages:
            match message:
                case Verdict():
                    self._confirm(message, mail)
                case DraftRequest():
                    self._open(message, mail)
                case DraftClosed():
                    self._forget(message.session_id)
                case _:
                    pass
        return mail

    def step(self) -> Mail:
        """One step of the drafter, addressed."""
        mail: Mail = defaultdict(list)
        for proposal in self._drafter.step():
            client = self._clients.get(proposal.session_id)
            if client is None:
                continue
            mail[client.target_id].append(proposal)
            if isinstance(proposal, DraftClosed):
                del self._clients[proposal.session_id]
        return mail

    def drop_silent(self) -> Mail:
        """Drop the sessions whose targets have not been heard of; tell them, should they live."""
        mail: Mail = defaultdict(list)
        oldest_s = self._clock.monotonic_s() - self._session_timeout_s
        silent = [name for name, client in self._clients.items() if client.heard_s < oldest_s]
        for session_id in silent:
            self._drop(session_id, mail)
        return mail

    def close_all(self) -> Mail:
        """Tell every target that this worker goes."""
        mail: Mail = defaultdict(list)
        for session_id in list(self._clients):
            self._drop(session_id, mail)
        return mail

    def _open(self, request: DraftRequest, mail: Mail) -> None:
        known = self._clients.get(request.session_id)
        if known is not None and request.epoch < known.epoch:
            return  # from an owner that has been replaced
        if not self._drafter.open(request):
            return
        self._clients[request.session_id] = _Client(
            request.target_id, request.epoch, self._clock.monotonic_s()
        )
        mail[request.target_id].append(DraftAccepted(request.session_id, self._draft_id))

    def _confirm(self, verdict: Verdict, mail: Mail) -> None:
        client = self._clients.get(verdict.session_id)
        if client is None:
            return  # closed; its target has been told
        client.heard_s = self._clock.monotonic_s()
        if not self._drafter.confirm(verdict):
            self._drop(verdict.session_id, mail)

    def _drop(self, session_id: str, mail: Mail) -> None:
        client = self._clients[session_id]
        self._forget(session_id)
        mail[client.target_id].append(DraftClosed(session_id))

    def _forget(self, session_id: str) -> None:
        self._clients.pop(session_id, None)
        self._drafter.close(session_id)
