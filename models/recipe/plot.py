"""The loss curves of a finished run, as a small picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# Stages by the start of their names; steering is short and leaves the loss where it is.
COLOURS = {"teacher": "0.7", "target": "tab:blue", "draft": "tab:orange"}


def plot_curves(stages: dict[str, dict[str, Any]], path: Path) -> None:
    """Held-out loss (left) and the draft's agreement (right), from stage records."""
    import matplotlib as mpl  # noqa: PLC0415  # only this picture needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  # after the backend is chosen

    figure, (losses, agreement) = plt.subplots(1, 2, figsize=(9, 3.4), dpi=90)
    for name, colour in COLOURS.items():
        for stage in (
            stage for stage in stages if stage.startswith(name) and "curve" in stages[stage]
        ):
            curve = stages[stage]["curve"]
            steps = [point["step"] / curve[-1]["step"] for point in curve]
            axes = agreement if "draft" in name else losses
            axes.plot(
                steps, [point["measured"] for point in curve], color=colour, marker=".", label=stage
            )
    losses.axhline(
        stages["ensemble"]["ensemble_held_out"], color="0.3", linestyle=":", label="ensemble"
    )
    losses.set(xlabel="share of the run", ylabel="held-out loss (nats a token)")
    agreement.set(xlabel="share of the run", ylabel="agreement, shared noise, T = 0.7")
    for axes in (losses, agreement):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
