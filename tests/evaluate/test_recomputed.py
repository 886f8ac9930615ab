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


def _effects(root: Path, mask_XYZ: np.ndarray, chosen) -> dict[str, dict[str, list[np.ndarray]]]:
    """Effects of blocks by condition and person."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for row in _rows(root):
        if chosen(row):
            person = found.setdefault(row["condition"], {}).setdefault(row["subject"].removeprefix("sub-"), [])
            person.append(_effect(root, row, mask_XYZ))
    return found


def _group(effects: dict[str, dict[str, list[np.ndarray]]], only=None) -> dict[str, np.ndarray]:
    """z of each condition: people's means over blocks first."""
    return {
        c: _z(np.stack([np.mean(own, axis=0) for name, own in people.items() if only is None or name in only]))
        for c, people in effects.items()
    }


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


def _single_hits(real: dict[str, np.ndarray], effects: dict[str, dict[str, list[np.ndarray]]]) -> float:
    """Share of single blocks whose own effect map is nearest to their condition's real map."""
    hits = [
        max(real, key=lambda name: np.corrcoef(effect, real[name])[0, 1]) == condition
        for condition, people in effects.items()
        for own in people.values()
        for effect in own
    ]
    return float(np.mean(hits))


def test_scores_and_ceilings_agree_with_nilearn_and_numpy(real_cohort, good_samples, quick, tmp_path):
    cohorts = choose_cohorts(real_cohort, good_samples, quick)
    analysis = analyse(
        cohorts, quick.model_copy(update={"baselines": False, "utility_grid": False}), Stage("evaluate", tmp_path)
    )
    mask = cohorts.mask_XYZ
    people = _effects(real_cohort, mask, lambda row: row["split"] == "test")
    samples = _effects(good_samples, mask, lambda row: True)
    real = _group(people)
    names = ("corr", "rsa_pearson", "top1", "top1_per_sample")
    scores = analysis.comparison.scores
    expected = (*_scores(real, _group(samples)), _single_hits(real, samples))
    assert [scores[name].value for name in names] == pytest.approx(expected, abs=1e-6)

    # The ceilings: the chosen blocks of either half of the training people, each in the place of a sample.
    verdicts = {v.check.key: v for v in analysis.own.verdicts}
    for half in (analysis.peer, None):
        chosen = (
            set(half.people_N) if half is not None else {b.subject for b in cohorts.train} - set(analysis.peer.people_N)
        )
        single = _effects(real_cohort, mask, lambda row, own=chosen: row["subject"].removeprefix("sub-") in own)
        maps = {c: _z(np.stack([effect for own in of.values() for effect in own])) for c, of in single.items()}
        ceiling = (*_scores(real, maps), _single_hits(real, single))
        if half is not None:  # the peers, whom shares are of
            found = [verdicts[key].real for key in ("corr", "rsa", "top1_per_sample")]
            assert found == pytest.approx([ceiling[0], ceiling[1], ceiling[3]], abs=1e-6)
        else:  # the control, through the same scores as the samples
            control = analysis.control.comparison.scores
            assert [control[name].value for name in names] == pytest.approx(ceiling, abs=1e-6)

    # Random halves of the test people, drawn as the seed says.
    rng, order, drawn = np.random.default_rng(quick.seed), sorted(next(iter(people.values()))), []
    for _ in range(quick.split_half_repeats):
        first = {order[i] for i in rng.permutation(len(order))[: len(order) // 2]}
        drawn.append(_scores(_group(people, first), _group(people, set(order) - first)))
    halves = np.mean(drawn, axis=0)
    assert [analysis.split_half[name].value for name in names[:3]] == pytest.approx(halves, abs=1e-6)
    assert analysis.noise_free_corr == pytest.approx(np.sqrt(2 * halves[0] / (1 + halves[0])), abs=1e-6)
