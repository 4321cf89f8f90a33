"""The settings of a target worker."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from shared.config.common import CommonConfig
from shared.protocol.limits import LEASE_S, MAX_SPECULATIVE_TOKENS
from target_worker.goodput import Policy


class Config(CommonConfig, frozen=True, kw_only=True):
    """Flags and environment variables of `python -m target_worker`."""

    model: Annotated[Path, Meta(description="Hugging Face directory; its name is what is served")]
    max_model_len: Annotated[
        int, Meta(ge=0, le=1 << 24, description="tokens of prompt and output; 0: the model's own")
    ] = 0
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096, description="sessions at once")] = 32
    max_batched_tokens: Annotated[
        int, Meta(ge=2, le=1 << 20, description="tokens computed in one round")
    ] = 256
    kv_cache_tokens: Annotated[
        int, Meta(ge=16, le=1 << 30, description="tokens that the paged cache holds")
    ] = 16_384
    block_size: Annotated[int, Meta(ge=1, le=256, description="tokens in a cache block")] = 16
    speculation: Annotated[
        Policy, Meta(description="auto: where measured speed says that it pays")
    ] = Policy.AUTO
    num_speculative_tokens: Annotated[
        int, Meta(ge=0, le=MAX_SPECULATIVE_TOKENS, description="most guesses verified in a round")
    ] = 8
    threads: Annotated[int, Meta(ge=1, le=256, description="of one model pass on the CPU")] = 1
    drain_s: Annotated[
        float, Meta(ge=0.0, le=86_400.0, description="after SIGTERM, to finish what is running")
    ] = 20.0
    hang_s: Annotated[
        float, Meta(ge=1.0, le=3_600.0, description="a round that takes so long ends the process")
    ] = 10.0

    def __post_init__(self) -> None:
        """Check what must go together.

        Raises:
            ValueError: it does not.
        """
        if self.max_batched_tokens <= self.max_num_seqs:
            raise ValueError(
                f"--max-batched-tokens is {self.max_batched_tokens}: "
                f"must be more than --max-num-seqs ({self.max_num_seqs})"
            )
        if self.kv_cache_tokens < self.block_size:
            raise ValueError(
                f"--kv-cache-tokens is {self.kv_cache_tokens}: "
                f"must be at least --block-size ({self.block_size})"
            )

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""
        return self.kv_cache_tokens // self.block_size

    @property
    def stall_s(self) -> float:
        """A round that takes so long costs the heartbeat: before the process is ended for it."""
        return min(self.hang_s / 2, LEASE_S)
