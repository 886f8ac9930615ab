"""Tables of the bundled model's card, from the reports of `fmrisynth evaluate`.

    python benchmarks/card_tables.py REPORT [--controls untold=REPORT silenced=REPORT] [--others alone=REPORT sharing=REPORT]

Prints Markdown: scores and realism of one report, and what the card says of the same recipe on other phantoms.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]

SCORES = {"corr": "Corr", "rsa_pearson": "RSA", "top1": "Top-1, maps", "top1_per_sample": "Top-1, single blocks"}
REALISM = {
    "residual_variance": "variance over time, ratio",
    "variance_spread": "differences in variance between blocks, ratio",
    "effect_variance": "variance of single-block effects, ratio",
    "autocorrelation": "lag-1 autocorrelation, difference",
    "spectrum": "power spectrum, mean abs. ln ratio",
    "smoothness": "smoothness, ratio",
    "variance_map": "variance map, r",
    "connectivity": "connectivity, r",
    "roi_courses": "ROI courses, r",
    "roi_agreement": "ROI courses, frames within sampling error",
    "roi_band": "ROI courses within one real SEM at most frames",
}
CONTROLS = {"untold": "told no condition (guidance 0)", "silenced": "network silenced"}
CEILING_IN_TITLE = ("variance_map", "connectivity", "roi_courses", "roi_agreement", "roi_band")
"""Rows whose `real` is what training blocks reach."""


def read(report: Path) -> Metrics:
    """The numbers of a report."""
    found: Metrics = json.loads((report / "metrics.json").read_text())
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, interval: list[float] | None = None, digits: int = 2) -> str:
    """A number with its interval; nothing where there is none."""
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def scores(metrics: Metrics, controls: Mapping[str, Metrics]) -> str:
    """Samples, the same model without a label or without its network, ceilings and baselines."""
    ceiling = metrics["ceiling"]
    split_half = {**ceiling["split_half"]["scores"], "top1_per_sample": ceiling["top1_per_block"]}
    sources = {
        "samples": metrics["synthetic"]["scores"],
        **{name: found["synthetic"]["scores"] for name, found in controls.items()},
        "ceiling: training against test subjects": ceiling["train_against_test"]["scores"],
        "ceiling: test blocks through the tokenizer": ceiling["tokenizer"]["scores"],
        "split half of the test subjects": split_half,
        **{f"baseline: {name}": found["scores"] for name, found in metrics["baselines"].items()},
    }
    rows = []
    for name, found in sources.items():
        cells = []
        for key in SCORES:
            score = found.get(key) or {"value": None}
            shown = score.get("interval_95") if name == "samples" or key == "corr" else None
            cells.append(number(score["value"], None if name == "split half of the test subjects" else shown))
        rows.append([name, *cells])
    return table(["", *SCORES.values()], rows)


def realism(metrics: Metrics) -> str:
    """Checks with the baselines beside them."""
    rows = []
    for key, title in REALISM.items():
        check = metrics["realism"][key]
        if key in CEILING_IN_TITLE:
            title += f" (real training {check['real']:.2f})"
        shown = check["interval_95"] if key != "roi_band" else None
        cells = [title, number(check["value"], shown, 3)]
        for found in metrics["baselines"].values():
            twin = found["realism"][key]
            standing = "" if twin["against_synthetic"] in (None, "even") else f", {twin['against_synthetic']}"
            cells.append(number(twin["value"], None, 3) + standing)
        rows.append(cells)
    rows.append(["privacy: share of near copies", _copies(metrics["privacy"]), *(_copies(found["privacy"]) for found in metrics["baselines"].values())])  # fmt: skip
    return table(["realism", "samples, 95 % interval", *metrics["baselines"]], rows)


def _copies(privacy: Metrics) -> str:
    audit = privacy["dynamics"]
    return number(audit["n_copies"] / audit["n_synthetic"])


def other(metrics: Metrics) -> list[str]:
    """A column of the table of other phantoms; see `OTHER_ROWS`."""
    own, best = metrics["synthetic"]["scores"], metrics["ceiling"]["train_against_test"]["scores"]
    standings = [
        Counter(check["against_synthetic"] for check in found["realism"].values())
        for found in metrics["baselines"].values()
    ]
    band = metrics["realism"]["roi_band"]
    frames = metrics["realism"]["roi_agreement"]
    return [
        f"{number(own['corr']['value'], own['corr']['interval_95'])} ({number(best['corr']['value'])})",
        ", ".join(number(found["scores"]["corr"]["value"]) for found in metrics["baselines"].values()),
        f"{number(own['rsa_pearson']['value'])} ({number(best['rsa_pearson']['value'])})",
        f"{number(own['top1']['value'])}, {number(own['top1_per_sample']['value'])} ({number(best['top1_per_sample']['value'])})",
        number(metrics["realism"]["effect_variance"]["value"]),
        f"{number(frames['value'])} ({number(frames['real'])})",
        f"{number(band['value'])} ({number(band['real'])})",
        ", ".join(str(count["nearer"]) for count in standings),
        ", ".join(str(count["farther"]) for count in standings),
        f"{sum(line['outcome'] == 'pass' for line in metrics['summary'])} of {sum(line['outcome'] != 'info' for line in metrics['summary'])}",
    ]


OTHER_ROWS = (
    "Corr (training against test subjects)",
    "Corr: class mean + residuals, PCA-Gaussian, nearest",
    "RSA (training against test subjects)",
    "Top-1 of maps, of single samples (of single real training blocks)",
    "variance of single-block effects, ratio",
    "ROI courses, frames within sampling error (real training)",
    "ROI courses within one real SEM at most frames (as many real training blocks)",
    "realism rows in which class mean + residuals, PCA-Gaussian, nearest are nearer",
    "in which they are farther",
    "checks passed",
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--controls", nargs="*", default=[], metavar="NAME=REPORT")
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=REPORT")
    arguments = parser.parse_args()
    metrics = read(arguments.report)
    controls = {
        CONTROLS.get(name, name): read(Path(report))
        for name, _, report in (c.partition("=") for c in arguments.controls)
    }
    print(scores(metrics, controls), realism(metrics), sep="\n\n")
    named = [entry.partition("=")[::2] for entry in arguments.others]
    if named:
        columns = [other(read(Path(report))) for _, report in named]
        rows = [list(row) for row in zip(OTHER_ROWS, *columns, strict=True)]
        print("", table(["", *(name for name, _ in named)], rows), sep="\n")
    for name, report in [("", str(arguments.report)), *named]:
        odd = [line["title"] for line in read(Path(report))["summary"] if line["outcome"] in ("warn", "fail")]
        print(f"\n{name or 'report'}: want a look or fail: {'; '.join(odd) or 'none'}")


if __name__ == "__main__":
    main()
