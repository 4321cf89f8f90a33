"""The settings of a draft worker."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from draft_worker.limits import DraftLimits
from shared.config.model import ModelOptions
from shared.protocol.limits import MAX_PATH_TOKENS


class DrafterKind(StrEnum):
    """What makes the guesses."""

    MODEL = "model"
    NGRAM = "ngram"


class Config(ModelOptions, frozen=True, kw_only=True):
    """Flags and environment variables; the reasons for the defaults are in draft_worker.limits."""

    model: (
        Annotated[
            str,
            Meta(min_length=1, description="Hugging Face directory, or hub id org/name[@revision]"),
        ]
        | None
    ) = None
    drafter: Annotated[
        DrafterKind, Meta(description="a model, or repeats of the session's own text")
    ] = DrafterKind.MODEL
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096, description="sessions guessed for")] = 64
    max_ahead: Annotated[
        int, Meta(ge=1, le=MAX_PATH_TOKENS, description="guesses beyond the confirmed tokens")
    ] = 8
    num_branches: Annotated[
        int, Meta(ge=0, le=64, description="live branches of a session; 0: none")
    ] = 6
    num_alternates: Annotated[
        int, Meta(ge=1, le=3, description="runners-up per position that may become branches")
    ] = 2
    max_num_rows: Annotated[
        int, Meta(ge=1, le=1024, description="sequences that grow in one step")
    ] = 32
    max_num_batched_tokens: Annotated[
        int, Meta(ge=32, le=65536, description="tokens computed in one step")
    ] = 256
    step_cost: Annotated[
        float, Meta(ge=0.0, description="cost of a step before its rows, in rows; GPU: about 40")
    ] = 6.0
    min_odds: Annotated[
        float, Meta(ge=0.0, le=1.0, description="no guess that is less likely to be of use")
    ] = 0.04
    chunk: Annotated[
        int, Meta(ge=1, le=MAX_PATH_TOKENS, description="guesses sent at a time, after the first")
    ] = 2
    block_size: Annotated[int, Meta(ge=1, le=256, description="tokens in a cache block")] = 16
    num_blocks: Annotated[int, Meta(ge=2, le=1 << 20, description="blocks of the cache")] = 2048
    session_timeout_s: Annotated[
        float, Meta(gt=0.0, description="a session without news for so long is dropped")
    ] = 30.0
    hang_timeout_s: Annotated[
        float, Meta(gt=0.0, description="a step that takes so long ends the process")
    ] = 30.0

    @property
    def limits(self) -> DraftLimits:
        """The bounds as the drafters take them."""
        return DraftLimits(
            max_num_seqs=self.max_num_seqs,
            max_ahead=self.max_ahead,
            num_branches=self.num_branches,
            num_alternates=self.num_alternates,
            max_num_rows=self.max_num_rows,
            max_num_batched_tokens=self.max_num_batched_tokens,
            step_cost=self.step_cost,
            min_odds=self.min_odds,
            chunk=self.chunk,
        )
