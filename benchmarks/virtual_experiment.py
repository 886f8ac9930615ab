"""Whole runs of designs that training never saw: real (phantom) people, other real people and synthetic ones through the same lines.

    python benchmarks/virtual_experiment.py FOLDER --checkpoint MODEL [--people 16] [--seed 2028] [--first-subject 40000] [--simulate-only]

Writes the designs, simulates two groups of people of the training's phantom who took part in nothing (`--seed` is the
phantom's), samples as many synthetic people, and prints what `fmrisynth evaluate --unit run` says of the synthetic ones
and, as ceilings, of the second group and of real people after the tokenizer's encode and decode. Everything goes through
the command line and is continued where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from fmrisynth.bids.events import Event, write_events

SECOND_GROUP = 1_000
"""People of the phantom between the first ones of the two groups."""
LEAD_S = 10.0


def designs() -> dict[str, list[Event]]:
    """Events of each design: blocks of 8 and of 40 s, trials of 2 s, and two conditions that cover each other by half."""
    rng = np.random.default_rng(0)
    three = ("emotion_fear", "language_story", "motor_rh")
    short = [Event(LEAD_S + 20.0 * i, 8.0, three[i % 3]) for i in range(18)]
    long = [Event(LEAD_S + 58.0 * i, 40.0, ("language_story", "wm_2bk_places")[i % 2]) for i in range(6)]
    order = [three[j] for _ in range(20) for j in rng.permutation(3)]
    onsets = LEAD_S + np.cumsum(rng.uniform(3.0, 9.0, len(order)))
    trials = [Event(round(float(onset), 3), 2.0, condition) for onset, condition in zip(onsets, order, strict=True)]
    overlapping = []
    for i in range(9):
        first, second = ("language_story", "motor_rh") if i % 2 == 0 else ("motor_rh", "language_story")
        overlapping += [Event(LEAD_S + 38.0 * i, 20.0, first), Event(LEAD_S + 38.0 * i + 10.0, 16.0, second)]
    return {"blocks8": short, "blocks40": long, "trials": trials, "overlap": overlapping}


def run(*arguments: str | Path) -> None:
    """One command of fmrisynth."""
    subprocess.run([sys.executable, "-m", "fmrisynth", *map(str, arguments)], check=True)


def main() -> None:
    """Simulate, sample, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2028, help="of the phantom that the model was trained on")
    parser.add_argument("--first-subject", type=int, default=40_000, help="take people whom nobody has looked at")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--simulate-only", action="store_true")
    arguments = parser.parse_args()
    root, found = arguments.root, designs()
    made = "synthetic" if arguments.guidance == 1 else f"synthetic-guidance{arguments.guidance:g}"
    for name, events in found.items():
        path = root / "designs" / f"task-{name}_events.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_events(path, events)
        for group, first in (("real", arguments.first_subject), ("others", arguments.first_subject + SECOND_GROUP)):
            run("simulate", root / f"{group}-{name}", "--layout", "runs", "--n-subjects", arguments.people, "--seed", arguments.seed,
                "--set", f"first_subject={first}", "--set", f"events=[{path}]", "--set", "directions=[LR]")  # fmt: skip
        if arguments.simulate_only:
            continue
        run("sample", root / f"{made}-{name}", "--events", path, "--n", arguments.people, "--checkpoint", arguments.checkpoint,
            "--guidance", arguments.guidance)  # fmt: skip
        for group in (made, "others"):
            run("evaluate", root / f"evaluation-{group}-{name}", "--unit", "run", "--real", root / f"real-{name}",
                "--synthetic", root / f"{group}-{name}", "--truth", root / f"real-{name}", "--set", "test_split=all",
                *(("--set", f"tokenizer={arguments.checkpoint / 'tokenizer'}") if group == made else ()))  # fmt: skip
    if not arguments.simulate_only:
        print(table(root, list(found), made))


def table(root: Path, names: list[str], made: str = "synthetic") -> str:
    """All checks of all designs: synthetic (? cannot tell), and in brackets other real people and real ones through the tokenizer."""
    both = {
        (group, name): json.loads((root / f"evaluation-{group}-{name}" / "metrics.json").read_text())
        for group in (made, "others")
        for name in names
    }
    lines = ["| check | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for key, check in both[made, names[0]]["checks"].items():
        cells = []
        for name in names:
            own, other = (both[group, name]["checks"][key] for group in (made, "others"))
            through = both[made, name]["tokenizer"][key]
            low, high = own["interval"]
            answer = {"passes": "", "fails": " **fails**", "cannot tell": " ?"}[own["answer"]]
            cells.append(f"{own['value']:.2f} [{low:.2f}, {high:.2f}]{answer} ({other['value']:.2f}; {through:.2f})")
        lines.append(f"| {check['title']} | " + " | ".join(cells) + " |")
    for what in ("r", "slopes"):
        cells = []
        for name in names:
            parts = []
            for truth in (both[made, name]["truth"]["synthetic"], both["others", name]["truth"]["synthetic"]):
                values = np.array(truth[what])
                if what == "r":
                    parts.append(", ".join(f"{value:.2f}" for value in values))
                else:
                    off = values - np.diag(np.diag(values))
                    parts.append(
                        ", ".join(f"{value:.2f}" for value in np.diag(values))
                        + f"; others at most {np.abs(off).max():.2f}"
                    )
            cells.append(f"{parts[0]} ({parts[1]})")
        lines.append(f"| against the truth: {'r' if what == 'r' else 'slope'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
