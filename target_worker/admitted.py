"""A job on its way from the event loop to the engine: checked, tokenised, claimed."""

from dataclasses import dataclass
from typing import Protocol

from shared.bus.jobs import Claim
from shared.protocol.records import FinishReason
from shared.protocol.sampling import SamplingParams


class Text(Protocol):
    """Turns output tokens into text that may be shown (shared.engine.text.TextStream)."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete."""
        ...

    @property
    def can_stop(self) -> bool:
        """Whether there are stop strings at all."""
        ...

    def push(self, token_id: int) -> str:
        """Text that this token lets out."""
        ...

    def flush(self) -> str:
        """The rest, at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of a job. Handed over whole: the engine owns `text` from then on."""

    params: SamplingParams
    output_ids: tuple[int, ...]  # in the log already: a takeover
    text: Text  # fed with output_ids
    reason: FinishReason | None  # why it ended already


@dataclass(frozen=True, slots=True)
class AdmittedJob:
    """Everything the engine needs of a job."""

    claim: Claim
    prompt_ids: tuple[int, ...]
    max_len: int  # tokens at which a choice ends, prompt included
    choices: tuple[Choice, ...]
    max_drafts: int  # guesses a round may verify for one choice; 0: none wanted
    tenant: str
    deadline_ms: int | None
