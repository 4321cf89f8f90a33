"""The settings of a target worker."""

from typing import Annotated

from msgspec import Meta

from shared.config.model import CPU, CacheDtype, Dtype, ModelOptions
from shared.protocol.limits import LEASE_S, MAX_SPECULATIVE_TOKENS
from target_worker.goodput import Policy

HERE = "here"  # of a GPU to plan for: in this machine
_NUMBER = r"[0-9]{1,6}(\.[0-9]{1,3})?"

CPU_CACHE_TOKENS = 16_384  # some hundred MB with the largest model that is bearable there

ROUND_TOKENS = 256  # longer prefill chunks keep others waiting
GPU_ROUND_TOKENS = 2_048  # from some 200 rows on a GPU computes rather than reads


class Config(ModelOptions, frozen=True, kw_only=True):
    """Flags and environment variables of `python -m target_worker`."""

    model: Annotated[
        str, Meta(min_length=1, description="Hugging Face directory, or hub id org/name[@revision]")
    ]
    max_model_len: Annotated[
        int, Meta(ge=0, le=1 << 24, description="tokens of prompt and output; 0: the model's own")
    ] = 0
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096, description="sessions at once")] = 32
    max_batched_tokens: Annotated[
        int,
        Meta(ge=0, le=1 << 20, description="tokens of a round; 0: 256, on a GPU 2048"),
    ] = 0
    kv_cache_tokens: Annotated[
        int,
        Meta(ge=0, le=1 << 30, description="tokens cached; 0: 16384, on a GPU what fits"),
    ] = 0
    block_size: Annotated[int, Meta(ge=1, le=256, description="tokens in a cache block")] = 16
    speculation: Annotated[
        Policy, Meta(description="auto: where measured speed says that it pays")
    ] = Policy.AUTO
    num_speculative_tokens: Annotated[
        int, Meta(ge=0, le=MAX_SPECULATIVE_TOKENS, description="most guesses verified in a round")
    ] = 8
    dtype: Annotated[Dtype, Meta(description="on a GPU; auto: bfloat16")] = Dtype.AUTO
    kv_cache_dtype: Annotated[
        CacheDtype, Meta(description="on a GPU; fp8: half the memory, rounded")
    ] = CacheDtype.AUTO
    gpu_memory_utilization: Annotated[
        float, Meta(gt=0, le=1, description="share of the GPU's memory that may be used")
    ] = 0.9
    batch_invariant: Annotated[
        bool, Meta(description="on a GPU: the same tokens in any company, at a price")
    ] = False
    plan: Annotated[
        str,
        Meta(
            pattern=f"^({HERE}|{_NUMBER}(@{_NUMBER})?)?$",
            extra={"bare": HERE},
            description="print the memory plan, and end: GPU here, or of GiB, or of GiB@GB/s",
        ),
    ] = ""
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
        if 0 < self.max_batched_tokens <= self.max_num_seqs:
            raise ValueError(
                f"--max-batched-tokens is {self.max_batched_tokens}: "
                f"must be 0 or more than --max-num-seqs ({self.max_num_seqs})"
            )
        if 0 < self.kv_cache_tokens < self.block_size:
            raise ValueError(
                f"--kv-cache-tokens is {self.kv_cache_tokens}: "
                f"must be 0 or at least --block-size ({self.block_size})"
            )
        room = self.kv_cache_tokens // self.block_size * self.block_size
        if 0 < room < self.max_model_len:
            raise ValueError(
                f"--max-model-len is {self.max_model_len}: "
                f"must be at most what --kv-cache-tokens holds, {room} in whole blocks"
            )

    @property
    def round_tokens(self) -> int:
        """Tokens computed in one round at most."""
        usual = ROUND_TOKENS if self.device == CPU else GPU_ROUND_TOKENS
        return self.max_batched_tokens or max(usual, 2 * self.max_num_seqs)

    @property
    def cache_tokens(self) -> int:
        """Tokens of the cache; 0: as many as fit."""
        is_automatic = self.kv_cache_tokens == 0 and self.device == CPU
        return CPU_CACHE_TOKENS if is_automatic else self.kv_cache_tokens

    @property
    def stall_s(self) -> float:
        """A round that takes so long costs the heartbeat: before the process is ended for it."""
        return min(self.hang_s / 2, LEASE_S)
