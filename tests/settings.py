"""Settings of models that tests load. `dataclasses.replace` makes others of them."""

import dataclasses

from shared.config.model import CPU, Dtype
from shared.engine.settings import ModelSettings

GPU_SETTINGS = ModelSettings(
    device="cuda",
    dtype=Dtype.FLOAT32,
    block_size=16,
    cache_tokens=1_024,
    max_model_len=0,
    max_rows=64,
    max_sequences=4,
    memory_share=0.5,
    is_batch_invariant=False,
    threads=1,
)
CPU_SETTINGS = dataclasses.replace(
    GPU_SETTINGS, device=CPU, dtype=Dtype.AUTO, cache_tokens=256, memory_share=0.9
)
