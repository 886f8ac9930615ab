"""Corr, RSA, Top-1 and their ceilings once more, from the images on disk with nilearn and numpy alone."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix
from scipy import stats

from fmrisynth.evaluate.analysis import analyse
from fmrisynth.evaluate.cohorts import choose_cohorts
from fmrisynth.stage import Stage


def _rows(root: Path) -> list[dict[str, str]]:
    tables = [
        pd.read_csv(path, sep="\t", dtype=str).assign(subject=path.parent.name)
        for path in sorted(root.glob("sub-*/*_scans.tsv"))
    ]
    return pd.concat(tables).to_dict("records")


def _effect(root: Path, row: dict[str, str], mask_XYZ: np.ndarray) -> np.ndarray:
    path = root / row["subject"] / row["filename"]
    bold = nib.load(path).get_fdata()[mask_XYZ]
    stem = path.name.split("_desc-")[0]
    reference = nib.load(path.parent / f"{stem}_boldref.nii.gz").get_fdata()[mask_XYZ]
    percent_TV = (100 * (bold / reference[:, None] - 1)).T
    events = pd.DataFrame({"onset": [0.0], "duration": [float(row["duration_s"])], "trial_type": ["block"]})
    design = make_first_level_design_matrix(np.arange(12) * 1.44, events, hrf_model="spm", drift_model=None)
    return np.linalg.lstsq(design.to_numpy(), percent_TV, rcond=None)[0][0]


def _z(effects_SV: np.ndarray) -> np.ndarray:
    t = stats.ttest_1samp(effects_SV, 0).statistic
    return stats.norm.isf(stats.t.sf(np.abs(t), len(effects_SV) - 1)) * np.sign(t)


def _group(root: Path, mask_XYZ: np.ndarray, chosen) -> dict[str, np.ndarray]:
    """z of each condition: people's means over blocks first."""
    effects: dict[str, dict[str, list[np.ndarray]]] = {}
    for row in _rows(root):
        if chosen(row):
            person = effects.setdefault(row["condition"], {}).setdefault(row["subject"], [])
            person.append(_effect(root, row, mask_XYZ))
    return {c: _z(np.stack([np.mean(own, axis=0) for own in people.values()])) for c, people in effects.items()}


def _scores(real: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[float, float, float]:
    names = list(other)
    cross = np.array([[np.corrcoef(other[a], real[b])[0, 1] for b in names] for a in names])
    upper = np.triu_indices(len(names), 1)
    geometry = [np.corrcoef(np.stack([maps[c] for c in names]))[upper] for maps in (real, other)]
    return (
        float(np.diag(cross).mean()),
        float(np.corrcoef(*geometry)[0, 1]),
        float((cross.argmax(axis=1) == np.arange(len(names))).mean()),
    )


def test_scores_and_ceilings_agree_with_nilearn_and_numpy(real_cohort, good_samples, quick, tmp_path):
    cohorts = choose_cohorts(real_cohort, good_samples, quick)
    analysis = analyse(
        cohorts, quick.model_copy(update={"baselines": False, "utility_grid": False}), Stage("evaluate", tmp_path)
    )
    mask = cohorts.mask_XYZ
    real = _group(real_cohort, mask, lambda row: row["split"] == "test")
    found = _scores(real, _group(good_samples, mask, lambda row: True))
    scores = analysis.comparison.scores
    assert [scores[name].value for name in ("corr", "rsa_pearson", "top1")] == pytest.approx(found, abs=1e-6)

    # The ceiling: the chosen blocks of the other half of the training people, each in the place of a sample.
    rows = analysis.peer.properties.rows
    single = {c: [] for c in cohorts.conditions}
    people = set(rows.people_N)
    for row in _rows(real_cohort):
        if row["subject"].removeprefix("sub-") in people:
            single[row["condition"]].append(_effect(real_cohort, row, mask))
    ceiling = _scores(real, {c: _z(np.stack(v)) for c, v in single.items()})
    verdicts = {v.check.key: v for v in analysis.own.verdicts}
    assert (verdicts["corr"].real, verdicts["rsa"].real) == pytest.approx(ceiling[:2], abs=1e-6)
