"""Whether the memory plan is right: `python -m bench.gpu_plan --model DIR`.

Loads a model as a target worker does, runs rounds of every kind, and compares what the GPU has lost
to what the plan said. Nothing else may run on that GPU.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shared.engine.config import ModelConfig
from shared.engine.gpu.loading import load_on_gpu, memory_plan
from shared.engine.sampling import VerifyRequest
from shared.engine.settings import ModelSettings
from shared.engine.spans import Span
from shared.protocol.sampling import SamplingParams
from target_worker.config import Config
from target_worker.equipment import model_settings

PARAMS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=1, temperature=0.7, top_p=0.9),
    SamplingParams(seed=1, temperature=0.7, presence_penalty=0.5),
)


def use(directory: Path, settings: ModelSettings) -> dict[str, Any]:
    """What a model takes, planned and used, in bytes."""
    device = torch.device("cuda")
    free_before, total = torch.cuda.mem_get_info(device)
    plan = memory_plan(ModelConfig.from_directory(directory), settings, total)
    runner, sampler, num_blocks = load_on_gpu(directory, settings, lambda *_: None)
    size = settings.block_size
    longest = min(settings.max_rows, plan.max_model_len)
    prompt = Span([7] * longest, 0, list(range(-(-longest // size))), 1)
    decode = [Span([7], 5, [index], 1) for index in range(settings.max_sequences)]
    for spans in ([prompt], decode):
        logits = runner.run(spans)
        for params in PARAMS:
            sampler.verify(logits, [VerifyRequest(params, [7] * 6, 5, ()) for _ in spans])
    torch.cuda.synchronize()
    free_after, _ = torch.cuda.mem_get_info(device)
    planned = plan.weight_bytes + plan.activation_bytes + plan.graph_bytes
    planned += plan.partial_bytes(num_blocks) + plan.cache_bytes
    context = total - free_before  # CUDA's own, there since this process asked for memory
    return {
        "memory_share": settings.memory_share,
        "planned_bytes": plan.usable_bytes,
        "planned_without_libraries_bytes": planned,
        "used_bytes": total - free_after,
        "of_torch_bytes": torch.cuda.memory_reserved(device),
        "context_bytes": context,
        "num_blocks": num_blocks,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write one line; a share of the memory a process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--max-model-len", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    config = Config(
        model=options.model,
        device="cuda",
        redis_url="redis://127.0.0.1",
        block_size=64,
        max_num_seqs=64,
        max_model_len=options.max_model_len,
        gpu_memory_utilization=options.share,
    )
    line = use(options.model, model_settings(config))
    line["used_of_planned"] = line["used_bytes"] / line["planned_bytes"]
    print("  ".join(f"{name} {value:,}" for name, value in line.items()))
    options.out.write_text(json.dumps(line, indent=1))


if __name__ == "__main__":
    main()
