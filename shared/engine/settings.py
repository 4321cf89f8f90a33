"""What a worker asks of its model, whatever the worker."""

from dataclasses import dataclass

from shared.config.model import CacheDtype, Dtype

MAX_GPU_SEQUENCES = 1_024  # of a pass: one program of `kernels.gpu.attention_work` lists them


@dataclass(frozen=True, slots=True)
class AbsentGpu:
    """A card to plan for that is not in this machine."""

    memory_bytes: int
    bandwidth: float | None  # bytes a second, read and written by a copy; None: nobody knows


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Where and how large."""

    device: str  # "cpu", "cuda" or "cuda:1"
    dtype: Dtype
    block_size: int
    cache_tokens: int  # 0: as many as fit a GPU
    max_model_len: int  # 0: the model's own
    max_rows: int  # tokens of a pass
    max_sequences: int  # of a pass
    memory_share: float  # of a GPU's memory
    is_batch_invariant: bool
    threads: int  # of a pass on the CPU
    cache_dtype: CacheDtype = CacheDtype.AUTO
    num_ranks: int = 0  # tokens of a drafter's ranking; 0: nothing is ranked
    cache_flag: str = "--kv-cache-tokens"  # how an operator asks for a cache of another size

    @property
    def is_drafter(self) -> bool:
        """Drafters rank, targets verify."""
        return self.num_ranks > 0

    @property
    def memory_flag(self) -> str:
        """What an operator lowers where a GPU has too little memory."""
        return self.cache_flag if self.cache_tokens else "--gpu-memory-utilization"
