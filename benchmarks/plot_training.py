"""Draw the loss curves of a training run: python benchmarks/plot_training.py MODEL docs/figures/training_bundled.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def main(run: Path, out: Path) -> None:
    """Read log.jsonl, draw training and validation loss, print the validation table."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    train = [(e["step"], e["loss_mean"]) for e in entries if e["kind"] == "train"]
    val = [(e["step"], e["loss"], e["condition_gain"]) for e in entries if e["kind"] == "val"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), color="0.6", label="training (mean of the last steps)")
    axes.plot([v[0] for v in val], [v[1] for v in val], "o-", color="tab:orange", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None})
    print("| step | validation loss | rise with a wrong label |\n|---|---|---|")
    for step, loss, gain in val:
        print(f"| {step} | {loss:.4f} | {gain:.5f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
