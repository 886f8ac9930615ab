"""docs/study.md and its figures from the results on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HEADER = """# The study

The paper's claims, tested on the phantom. `python benchmarks/study/run.py FOLDER --page docs/study.md` made this page; what it does is
in `benchmarks/study/study.yaml`.

**All tables: a small model family on CPU** (width 8 to 32 where the paper has 128 to 448, {steps} steps of {batch} instances where it has
400,000 of 16), phantom data. They say which choices matter at this scale, not what the paper's sizes would do.

Every arm with one seed saw the same batches, and its samples start from the same seeds. {n} samples per condition ({sampler}, {sampling_steps} steps) against the group z maps of the test subjects.
Step 0, where given, is the prior alone: a network that answers 0. *Variance* is that of single-block effects, synthetic / real. *Label* is the rise of the validation loss when the network is told a wrong
condition. Validation losses compare arms of one
objective and one prior only. Several seeds: mean and range. The runs were made with commit {commit}. These test subjects have been looked at
while the study was designed: a last word wants fresh ones. The ceiling, real training against real test subjects: Corr {corr:.2f}, RSA {rsa:.2f}, Top-1 {top1:.2f}.
"""


def write_page(path: Path, study: dict[str, Any], results: Path) -> None:
    """Write the page with every arm that has a result; say how many are missing."""
    found = [json.loads(file.read_text()) for file in sorted(results.glob("*-seed*.json"))]
    ceiling = json.loads((results / "ceilings.json").read_text())
    base, sampling = study["base"], study["sampling"]
    text = [
        HEADER.format(
            steps=base["steps"], batch=base["batch_size"], n=sampling["n"], sampler=sampling["sampler"],
            sampling_steps=sampling["steps"], commit=study["commit"], **ceiling,
        )
    ]  # fmt: skip
    text += _claims(study, found)
    figures = path.parent / "figures"
    _draw_arms(study, found, ceiling["corr"], figures / "study_arms.png")
    _draw_steps(study, found, ceiling["corr"], figures / "study_priors.png")
    text.append("![Corr of every arm](figures/study_arms.png)\n")
    text.append("*Corr of every arm, one dot per seed; the dashed line is the ceiling.*\n")
    text.append((Path(__file__).parent / "reading.md").read_text())  # by hand; true of the results that are on the page
    missing = 0
    for table in study["tables"]:
        rows = []
        for arm in table["arms"]:
            own = [r for r in found if r["table"] == table["name"] and r["arm"] == arm]
            wanted = study["main_seeds"] if table.get("main") else study["seeds"]
            missing += len(wanted) - len(own)
            rows += _rows(arm, own, table.get("score_at", [base["steps"]]))
        if rows:
            text.append(f"## {table['title']}\n")
            text.append(
                "| arm | M parameters | steps | seeds | Corr | RSA | Top-1 | Top-1, samples | variance | validation loss | label |"
            )
            text.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
            text += rows
            text.append("")
            if table["name"] == "prior":
                text.append("![Corr against training steps](figures/study_priors.png)\n")
                text += _steps_needed(study, found, ceiling["corr"])
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


def _steps_needed(study: dict[str, Any], results: list[dict[str, Any]], ceiling: float) -> list[str]:
    """The first scored step at which every seed has Top-1 = 1, and 0.9 of the ceiling's Corr."""
    rows = []
    for table in study["tables"]:
        if table["name"] not in ("prior", "longer"):
            continue
        for arm in table["arms"]:
            own = [r["scores"] for r in results if r["table"] == table["name"] and r["arm"] == arm]
            if not own:
                continue
            steps = sorted({int(step) for scores in own for step in scores})
            known = {step: [scores[str(step)] for scores in own if str(step) in scores] for step in steps}
            cells = []
            for enough in (lambda s: s["top1"] == 1, lambda s: s["corr"] >= 0.9 * ceiling):
                reached = [step for step in steps if all(map(enough, known[step]))]
                cells.append(str(reached[0]) if reached else f"not by {steps[-1]}")
            rows.append(f"| {arm} | {len(own)} | {', '.join(map(str, steps))} | {cells[0]} | {cells[1]} |")
    head = [
        f"Steps until every seed has Top-1 = 1, and 0.9 of the ceiling's Corr ({0.9 * ceiling:.2f}); step 0 is the prior alone:\n",
        "| arm | seeds | scored at | Top-1 = 1 | 0.9 of the ceiling |",
        "| --- | --- | --- | --- | --- |",
    ]
    return [*head, *rows, ""] if rows else []


def _spread(values: list[float | None], digits: int) -> str:
    known = np.array([v for v in values if v is not None])
    if not known.size:
        return "–"
    text = f"{known.mean():.{digits}f}"
    return text if known.size == 1 else f"{text} [{known.min():.{digits}f}, {known.max():.{digits}f}]"


def _final(results: list[dict[str, Any]], table: str, arm: str) -> dict[int, dict[str, float]]:
    """Scores after the last step, by seed."""
    own = [r for r in results if r["table"] == table and r["arm"] == arm]
    return {r["seed"]: r["scores"][max(r["scores"], key=int)] for r in own}


def _claims(study: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """The paper's claims as differences between two arms, paired by seed."""
    rows = []
    for claim in study["claims"]:
        ours, others = (_final(results, claim["table"], claim[key]) for key in ("arm", "other"))
        seeds = sorted(ours.keys() & others.keys())
        if not seeds:
            continue
        corr = np.array([ours[s]["corr"] - others[s]["corr"] for s in seeds])
        gain = np.array([others[s]["loss"] - ours[s]["loss"] for s in seeds])
        rows.append(
            f"| {claim['claim']} | {claim['arm']} | {claim['other']} | {len(seeds)} | {_spread(list(corr), 3)} | {verdict(corr)} | "
            f"{_spread(list(gain), 4)} | {verdict(gain)} |"
        )
    if not rows:
        return []
    head = [
        "## The paper's claims\n",
        "Differences between two arms with the same seed; positive is in favour of the claim. By either measure a claim *holds* if each of at "
        "least three seeds is in favour, and *does not hold* if each is against it. Corr is of group maps, as in the paper; the validation loss "
        "is what training lowers.\n",
        "| claim | arm | against | seeds | Corr, gained | by Corr | validation loss, saved | by loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return [*head, *rows, ""]


def verdict(gains: np.ndarray) -> str:
    """In words, from what each seed gained."""
    if (gains > 0).all():
        said = "in favour" if gains.size < 3 else "holds"
    elif (gains < 0).all():
        said = "against" if gains.size < 3 else "does not hold"
    else:
        return "undecided"
    return said if gains.size >= 3 else f"{said}, {gains.size} seed{'s' * (gains.size > 1)} only"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_arms(study: dict[str, Any], results: list[dict[str, Any]], ceiling: float, path: Path) -> None:
    """Corr of every arm after its last step, tables below each other."""
    done = {(r["table"], r["arm"]) for r in results}
    tables = [(t, [a for a in t["arms"] if (t["name"], a) in done]) for t in study["tables"]]
    tables = [(table, arms) for table, arms in tables if arms]
    figure = _figure(7.5, 0.6 + sum(0.27 * len(arms) + 0.35 for _, arms in tables))
    grid = figure.subplots(
        len(tables),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [len(arms) + 0.5 for _, arms in tables]},
    )
    for axes, (table, arms) in zip(grid[:, 0], tables, strict=True):
        for row, arm in enumerate(arms):
            values = [s["corr"] for s in _final(results, table["name"], arm).values()]
            axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.7, markersize=5, markeredgewidth=0)
        axes.axvline(ceiling, color="0.5", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_title(table["title"], fontsize=9, loc="left")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    grid[-1, 0].set_xlabel("Corr of group maps with those of the test subjects")
    grid[-1, 0].set_xlim(0, 1)
    _save(figure, path)


def _draw_steps(study: dict[str, Any], results: list[dict[str, Any]], ceiling: float, path: Path) -> None:
    """Corr of the priors against training steps; mean over seeds, bars from the lowest to the highest."""
    table = next(t for t in study["tables"] if t["name"] == "prior")
    figure = _figure(6, 3.4)
    axes = figure.subplots()
    for arm in table["arms"]:
        own = [r["scores"] for r in results if r["table"] == "prior" and r["arm"] == arm]
        steps = sorted({int(step) for scores in own for step in scores})
        if not steps:
            continue
        values = [[scores[str(step)]["corr"] for scores in own if str(step) in scores] for step in steps]
        mean = np.array([np.mean(v) for v in values])
        bars = [mean - [min(v) for v in values], [max(v) for v in values] - mean]
        axes.errorbar(steps, mean, bars, marker="o", markersize=4, capsize=2, label=arm)
    axes.axhline(ceiling, color="0.5", linestyle="--", linewidth=1)
    axes.set_xlabel("training steps (0: the prior alone)")
    axes.set_ylabel("Corr")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
