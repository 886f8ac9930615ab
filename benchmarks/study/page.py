"""docs/study.md and its figure from the results on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from score import SCORES

HEADER = """# The study

{reading}
## How it was made

`python benchmarks/study/run.py FOLDER --page docs/study.md` made everything on this page but the text above; what it does is
in `benchmarks/study/study.yaml`. **All tables: a small model family on one CPU core**, phantom data. They say which choices
matter at this scale, not what the paper's sizes would do.
Every arm with one seed saw the same batches, and its samples start from the same seeds: {n} per condition ({sampler},
{steps} steps) against the group z maps of the test subjects. *CPU* is minutes of processor time of training until then;
*variance* that of single-block effects, synthetic / real. Where there are several seeds, the tables give
mean and range. These test subjects have been
looked at while the study was designed: a final test needs new subjects.

**The ceiling**: as many real training blocks in place of samples, mean of {draws} draws: Corr {corr:.2f}, RSA {rsa:.2f}, Top-1 {top1:.2f},
Top-1 of single blocks {top1_samples:.2f}, variance {effect_variance_ratio:.2f}.

![Corr, RSA and Top-1 of single samples against processor time](figures/study_curves.png)
"""
COLUMNS = SCORES | {"loss": "validation loss"}
ENOUGH = 0.9


def write_page(
    path: Path, study: dict[str, Any], results: Path, reading: Path = Path(__file__).parent / "reading.md"
) -> None:
    """Write the page with every arm that has a result; say how many are missing. `reading` is written by hand, of the same results."""
    found = [json.loads(file.read_text()) for file in sorted(results.glob("*-seed*.json"))]
    draws = json.loads((results / "ceilings.json").read_text())
    ceiling = {key: float(np.mean(values)) for key, values in draws.items()}
    text = [HEADER.format(reading=reading.read_text(), draws=len(draws["corr"]), **study["sampling"], **ceiling)]
    text += claims(study, found)
    draw_curves(study, found, ceiling, path.parent / "figures" / "study_curves.png")
    missing = 0
    for table in study["tables"]:
        rows = []
        for arm in table["arms"]:
            own = results_of(found, table["name"], arm)
            missing += len(study["main_seeds"] if table.get("main") else study["seeds"]) - len(own)
            rows += arm_rows(arm, own, ENOUGH * ceiling["corr"])
        if rows:
            head = [
                "arm",
                "M parameters",
                "steps",
                "CPU",
                "seeds",
                *COLUMNS.values(),
                f"CPU to {ENOUGH:.1f} of the ceiling's Corr",
            ]
            text += [f"## {table['title']}\n", f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *rows, ""]
    if missing:
        text.append(
            f"{missing} runs of the study have not been made yet; their rows are missing or have fewer seeds.\n"
        )
    path.write_text("\n".join(text))


def results_of(results: list[dict[str, Any]], table: str, arm: str) -> list[dict[str, Any]]:
    """One arm, all seeds."""
    return [r for r in results if r["table"] == table and r["arm"] == arm]


def arm_rows(arm: str, results: list[dict[str, Any]], enough: float) -> list[str]:
    """A row for each scored step; the last one also says when every seed had reached `enough` Corr."""
    steps = sorted({int(step) for r in results for step in r["scores"]})
    rows = []
    for step in steps:
        scores = [r["scores"][str(step)] for r in results if str(step) in r["scores"]]
        cells = [spread([s.get(key) for s in scores], 3 if key == "loss" else 2) for key in COLUMNS]
        minutes = spread([60 * s["cpu_hours"] for s in scores], 0)
        reached = "" if step != steps[-1] else spread([minutes_to(r, enough) for r in results], 0)
        rows.append(
            f"| {arm} | {results[0]['parameters'] / 1e6:.2f} | {step} | {minutes} | {len(scores)} | {' | '.join(cells)} | {reached} |"
        )
    return rows


def minutes_to(result: dict[str, Any], enough: float) -> float | None:
    """Processor minutes until Corr first reached a value, by linear interpolation between scored steps; None if it did not."""
    before = (0.0, 0.0)
    for step in sorted(result["scores"], key=int):
        score = result["scores"][step]
        now = (60 * score["cpu_hours"], score["corr"])
        if now[1] >= enough:
            return before[0] + (now[0] - before[0]) * (enough - before[1]) / (now[1] - before[1])
        before = now
    return None


def spread(values: list[float | None], digits: int) -> str:
    """Mean and range; a dash where a value is missing."""
    known = np.array([v for v in values if v is not None])
    if known.size < len(values) or not known.size:
        return "–" if not known.size else f"{known.mean():.{digits}f}, {len(values) - known.size} of {len(values)} not"
    text, low, high = (f"{value:.{digits}f}" for value in (known.mean(), known.min(), known.max()))
    return text if low == high else f"{text} [{low}, {high}]"


def claims(study: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    """The paper's claims as differences between the last scores of two arms, paired by seed."""
    rows = []
    for claim in study.get("claims", []):
        ours, others = (
            {r["seed"]: r["scores"][max(r["scores"], key=int)] for r in results_of(results, claim["table"], claim[key])}
            for key in ("arm", "other")
        )
        seeds = sorted(ours.keys() & others.keys())
        if seeds:
            gained = np.array([ours[s]["corr"] - others[s]["corr"] for s in seeds])
            rows.append(
                f"| {claim['claim']} | {claim['arm']} | {claim['other']} | {len(seeds)} | {spread(list(gained), 3)} | {verdict(gained)} |"
            )
    if not rows:
        return []
    head = [
        "## The paper's claims\n",
        "Differences of Corr between two arms with the same seed; positive is in favour of the claim. A claim "
        "*holds* if each of at least three seeds is "
        "in favour, and *does not hold* if each is against it.\n",
        "| claim | arm | against | seeds | Corr, gained | by Corr |",
        "| --- | --- | --- | --- | --- | --- |",
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


def draw_curves(study: dict[str, Any], results: list[dict[str, Any]], ceiling: dict[str, float], path: Path) -> None:
    """A row of panels for each table: scores against processor time, a line for each arm and seed."""
    tables = [t for t in study["tables"] if any(results_of(results, t["name"], arm) for arm in t["arms"])]
    shown = {"corr": "Corr", "rsa": "RSA", "top1_samples": "Top-1 of single samples"}
    figure = Figure(figsize=(9, 0.4 + 2.3 * len(tables)), layout="constrained")
    FigureCanvasAgg(figure)
    for table, row in zip(tables, figure.subplots(len(tables), 3, squeeze=False), strict=True):
        for axes, (key, title) in zip(row, shown.items(), strict=True):
            for number, arm in enumerate(table["arms"]):
                for i, result in enumerate(results_of(results, table["name"], arm)):
                    scores = [result["scores"][step] for step in sorted(result["scores"], key=int)]
                    minutes = [60 * s["cpu_hours"] for s in scores]
                    axes.plot(
                        minutes,
                        [s[key] for s in scores],
                        "o-",
                        color=f"C{number}",
                        markersize=3,
                        label=None if i else arm,
                    )
            axes.axhline(ceiling[key], color="0.5", linestyle="--", linewidth=1)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("CPU minutes of training")
            axes.set_ylabel(title)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_title(table["title"], fontsize=9, loc="left")
        row[0].legend(frameon=False, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
