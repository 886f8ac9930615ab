"""How detection grows with people and with trials, in real (phantom) and in synthetic runs of one experiment.

    python benchmarks/detection.py REAL SYNTHETIC --condition motor_rh docs/figures/detection.png

Both are datasets of whole runs. Voxels whose group effect is significant (one-sample t over people, false discovery rate 5 %),
mean over draws of people, for the first half of each run and for all of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from nilearn.glm import fdr_threshold
from nilearn.glm.first_level import make_first_level_design_matrix
from scipy.stats import norm, t

from fmrisynth.evaluate.runs import HIGH_PASS_HZ, Plan, RunCohort, events_of, percent_of

SIZES, DRAWS, SHARES = (4, 6, 8, 12, 16), 20, (0.5, 1.0)


def effects(cohort: RunCohort, plan: Plan, condition: str, share: float) -> np.ndarray:
    """Effect of a condition in the first part of everybody's run, (N, V) percent."""
    found = []
    for runs in cohort.people.values():
        y_TV = percent_of(runs[0], plan.mask_XYZ)
        y_TV = y_TV[: round(share * len(y_TV))]
        events = [e for e in events_of(runs[0]) if e.onset_s < len(y_TV) * plan.tr_s - 8]
        table = pd.DataFrame([{"onset": e.onset_s, "duration": e.duration_s, "trial_type": e.label} for e in events])
        times_s = (np.arange(len(y_TV)) + 0.5) * plan.tr_s
        design = make_first_level_design_matrix(
            times_s, table, hrf_model="spm", drift_model="cosine", high_pass=HIGH_PASS_HZ
        )
        found.append((np.linalg.pinv(design.to_numpy()) @ y_TV)[design.columns.get_loc(condition)])
    return np.stack(found)


def detected(effects_NV: np.ndarray, n: int, rng: np.random.Generator) -> float:
    """Share of voxels that are significant with n people, mean over draws of them."""
    shares = []
    for _ in range(DRAWS if n < len(effects_NV) else 1):
        own = effects_NV[rng.permutation(len(effects_NV))[:n]]
        t_V = own.mean(axis=0) / (own.std(axis=0, ddof=1) / np.sqrt(n))
        z_V = norm.isf(t.sf(t_V, n - 1))
        shares.append(float((z_V >= fdr_threshold(z_V, 0.05)).mean()))
    return float(np.mean(shares))


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("synthetic", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--condition", required=True)
    arguments = parser.parse_args()
    real, synthetic = RunCohort.open(arguments.real), RunCohort.open(arguments.synthetic)
    plan, rng = Plan.of(real, synthetic), np.random.default_rng(0)
    sizes = [n for n in SIZES if n <= min(len(real.people), len(synthetic.people))]
    figure, axis = plt.subplots(figsize=(5.4, 3.4), constrained_layout=True)
    print("| significant voxels, % | " + " | ".join(f"{n} people" for n in sizes) + " |")
    print("| --- |" + " --- |" * len(sizes))
    for name, cohort, colour in (("real", real, "#2f5d9b"), ("synthetic", synthetic, "#e07a3f")):
        for share in SHARES:
            effects_NV = effects(cohort, plan, arguments.condition, share)
            curve = [100 * detected(effects_NV, n, rng) for n in sizes]
            label = f"{name}, {'whole run' if share == 1 else 'first half'}"
            print(f"| {label} | " + " | ".join(f"{value:.1f}" for value in curve) + " |")
            axis.plot(sizes, curve, color=colour, ls="-" if share == 1 else "--", marker="o", ms=3.5, label=label)
    axis.set_xlabel("people")
    axis.set_ylabel("significant voxels, %")
    axis.set_title(f"{arguments.condition}: detection", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.figure, dpi=150)


if __name__ == "__main__":
    main()
