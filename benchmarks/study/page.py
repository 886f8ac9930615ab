"""docs/study.md from the results on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HEADER = """# The study

The paper's claims, tested on the phantom. `python benchmarks/study/run.py FOLDER --page docs/study.md` made this page; what it does is
in `benchmarks/study/study.yaml`.

**All tables: a small model family on CPU** (width 8 to 32 where the paper has 128 to 448, {steps} steps of {batch} instances where it has
400,000 of 16), phantom data. They say which choices matter at this scale, not what the paper's sizes would do.

Every arm saw the same batches. {n} samples per condition ({sampler}, {sampling_steps} steps) against the group z maps of the test subjects.
Step 0, where given, is the prior alone: a network that answers 0. *Variance* is that of single-block effects, synthetic / real. *Label* is the rise of the validation loss when the network is told a wrong
condition. Several seeds: mean and range. The ceiling, real training against real test subjects: Corr {corr:.2f}, RSA {rsa:.2f}, Top-1 {top1:.2f}.
"""


def write_page(path: Path, study: dict[str, Any], results: Path) -> None:
    """Write the page with every arm that has a result; say how many are missing."""
    found = [json.loads(file.read_text()) for file in sorted(results.glob("*-seed*.json"))]
    ceiling = json.loads((results / "ceilings.json").read_text())
    base, sampling = study["base"], study["sampling"]
    text = [
        HEADER.format(
            steps=base["steps"], batch=base["batch_size"], n=sampling["n"], sampler=sampling["sampler"],
            sampling_steps=sampling["steps"], **ceiling,
        )
    ]  # fmt: skip
    missing = 0
    for table in study["tables"]:
        rows = []
        for arm in table["arms"]:
            own = [r for r in found if r["table"] == table["name"] and r["arm"] == arm]
            wanted = study["main_seeds"] if table.get("main") else study["seeds"]
            missing += len(wanted) - len(own)
            rows += _rows(arm, own, [0, *table.get("score_at", [base["steps"]])])
        if rows:
            text.append(f"## {table['title']}\n")
            text.append(
                "| arm | M parameters | steps | seeds | Corr | RSA | Top-1 | Top-1, samples | variance | validation loss | label |"
            )
            text.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
            text += rows
            text.append("")
    if missing:
        text.append(
            f"{missing} runs of the study have not been made yet; their rows are missing or have fewer seeds.\n"
        )
    path.write_text("\n".join(text))


def _rows(arm: str, results: list[dict[str, Any]], steps: list[int]) -> list[str]:
    rows = []
    for step in steps:
        scores = [r["scores"][str(step)] for r in results if str(step) in r["scores"]]
        if not scores:
            continue
        cells = [_spread([s.get(key) for s in scores], digits) for key, digits in (
            ("corr", 2), ("rsa", 2), ("top1", 2), ("top1_samples", 2), ("effect_variance_ratio", 2), ("loss", 3), ("condition_gain", 4))]  # fmt: skip
        size = f"{results[0]['parameters'] / 1e6:.2f}"
        rows.append(f"| {arm} | {size} | {step} | {len(scores)} | " + " | ".join(cells) + " |")
    return rows


def _spread(values: list[float | None], digits: int) -> str:
    known = np.array([v for v in values if v is not None])
    if not known.size:
        return "–"
    text = f"{known.mean():.{digits}f}"
    return text if known.size == 1 else f"{text} [{known.min():.{digits}f}, {known.max():.{digits}f}]"
