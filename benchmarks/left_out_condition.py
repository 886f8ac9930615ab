"""A condition that training never saw, asked for by its descriptors, on a phantom whose conditions share networks.

    python benchmarks/left_out_condition.py FOLDER [--people 32] [--steps 2000] [--first-subject 43000] [--simulate-only]

Two models hear descriptors of the twelve or thirteen working-memory and motor conditions: one was trained on runs
without 2-back faces, the other on as many runs with them. Both make runs of 2-back faces; their group maps stand beside
those of as many real people, of the mean of the other conditions' maps, of the nearest conditions and of a linear fit
of the training maps to the descriptors. Correlations with the real group's map, by how much the never trained one is
better, and correlations of what is left of both maps when the mean of the other conditions is taken out; intervals by
leaving out people, real and synthetic ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fmrisynth.bids.events import Event, write_events
from fmrisynth.data.occupancy import read_descriptors
from fmrisynth.evaluate.runs import Plan, RunCohort, RunNumbers, measure
from fmrisynth.simulate.paradigms import CONDITIONS_BY_TASK

Pair = tuple[np.ndarray, np.ndarray]
Sides = dict[str, Sequence[RunNumbers]]
LEFT_OUT = "wm_2bk_faces"
CONDITIONS = [*CONDITIONS_BY_TASK["WM"], *CONDITIONS_BY_TASK["MOTOR"]]
COLUMNS = ("wm", "load", "body", "faces", "places", "tools", "hand", "foot", "tongue", "left", "right")


def descriptors() -> dict[str, list[float]]:
    """What each condition shows and asks for, as anybody would write it down."""
    table = {}
    for condition in CONDITIONS:
        task, *words = condition.split("_")
        row = dict.fromkeys(COLUMNS, 0.0)
        if task == "wm":
            row |= {"wm": 1.0, "load": float(words[0] == "2bk"), words[1]: 1.0}
        elif words[0] == "t":
            row["tongue"] = 1.0
        else:
            row |= {{"h": "hand", "f": "foot"}[words[0][1]]: 1.0, {"l": "left", "r": "right"}[words[0][0]]: 1.0}
        table[condition] = [row[name] for name in COLUMNS]
    return table


def run(*arguments: object) -> None:
    """One command of fmrisynth."""
    subprocess.run([sys.executable, "-m", "fmrisynth", *map(str, arguments)], check=True)


def main() -> None:
    """Simulate, train twice, sample, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--fresh", type=int, default=16, help="real and synthetic people who are compared")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2028)
    parser.add_argument("--first-subject", type=int, default=43_000, help="take people whom nobody has looked at")
    parser.add_argument("--simulate-only", action="store_true")
    arguments = parser.parse_args()
    root: Path = arguments.root
    root.mkdir(parents=True, exist_ok=True)
    table = root / "descriptors.tsv"
    lines = ["\t".join(["condition", *COLUMNS])]
    lines += ["\t".join([name, *(f"{value:g}" for value in row)]) for name, row in descriptors().items()]
    table.write_text("\n".join(lines) + "\n")
    events = root / "task-faces_events.tsv"
    write_events(events, [Event(10.0 + 36.0 * i, 20.0, LEFT_OUT) for i in range(9)])

    common = ("--layout", "runs", "--seed", arguments.seed)
    some = [condition for condition in CONDITIONS if condition != LEFT_OUT]
    for name, direction, known in (("without", "LR", some), ("with", "RL", CONDITIONS)):
        run("simulate", root / f"runs-{name}", *common, "--n-subjects", arguments.people, "--set", "mixed=true", "--set", "run_s=600",
            "--set", f"directions=[{direction}]", "--set", f"conditions=[{','.join(known)}]", "--set", "split.train=0.9",
            "--set", "split.val=0.1", "--set", "split.test=0")  # fmt: skip
    run("simulate", root / "real", *common, "--n-subjects", arguments.fresh, "--set", f"first_subject={arguments.first_subject}",
        "--set", f"events=[{events}]", "--set", "directions=[LR]")  # fmt: skip
    if arguments.simulate_only:
        return
    for name in ("without", "with"):
        run(
            "tokenize",
            root / f"runs-{name}",
            root / f"latents-{name}",
            "--tokenizer",
            "bundled",
            "--set",
            "report=false",
        )
        run("train", root / f"latents-{name}", root / f"model-{name}", "--preset", "runs", "--set", f"steps={arguments.steps}",
            "--set", f"conditioning.descriptors={table}")  # fmt: skip
        run("sample", root / f"synthetic-{name}", "--events", events, "--n", arguments.fresh, "--checkpoint", root / f"model-{name}",
            "--set", f"descriptors={table}")  # fmt: skip
    print(report(root, table))


def report(root: Path, table: Path) -> str:
    """Correlations with the real group's map."""
    real = RunCohort.open(root / "real")
    own = {name: RunCohort.open(root / f"synthetic-{name}") for name in ("without", "with")}
    plan = Plan.of(real, own["without"])
    real_people = measure(real, plan, None, "Real people")
    training = RunCohort.open(root / "runs-without", "train")
    wide = Plan(
        **(vars(plan) | {"conditions": tuple(c for c in CONDITIONS if c != LEFT_OUT), "n_lags_K": np.full(12, 2)})
    )
    trained_KV = np.nanmean([p.effects_KV for p in measure(training, wide, None, "Training people")], axis=0)
    rows = read_descriptors(table)
    x_KD, wanted_D = np.array([rows[c] for c in wide.conditions]), np.array(rows[LEFT_OUT])
    distance_K = np.abs(x_KD - wanted_D).sum(axis=1)
    one_KD = np.column_stack([np.ones(len(x_KD)), x_KD])
    linear_V = np.append(1.0, wanted_D) @ np.linalg.pinv(one_KD) @ trained_KV
    mean_V = trained_KV.mean(axis=0)
    nearest_V = trained_KV[distance_K == distance_K.min()].mean(axis=0)
    half = len(real_people) // 2
    sides = {"first": real_people[:half], "second": real_people[half:]}
    sides |= {name: measure(cohort, plan, None, f"Synthetic people ({name})") for name, cohort in own.items()}

    def group(sides: Sides, *names: str) -> np.ndarray:
        return np.mean([p.effects_KV[0] for name in names for p in sides[name]], axis=0)

    found: dict[str, Callable[[Sides], Pair]] = {
        "asked for by descriptors, never trained": lambda s: (group(s, "without"), group(s, "first", "second")),
        "trained": lambda s: (group(s, "with"), group(s, "first", "second")),
        "mean of the other conditions' training maps": lambda s: (mean_V, group(s, "first", "second")),
        "nearest conditions' training maps": lambda s: (nearest_V, group(s, "first", "second")),
        "linear fit of the training maps to the descriptors": lambda s: (linear_V, group(s, "first", "second")),
        "half of the real people against the other half": lambda s: (group(s, "first"), group(s, "second")),
    }
    own_maps, *_ = found.values()
    lines = [
        "| map of 2-back faces | r with real people | never trained is better by | r of what is its own |",
        "| --- " * 4 + "|",
    ]
    for name, maps in found.items():
        cells = [_interval(lambda s, maps=maps: _r(*maps(s)), sides), "", ""]
        if maps is not own_maps and not name.startswith("half"):  # half as many people are no match for all
            cells[1] = _interval(lambda s, maps=maps: _r(*own_maps(s)) - _r(*maps(s)), sides)
        if not name.startswith("mean"):  # of which nothing is left
            cells[2] = _interval(lambda s, maps=maps: _r(*maps(s), mean_V), sides)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: Callable[[Sides], float], sides: Sides) -> str:
    """A number and its 95 % interval over the people of every side (delete-one jackknife)."""
    variance = 0.0
    for name, people in sides.items():
        parts = [value(sides | {name: [*people[:i], *people[i + 1 :]]}) for i in range(len(people))]
        variance += (len(parts) - 1) * np.var(parts)
    middle, width = value(sides), 2.13 * np.sqrt(variance)
    return f"{middle:.3f} [{middle - width:.3f}, {middle + width:.3f}]"


def _r(one_V: np.ndarray, other_V: np.ndarray, common_V: np.ndarray | None = None) -> float:
    """Correlation of two maps, or of what they have beside a common one, which is taken out of each by least squares."""
    if common_V is not None:
        one_V, other_V = (m_V - (m_V @ common_V) / (common_V @ common_V) * common_V for m_V in (one_V, other_V))
    return float(np.corrcoef(one_V, other_V)[0, 1])


if __name__ == "__main__":
    main()
