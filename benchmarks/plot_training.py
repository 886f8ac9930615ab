"""The course of a training run: python benchmarks/plot_training.py MODEL docs/figures/training_bundled.png

Draws losses and how much of the condition the network hears; prints the validations as a Markdown table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmrisynth.train.runlog import LOG_NAME, read_log


def main(run: Path, out: Path) -> None:
    """Read the log, draw, print."""
    records = read_log(run / LOG_NAME)
    train = [(r["step"], r["loss_mean"]) for r in records if r["kind"] == "train"]
    validations = [r for r in records if r["kind"] == "val"]
    steps = [r["step"] for r in validations]
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*train, strict=True), color="0.7", label="training")
    left.plot(steps, [r["loss"] for r in validations], "o-", markersize=3, color="tab:orange", label="validation")
    left.set_ylabel("loss")
    left.legend(frameon=False)
    right.plot(steps, [r["condition_gain_share"] for r in validations], "o-", markersize=3, color="tab:blue")
    right.set_ylabel("gain from the right label,\nshare of what is attainable")
    right.set_ylim(0, 1)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None})
    hours = {r["step"]: r["cpu_hours"] for r in records if r["kind"] == "train"}
    print("| step | CPU minutes | validation loss | gain from the right label | share of what is attainable |")
    print("|---|---|---|---|---|")
    for r in validations:
        minutes = f"{60 * hours[r['step']]:.0f}" if r["step"] in hours else "0"
        print(
            f"| {r['step']} | {minutes} | {r['loss']:.4f} | {r['condition_gain']:.4f} | {r['condition_gain_share']:.0%} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
