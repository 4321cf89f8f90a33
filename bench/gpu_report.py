"""Tables from what the GPU benches wrote, in bench/results/gpu.md: `python -m bench.gpu_report`."""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.cpu import RESULTS

Line = dict[str, Any]

_BESIDE = "Both in one call, on one host."


def steps_table(steps: dict[str, Any]) -> str:
    """Rounds of the engine alone."""
    titles = (
        *("sequences x rows, context", "round (low-high)", "floor", "attention alone"),
        *("its GB/s", "with sampler and host, T = 0.7", "begun behind another"),
    )
    head = [_row(titles), _row(["---"] * len(titles))]
    return "\n".join(head + [_row(_step_cells(line)) for line in steps["rounds"]])


def _step_cells(line: Line) -> list[str]:
    spread = f"({line['step_low_ms']:.2f}-{line['step_high_ms']:.2f})"
    return [
        f"{line['sequences']} x {line['rows']}, {line['context']:,}",
        f"**{line['step_ms']:.2f}** {spread}",
        f"{line['floor_ms']:.2f}",
        f"{line['attention_ms']:.2f}",
        f"{line['attention_gb_s']:,.0f}",
        f"{line['round_sampled_ms']:.2f}",
        f"{line['following_ms']:.2f}" if line.get("following_ms") else "",
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def path_table(lines: Sequence[Line]) -> str:
    """Tokens a second through the whole path; medians and ranges over turns."""
    speeds: dict[tuple[str, float], dict[int, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        speeds[line["kind"], line["temperature"]][line["streams"]].append(line)
    widths = sorted({line["streams"] for line in lines})
    titles = ["tokens/s, time to first token", *(f"{width} streams" for width in widths)]
    rows = [_row(titles), _row(["---"] * len(titles))]
    for (kind, temperature), found in speeds.items():
        cells = [_path_cell(found[width]) for width in widths]
        rows.append(_row([f"{kind}, T = {temperature}", *cells]))
    return "\n".join(rows)


def _path_cell(loads: Sequence[Line]) -> str:
    if not loads:
        return "not measured"
    tokens = sorted(one["tokens_per_s"] for one in loads)
    waits = [one["ttft_ms"] for one in loads if "ttft_ms" in one]
    spread = f" ({tokens[0]:,.0f}-{tokens[-1]:,.0f})" if len(tokens) > 1 else ""
    wait = f", {statistics.median(waits):.0f} ms" if waits else ""
    return f"**{statistics.median(tokens):,.0f}**{spread}{wait}"


def acceptance(lines: Sequence[Line]) -> str:
    """Over all loads that speculated."""
    drafted = sum(line.get("num_draft_tokens", 0) for line in lines)
    accepted = sum(line.get("num_accepted_tokens", 0) for line in lines)
    rounds = sum(line.get("num_rounds", 0) for line in lines)
    return (
        f"Acceptance: {accepted:,} of {drafted:,} draft tokens ({accepted / max(drafted, 1):.3f}), "
        f"mean acceptance length {1 + accepted / max(rounds, 1):.2f} in {rounds:,} rounds."
    )


def compared_section(found: dict[str, Any]) -> str:
    """The path with the code of several commits."""
    return f"""
## Speculation before and after prompts were computed in graphs, by turns in one call

{path_table(found["lines"])}

Before: commit 0e5e7d1, at the call's beginning and at its end. After: commit 0c426c2 (prompts in
graphs, block copies and guesses within a drafter's graph, the engine asks whether a round is over).
Not polling: without the last of these. Forty rows: `step_cost` 40 instead of 100. GPUs:
{"; ".join(found["gpus"])}; a machine on which everything with a host
is slower than on that of the table above.
"""


def one_card_section(found: dict[str, Any]) -> str:
    """Both workers on one GPU."""
    return f"""
## Target and draft on one card

{path_table(found["lines"])}

Time-sliced by the driver, one load each, `auto` deciding: it speculates at 1 and 8 streams, not at
32 and 64. Commit 30d819d, before kernels were set up early. Texts are equal in
{found["same_texts"]} cases. Command: as above with one GPU, `--turns 1`.
"""


def peers_section(found: dict[str, Any]) -> str:
    """The path beside a peer."""
    return f"""
## Beside transformers {found["transformers"]}, in one run

{path_table(found["lines"])}

transformers is its `generate` in a process of its own, without a server: batches that begin and
end together. {found["note"]} Command: `python -m bench.gpu_path --target DIR --draft DIR --kinds
plain speculation transformers --turns 3 --out gpu_path_peers.json`.
"""


def cache_section(found: dict[str, Any]) -> str:
    """What a cache of 8 bits changes, beside what bf16 changes."""
    titles = ("compared", "texts", "same at T = 0", "at T = 0.7", "log-probability: mean", "most")
    rows = [_row(titles), _row(["---"] * len(titles))]
    for kind, text in found["texts"].items():
        for pair in text["pairs"]:
            shares = [pair["agreement_t0"], pair["agreement_t0.7"]]
            sizes = [pair["mean_log_prob_difference"], pair["max_log_prob_difference"]]
            rows.append(
                _row(
                    [
                        f"{pair['one']} and {pair['other']}",
                        f"{text['num_texts']} {kind}, {text['num_positions']:,} tokens",
                        *(f"{100 * share:.2f} %" for share in shares),
                        *(f"{size:.4f}" for size in sizes),
                    ]
                )
            )
    nats = "; ".join(
        f"{kind}: " + ", ".join(f"{value:.4f} {name}" for name, value in text["nats"].items())
        for kind, text in found["texts"].items()
    )
    sizes = found["largest"]["float32"]
    machine, table = found["machine"], "\n".join(rows)
    return f"""
## A cache of 8 bits: {found["model"]}, teacher-forced

{table}

Share of positions at which both choose the same token, and how far their log-probabilities of the
text's own token are apart. Nats a token, {nats}. Largest key and value in
float32: {sizes["keys"]:.1f} and {sizes["values"]:.1f} of 448. GPU: {machine["gpu"]},
torch {machine["torch"]}, Triton {machine["triton"]}, CUDA {machine["cuda"]}. Command:
`{machine["command"]} --out gpu_cache.json`.
"""


def invariance_section(found: dict[str, Any], steps: dict[str, Any]) -> str:
    """What the same bits in any company cost."""
    titles = ("sequences x rows, context", "as fast as possible", "batch-invariant", "cost")
    rows = [_row(titles), _row(["---"] * len(titles))]
    for line, other in zip(steps["rounds"], found["rounds"], strict=True):
        name = f"{line['sequences']} x {line['rows']}, {line['context']:,}"
        fast_ms, invariant_ms = line["round_sampled_ms"], other["round_sampled_ms"]
        cost = f"{100 * (invariant_ms / fast_ms - 1):+.0f} %"
        rows.append(_row([name, f"{fast_ms:.2f}", f"{invariant_ms:.2f}", cost]))
    table = "\n".join(rows)
    return f"""
## Batch-invariant rounds, with sampler and host, T = 0.7, milliseconds

{table}

{_BESIDE} Command:
`{found["machine"]["command"]} --out gpu_step_invariant.json`.
"""


def fp8_section(found: dict[str, Any], steps: dict[str, Any]) -> str:
    """What a cache of 8 bits gains in time."""
    titles = ("sequences x rows, context", "cache of bf16", "of fp8", "attention alone", "with fp8")
    rows = [_row(titles), _row(["---"] * len(titles))]
    for line, other in zip(steps["rounds"], found["rounds"], strict=True):
        name = f"{line['sequences']} x {line['rows']}, {line['context']:,}"
        times = [one[key] for key in ("step_ms", "attention_ms") for one in (line, other)]
        rows.append(_row([name, *(f"{time:.2f}" for time in times)]))
    table = "\n".join(rows)
    return f"""
## Rounds with a cache of 8 bits, milliseconds

{table}

{_BESIDE} Command:
`{found["machine"]["command"]} --out gpu_step_fp8.json`.
"""


def plan_section(found: dict[str, Any]) -> str:
    """Whether the memory plan was right."""
    gib = {name: value / 2**30 for name, value in found.items() if name.endswith("_bytes")}
    return f"""
## The memory plan

The bundled target with {100 * found["memory_share"]:.0f} % of the GPU's memory, after rounds of
every kind: {gib["planned_bytes"]:.1f} GiB planned, {gib["used_bytes"]:.1f} GiB used
({found["used_of_planned"]:.3f}). Command: `python -m bench.gpu_plan --model DIR --out
gpu_plan.json`.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read gpu_*.json of a folder, some of them only if they are there; write gpu.md there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    folder = parser.parse_args(argv).folder
    steps, path, draft = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("gpu_step", "gpu_path", "gpu_draft")
    )
    machine, lines = steps["machine"], path["lines"]
    draft_text = "; ".join(
        f"{line['sessions']} sessions: {line['step_ms']:.2f} ms a step" for line in draft
    )
    text = f"""## Rounds of the engine, Llama-3-8B shape, bf16, random weights, milliseconds

{steps_table(steps)}

Medians of 30 replays, and of 30 rounds with sampler and host by turns with them; rounds begun
before the one before is read: the mean of 50. Floor: weights and context read once at the copy
bandwidth measured in the same run, {machine["copy_gb_s"]:,.0f} GB/s. GPU: {machine["gpu"]},
torch {machine["torch"]}, Triton {machine["triton"]}, CUDA {machine["cuda"]}. Command:
`{machine["command"]} --out gpu_step.json`.

## The whole path: client, gateway, server, target and draft on a GPU each

{path_table(lines)}

{acceptance(lines)}
Texts with and without speculation are equal in {path["same_texts"]} cases (bf16: near-ties may
differ between batch shapes; `--batch-invariant` rules that out).

The bundled pair grown to the shapes of Llama-3-8B and Llama-3.2-1B (`bench.expand`): the same text
and acceptance, the cost of the large models. Contexts of up to some 230 tokens, 160 tokens an
answer. GPUs: {"; ".join(path["gpus"])}. Command:
`python -m bench.gpu_path --target DIR --draft DIR --turns 3 --out gpu_path.json`.

The drafter alone (`python -m bench.gpu_draft --model DIR`): {draft_text}.
"""
    for name, section in (
        ("gpu_path_compared", compared_section),
        ("gpu_path_one_card", one_card_section),
        ("gpu_path_peers", peers_section),
        ("gpu_step_invariant", partial(invariance_section, steps=steps)),
        ("gpu_cache", cache_section),
        ("gpu_step_fp8", partial(fp8_section, steps=steps)),
        ("gpu_plan", plan_section),
    ):
        file = folder / f"{name}.json"
        if file.exists():
            text += section(json.loads(file.read_text()))
    (folder / "gpu.md").write_text(text)


if __name__ == "__main__":
    main()
