"""Draw the loss curves of a training run: python benchmarks/plot_training.py MODEL docs/figures/training_bundled.png"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(entries: Sequence[dict[str, Any]], out: Path, *, log_scale: bool = False, validation: bool = True) -> None:
    """Training and validation loss of a log's entries as a picture."""
    train = [(e["step"], e["loss_mean"]) for e in entries if e["kind"] == "train"]
    val = [(e["step"], e["loss"]) for e in entries if e["kind"] == "val"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        *zip(*train, strict=True), color="0.6" if validation else "tab:blue", label="training (mean of the last steps)"
    )
    if validation:
        axes.plot(*zip(*val, strict=True), "o-", color="tab:orange", label="validation")
    if log_scale:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None})


def main(run: Path, out: Path) -> None:
    """Read log.jsonl, draw training and validation loss, print the validation table."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    draw(entries, out)
    print("| step | validation loss | rise with a wrong label |\n|---|---|---|")
    for entry in entries:
        if entry["kind"] == "val":
            print(f"| {entry['step']} | {entry['loss']:.4f} | {entry['condition_gain']:.5f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
