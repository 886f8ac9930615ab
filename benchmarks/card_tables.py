"""Tables of the bundled model's card, from the reports of `fmrisynth evaluate`.

    python benchmarks/card_tables.py REPORT [--others alone=REPORT sharing=REPORT]

Prints Markdown: scores and checks of one report, and what the card says of the same recipe on other phantoms.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from fmrisynth.evaluate.checks import ANSWERS

Metrics = dict[str, Any]

SCORES = {"corr": "Corr", "rsa_pearson": "RSA", "top1": "Top-1, maps", "top1_per_sample": "Top-1, single blocks"}


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


def scores(metrics: Metrics) -> str:
    """Samples, ceilings and baselines."""
    sources = {
        "samples": metrics["synthetic"]["scores"],
        "ceiling: as many real blocks": metrics["control"].get("scores", {}),
        "ceiling: test blocks through the tokenizer": (metrics["ceiling"]["tokenizer"] or {"scores": {}})["scores"],
        "split half of the test subjects": metrics["ceiling"]["split_half"]["scores"],
        **{f"baseline: {name}": found["scores"] for name, found in metrics["baselines"].items()},
    }
    rows = []
    for name, found in sources.items():
        cells = []
        for key in SCORES:
            score = found.get(key) or {"value": None}
            cells.append(number(score["value"], score.get("interval_95")))
        rows.append([name, *cells])
    return table(["", *SCORES.values()], rows)


def checks(metrics: Metrics) -> str:
    """Every check's answer, with real blocks and the baselines beside it."""
    others = {"as many real blocks": metrics["control"], **metrics["baselines"]}
    rows = []
    for key, check in metrics["synthetic"]["checks"].items():
        cells = [check["title"], number(check["value"], check["interval_95"]), ANSWERS[check["answer"]]]
        for found in others.values():
            twin = found.get("checks", {}).get(key)
            standing = found.get("against_synthetic", {}).get(key)
            cells.append(
                ""
                if twin is None
                else ", ".join(part for part in (number(twin["value"]), ANSWERS[twin["answer"]], standing) if part)
            )
        rows.append(cells)
    return table(["check", "samples, 95 % interval", "answer", *others], rows)


def other(metrics: Metrics) -> list[str]:
    """A column of the table of other phantoms; see `OTHER_ROWS`."""
    own, best = metrics["synthetic"]["scores"], metrics["control"]["scores"]
    standings = [Counter(found["against_synthetic"].values()) for found in metrics["baselines"].values()]
    counted = [line for line in metrics["summary"] if line["counted"]]
    return [
        *(f"{number(own[key]['value'], own[key]['interval_95'])} ({number(best[key]['value'])})" for key in SCORES),
        ", ".join(f"{name} {number(found['scores']['corr']['value'])}" for name, found in metrics["baselines"].items()),
        ", ".join(str(count["nearer"]) for count in standings),
        ", ".join(str(count["farther"]) for count in standings),
        f"{sum(line['answer'] == 'pass' for line in counted)} of {len(counted)} ({sum(line['control'] == 'pass' for line in counted)})",
    ]


OTHER_ROWS = (
    *(f"{title} (as many real blocks)" for title in SCORES.values()),
    "Corr of the baselines",
    "properties in which the baselines are nearer",
    "in which they are farther",
    "checks passed (by as many real blocks)",
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=REPORT")
    arguments = parser.parse_args()
    metrics = read(arguments.report)
    print(scores(metrics), checks(metrics), sep="\n\n")
    named = [entry.partition("=")[::2] for entry in arguments.others]
    if named:
        columns = [other(read(Path(report))) for _, report in named]
        rows = [list(row) for row in zip(OTHER_ROWS, *columns, strict=True)]
        print("", table(["", *(name for name, _ in named)], rows), sep="\n")
    for name, report in [("", str(arguments.report)), *named]:
        odd = [line["title"] for line in read(Path(report))["summary"] if line["answer"] == "fail"]
        print(f"\n{name or 'report'}: fail: {'; '.join(odd) or 'none'}")


if __name__ == "__main__":
    main()
