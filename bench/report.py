"""From samples to what people read: a table, a plot, and the samples themselves."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

Samples = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
PLAIN, SPECULATION = "outrider plain", "outrider speculation"
GENERATE = "transformers generate"


def write_report(results: Mapping[str, Any], folder: Path, *, name: str = "cpu") -> None:
    """Write NAME.json, NAME.md and NAME.png into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(table(results, name))
    plot(results["samples"], folder / f"{name}.png")


def table(results: Mapping[str, Any], name: str) -> str:
    """The measured table, the ratios that were to be reached, and how it was measured."""
    samples: Samples = results["samples"]
    widths = sorted(next(iter(samples.values())))
    heads = [f"{width} stream{'s' * (width > 1)}" for width in widths]
    lines = ["| tokens/s, time to first token | " + " | ".join(heads) + " |"]
    lines.append("|---|" + "---|" * len(widths))
    for setting, by_width in samples.items():
        cells = [f"{_speed(by_width[w])}, {_ttft(by_width[w])}" for w in widths]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    lines += ["", *ratios(samples, widths), "", *_acceptance(results), "", *_path(results)]
    lines += ["", f"![tokens/s]({name}.png)", "", *_method(results), ""]
    return "\n".join(lines)


def ratios(samples: Samples, widths: Sequence[int]) -> list[str]:
    """Medians of ratios of neighbours in time: noise that hits both cancels."""
    lines = [
        "| ratio of neighbours in time, median (low-high) | " + " | ".join(map(str, widths)) + " |"
    ]
    lines.append("|---|" + "---|" * len(widths))
    for above, below in ((PLAIN, GENERATE), (SPECULATION, PLAIN), (SPECULATION, GENERATE)):
        cells = []
        for width in widths:
            quotients = _quotients(samples[above][width], samples[below][width])
            middle = statistics.median(quotients)
            cells.append(f"{middle:.2f} ({min(quotients):.2f}-{max(quotients):.2f})")
        lines.append(f"| {above} / {below} | " + " | ".join(cells) + " |")
    return lines


def _quotients(
    above: Sequence[Mapping[str, Any]], below: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Turn by turn; where one was measured more often, its median of each round."""
    num = min(len(above), len(below))
    speeds = []
    for side in (above, below):
        size = len(side) // num
        chunks = [side[start * size : (start + 1) * size] for start in range(num)]
        speeds.append([statistics.median(s["tokens_per_s"] for s in chunk) for chunk in chunks])
    return [a / b for a, b in zip(*speeds, strict=True)]


def plot(samples: Samples, path: Path) -> None:
    """Grouped bars of tokens/s with the spread of the rounds."""
    widths = sorted(next(iter(samples.values())))
    figure, axes = plt.subplots(
        1, len(widths), figsize=(3 * len(widths), 3.4), layout="constrained"
    )
    for axis, width in zip(axes, widths, strict=True):
        for place, (setting, by_width) in enumerate(samples.items()):
            speeds = [sample["tokens_per_s"] for sample in by_width[width]]
            middle = statistics.median(speeds)
            spread = [[middle - min(speeds)], [max(speeds) - middle]]
            axis.bar(place, middle, yerr=spread, capsize=3, label=setting)
        axis.set_title(f"{width} stream{'s' * (width > 1)}")
        axis.set_xticks([])
    axes[0].set_ylabel("tokens/s, all streams")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _speed(rounds: Sequence[Mapping[str, Any]]) -> str:
    speeds = [sample["tokens_per_s"] for sample in rounds]
    return f"**{statistics.median(speeds):,.0f}** ({min(speeds):,.0f}-{max(speeds):,.0f})"


def _ttft(rounds: Sequence[Mapping[str, Any]]) -> str:
    times_ms = [ttft_s * 1_000 for sample in rounds for ttft_s in sample["ttft_s"]]
    return f"{statistics.median(times_ms):.0f} ms"


def _acceptance(results: Mapping[str, Any]) -> list[str]:
    """What was accepted, beside what the offline agreement of the pair says should have been."""
    survival = results["offline"]["survival"]
    drafted, accepted, expected = [0] * len(survival), 0, 0.0
    rounds = 0
    for samples in results["samples"][SPECULATION].values():
        for stats in (stats for sample in samples for stats in sample["speculation"]):
            accepted += stats["num_accepted_draft_tokens"]
            rounds += stats["num_spec_steps"]
            for position, count in enumerate(stats["drafted_per_position"]):
                drafted[position] += count
                expected += count * survival[position]
    if not rounds or not expected:
        return ["No round held a draft."]
    measured, drafts = accepted / expected, sum(drafted)
    sentences = (
        f"Acceptance: {accepted} of {drafts} draft tokens ({accepted / drafts:.3f}), mean",
        f"acceptance length {1 + accepted / rounds:.2f}. Offline the pair agrees on",
        f"{results['offline']['rate']:.3f} of single tokens, which for drafts of these lengths",
        f"predicts {expected:.0f} accepted: measured / predicted = **{measured:.3f}**.",
    )
    return [" ".join(sentences)]


def _path(results: Mapping[str, Any]) -> list[str]:
    lines = ["| what the path costs | median | 10th-90th percentile |", "|---|---|---|"]
    for name, times_us in results["path"].items():
        deciles = statistics.quantiles(times_us, n=10)
        middle = statistics.median(times_us)
        lines.append(f"| {name} | {middle:,.0f} us | {deciles[0]:,.0f}-{deciles[-1]:,.0f} us |")
    return lines


def _method(results: Mapping[str, Any]) -> list[str]:
    machine, settings = results["machine"], results["settings"]
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    sentences = (
        f"Medians (lowest-highest) of {settings['rounds']} rounds, in each of which our settings",
        f"take {settings['turns']} turns, seconds apart, and transformers one; temperature",
        f"{settings['temperature']}, {settings['max_tokens']} tokens an answer,",
        "float32. Ours: client, gateway, server and workers all on this machine, one torch",
        "thread a worker. transformers: in a process of its own, no server, one or two threads,",
        "whichever was faster; assisted generation takes one sequence at a time, so its streams",
        "follow one another.",
    )
    command = f"Machine: {described}. Command: `{settings['command']}`."
    return [" ".join(sentences), "", command]
