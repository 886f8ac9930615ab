"""Whole evaluations of cohorts whose truth is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.bids.atomic import write_text
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import read_blocks
from fmrisynth.data.grid import make_grid
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.evaluate import evaluate_datasets
from fmrisynth.evaluate.analysis import Analysis, analyse
from fmrisynth.evaluate.baselines import GENERATORS
from fmrisynth.evaluate.cohorts import choose_cohorts
from fmrisynth.evaluate.parts import Parts
from fmrisynth.evaluate.verdicts import headline, judge
from fmrisynth.glm.design import window_design
from fmrisynth.glm.windows import percent_signal
from fmrisynth.stage import Stage
from tests.evaluate.conftest import CONDITIONS, Maker, brain_mask, smooth_map


def run(real: Path, synthetic: Path, config: EvaluateConfig, out: Path) -> tuple[Analysis, dict[str, str]]:
    analysis = analyse(choose_cohorts(real, synthetic, config), config, Stage("evaluate", out))
    return analysis, {line.key: line.answer for line in judge(analysis)}


def test_good_samples_pass(real_cohort, good_samples, quick, tmp_path):
    """Samples of the very process that made the cohort: near the ceiling everywhere."""
    analysis, outcomes = run(real_cohort, good_samples, quick, tmp_path)
    scores = analysis.comparison.scores
    ceiling = analysis.control.comparison.scores["corr"].value
    assert scores["corr"].value == pytest.approx(ceiling, abs=0.07)
    assert scores["corr"].low < scores["corr"].value < scores["corr"].high
    assert scores["corr"].p == pytest.approx(1 / 24)
    assert scores["top1"].value == 1.0
    assert {c: analysis.synthetic.properties.n_people(c) for c in CONDITIONS} == dict.fromkeys(CONDITIONS, 12)
    assert "fail" not in outcomes.values()
    assert "fail" not in {v.answer for v in analysis.control.verdicts}  # other real people
    assert [outcomes[key] for key in ("corr", "gain", "latency", "asymmetry", "copies", "distinct")] == ["pass"] * 6


def test_corr_is_near_its_analytic_value(maker, tmp_path):
    """Effect maps truth + noise: the correlation of two means is the reliability ratio.

    Group effects are ``t + e`` with var(e) = var(single effect) / n; ``corr = var(t) / sqrt((var t + v1)(var t + v2))``.
    """
    config = EvaluateConfig(split_half_repeats=0, baselines=False, glass_brain=False)
    rng = np.random.default_rng(6)
    white = {
        condition: smooth_map(rng, sigma=0.0) for condition in CONDITIONS
    }  # many independent voxels: a tight value
    strong = replace(maker, truth=white, subject_sd=1.5, subject_sigma=0.0)
    real = strong.cohort(tmp_path / "real", 5, test=5, n_blocks=1)
    samples = strong.samples(tmp_path / "samples", 6, 5)
    analysis, _ = run(real, samples, config, tmp_path)
    mask = brain_mask()
    design = window_design(0.0, 18.0, 12, 1.44)
    # AR(1) noise with rho 0.4: variance of the estimate is w' R w.
    w = design.pinv_PT[0]
    lags = np.abs(np.subtract.outer(range(12), range(12)))
    noise = float(w @ (0.4**lags) @ w)
    expected = []
    for condition in CONDITIONS:
        var_t = float(strong.truth[condition][mask].var())
        v = (1.5**2 + noise) / 5
        expected.append(var_t / (var_t + v))
    effects = np.mean(
        [
            np.corrcoef(*(s.properties.group(c).effect for s in (analysis.real, analysis.synthetic)))[0, 1]
            for c in CONDITIONS
        ]
    )
    assert effects == pytest.approx(np.mean(expected), abs=0.03)


def test_shuffled_labels_are_at_chance(real_cohort, maker, quick, tmp_path):
    """Labels turned one step round: no group map is right, and Corr is what the shared part of the maps gives."""
    labels = dict(zip(CONDITIONS, np.roll(CONDITIONS, 1), strict=True))
    samples = maker.samples(tmp_path / "shuffled", 9, 6, labels=labels)
    config = quick.model_copy(update={"baselines": False})
    analysis, outcomes = run(real_cohort, samples, config, tmp_path)
    scores = analysis.comparison.scores
    off = [np.corrcoef(maker.truth[a][brain_mask()], maker.truth[b][brain_mask()])[0, 1] for a, b in labels.items()]
    assert scores["top1"].value == 0.0
    assert scores["top1_per_sample"].value <= 0.25
    assert scores["corr"].value == pytest.approx(np.mean(off), abs=0.2)
    assert scores["corr"].p > 0.5
    assert [outcomes[key] for key in ("corr", "top1_per_sample", "utility")] == ["fail"] * 3


def _training_windows(real: Path):
    found: dict[str, list] = {}
    for block in read_blocks(real, split="train"):
        data = block.load()
        percent = np.zeros(data.bold_XYZT.shape, np.float32)
        percent[data.mask_XYZ] = percent_signal(data, data.mask_XYZ).T
        found.setdefault(block.condition, []).append((percent, data.reference_XYZ))
    return found


def test_copied_training_blocks_are_flagged(real_cohort, maker, quick, tmp_path):
    rng = np.random.default_rng(3)
    number = 0
    for condition, own in _training_windows(real_cohort).items():
        for percent, reference in own[:6]:
            number += 1
            maker.write(
                tmp_path / "copies",
                f"synth{number:04d}",
                [condition],
                rng,
                windows={condition: [percent]},
                reference=reference,
            )
    config = quick.model_copy(update={"baselines": False, "utility_grid": False})
    analysis, outcomes = run(real_cohort, tmp_path / "copies", config, tmp_path)
    assert outcomes["copies"] == outcomes["copied_anatomy"] == "fail"
    assert len(analysis.own.audits["dynamics"].copies) == 24
    assert "copies" in next(line.detail for line in judge(analysis) if line.key == "copies")


def test_class_mean_copies_score_well_and_fail_realism(real_cohort, maker, quick, tmp_path):
    """The generator that Corr alone would crown: every sample is the class mean with a breath of noise."""
    rng = np.random.default_rng(4)
    number = 0
    for condition, own in _training_windows(real_cohort).items():
        mean = np.mean([percent for percent, _ in own], axis=0)
        for _ in range(6):
            number += 1
            jitter = 0.02 * np.stack([smooth_map(rng) for _ in range(12)], axis=-1)
            maker.write(
                tmp_path / "means", f"synth{number:04d}", [condition], rng, windows={condition: [mean + jitter]}
            )
    config = quick.model_copy(update={"baselines": False, "utility_grid": False})
    analysis, outcomes = run(real_cohort, tmp_path / "means", config, tmp_path)
    assert analysis.comparison.scores["corr"].value > 0.75 * analysis.control.comparison.scores["corr"].value
    assert analysis.comparison.scores["top1"].value == 1.0
    assert outcomes["residual_variance"] == outcomes["effect_variance"] == "fail"
    assert outcomes["copies"] == "unclear"  # near everything, a copy of nothing
    assert "Voxel variance over time" in headline(judge(analysis), analysis.own.evidence.fewest)


def test_identical_samples_are_compared_by_effects_and_say_so(real_cohort, maker, quick, tmp_path):
    rng = np.random.default_rng(4)
    windows = {condition: [maker.window(rng, maker.truth[condition])] for condition in CONDITIONS}
    for number in range(8):
        condition = CONDITIONS[number % 4]
        maker.write(
            tmp_path / "same",
            f"synth{number:04d}",
            [condition],
            np.random.default_rng(0),
            windows={condition: windows[condition]},
        )
    config = quick.model_copy(update={"baselines": False})
    analysis, _ = run(real_cohort, tmp_path / "same", config, tmp_path)
    assert analysis.comparison.maps.kind == "effect"
    assert any("No between-subject variance" in note for note in analysis.comparison.notes)
    assert analysis.comparison.scores["corr"].value is not None


def test_report_and_metrics_are_whole(real_cohort, good_samples, quick, tmp_path, monkeypatch):
    summary = evaluate_datasets(tmp_path / "out", real=real_cohort, synthetic=good_samples, config=quick)
    assert any("as many real blocks of other people pass" in line for line in summary.lines)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["schema_version"] == "2.2"
    assert metrics["synthetic"]["scores"]["corr"]["n"] == 4
    assert set(metrics["baselines"]) == set(GENERATORS)
    assert metrics["baselines"]["class mean + residuals"]["scores"]["corr"]["value"] > 0.5
    audits = {name: baseline["checks"]["copies"]["answer"] for name, baseline in metrics["baselines"].items()}
    assert audits == {"class mean + residuals": "fail", "low-rank Gaussian": "pass"}
    line = next(line for line in metrics["summary"] if line["key"] == "realism_baselines")
    assert all(
        name in line["detail"].split("not counted as rivals")[1] for name, answer in audits.items() if answer == "fail"
    )
    assert not line["counted"]
    assert metrics["reliability"]["synthetic"]["value"] is None  # every sample is a person
    assert "reliability" not in [line["key"] for line in metrics["summary"]]
    assert "NaN" not in (tmp_path / "out/metrics.json").read_text()
    text = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#|figures/)", text)
    assert "url(" not in text
    assert text.count("<figure") >= 12
    for heading in ("Summary", "Activation maps", "Checks", "Privacy", "Time courses"):
        assert f">{heading}</h2>" in text

    monkeypatch.setattr("fmrisynth.evaluate.page.write_report", lambda path, *_: write_text(path, ""))
    again = evaluate_datasets(tmp_path / "again", real=real_cohort, synthetic=good_samples, config=quick)
    assert json.loads((tmp_path / "again/metrics.json").read_text()) == metrics
    assert again.lines[:-1] == summary.lines[:-1]


def test_other_settings_make_again_only_what_depends_on_them(real_cohort, good_samples, quick, tmp_path, monkeypatch):
    def call(**settings) -> tuple[dict, list[str]]:
        evaluate_datasets(
            tmp_path / "out", real=real_cohort, synthetic=good_samples, config=quick.model_copy(update=settings)
        )
        told, reads[:] = list(reads), []
        return json.loads((tmp_path / "out/metrics.json").read_text()), told

    reads: list[str] = []
    monkeypatch.setattr(
        "fmrisynth.evaluate.page.write_report", lambda path, *_: write_text(path, "")
    )  # the pictures take longest
    stream = Parts.stream
    monkeypatch.setattr(Parts, "stream", lambda self, blocks, what: (reads.append(what), stream(self, blocks, what))[1])
    first, told = call()
    assert told == ["training blocks", "real blocks", "synthetic blocks", "training blocks of the baselines"]
    repeats, told = call(split_half_repeats=9)
    assert told == []
    assert repeats["synthetic"] == first["synthetic"]
    assert repeats["ceiling"]["split_half"] != first["ceiling"]["split_half"]
    _, told = call(baseline_samples=7)
    assert told == ["training blocks of the baselines"]
    again, told = call()
    assert told == ["training blocks of the baselines"]
    assert again == first


@pytest.mark.parametrize("n_conditions", [1, 2])
def test_few_conditions_are_reduced_and_labelled(real_cohort, good_samples, quick, tmp_path, n_conditions):
    config = quick.model_copy(update={"baselines": False, "conditions": CONDITIONS[:n_conditions]})
    analysis, outcomes = run(real_cohort, good_samples, config, tmp_path)
    scores = analysis.comparison.scores
    assert scores["rsa_pearson"].value is None
    assert "RSA needs three" in scores["rsa_pearson"].note
    assert scores["corr"].value is not None
    assert scores["top1"].value == 1.0  # among all four real conditions
    assert any("stay candidates" in note for note in analysis.notes)
    assert outcomes["rsa"] == "unclear"


def test_one_subject_falls_back_to_fixed_effects(maker, good_samples, quick, tmp_path):
    maker.cohort(tmp_path / "one", 4, test=1)
    analysis, outcomes = run(tmp_path / "one", good_samples, quick, tmp_path)
    assert {analysis.real.properties.model(c) for c in CONDITIONS} == {"single subject: fixed effects"}
    notes = " ".join([*analysis.notes, *analysis.comparison.notes, analysis.split_half_note, analysis.control_note])
    for part in ("single subject", "No control", "No split-half", "no baselines were fitted"):
        assert part in notes
    assert 0.3 < analysis.comparison.scores["corr"].value < 1
    assert set(outcomes.values()) <= {
        "unclear",
        "pass",
    }  # one subject makes no red verdict, and no green one that needs an interval
    assert outcomes["corr"] == outcomes["roi_agreement"] == "unclear"


def test_refusals(real_cohort, good_samples, maker, quick, tmp_path):
    with pytest.raises(UsageError, match="did you mean motor_rh"):
        choose_cohorts(real_cohort, good_samples, quick.model_copy(update={"conditions": ("motor_rg",)}))
    with pytest.raises(FmrisynthError, match="there is nothing"):
        choose_cohorts(tmp_path / "nothing", good_samples, quick)
    other = Maker(maker.truth | {"wm_2bk": maker.truth["motor_rh"]})
    other.samples(tmp_path / "other", 1, 1, conditions=("wm_2bk",))
    with pytest.raises(FmrisynthError, match="share none"):
        choose_cohorts(real_cohort, tmp_path / "other", quick)
    replace(maker, tr_s=2.0).samples(tmp_path / "slow", 1, 1, conditions=CONDITIONS[:1])
    with pytest.raises(FmrisynthError, match=r"expected 12 frames of 1\.44 s"):
        choose_cohorts(real_cohort, tmp_path / "slow", quick)
    moved = maker.grid.affine
    moved[0, 3] += 3
    shifted = make_grid(maker.grid.shape, moved, maker.grid.space)
    replace(maker, grid=shifted).samples(tmp_path / "shifted", 1, 1, conditions=CONDITIONS[:1])
    with pytest.raises(FmrisynthError, match="the grids differ"):
        choose_cohorts(real_cohort, tmp_path / "shifted", quick)


def test_constant_samples_are_refused(real_cohort, maker, quick, tmp_path):
    flat = {CONDITIONS[0]: [np.zeros((16, 16, 16, 12), np.float32)]}
    for number in range(2):
        maker.write(tmp_path / "flat", f"synth{number:04d}", CONDITIONS[:1], np.random.default_rng(0), windows=flat)
    with pytest.raises(FmrisynthError, match="constant"):
        run(real_cohort, tmp_path / "flat", quick, tmp_path)


def test_tokenizer_ceiling_is_below_one_and_above_the_samples_blur(real_cohort, good_samples, quick, tmp_path, maker):
    """4x mean pooling keeps the smooth truth and loses detail; the ceiling is what it leaves of the real maps."""
    import torch

    from fmrisynth.config.tokenize import PoolingConfig
    from fmrisynth.models.tokenizers import TokenizerInfo, build_tokenizer

    mask = brain_mask()
    info = TokenizerInfo(
        kind="pooling", normalisation="dynamics", grid=maker.grid, tr_s=1.44, n_frames=12, latent_channels=1,
        mask_XYZ=mask, reference_XYZ=np.where(mask, 10_000.0, 0.0).astype(np.float32),
    )  # fmt: skip
    tokenizer = build_tokenizer(PoolingConfig(), info)
    tokenizer.set_latent_statistics(torch.zeros(1), torch.ones(1))
    tokenizer.save(tmp_path / "tokenizer")
    config = quick.model_copy(update={"tokenizer": tmp_path / "tokenizer", "baselines": False, "utility_grid": False})
    analysis, _ = run(real_cohort, good_samples, config, tmp_path)
    found = analysis.tokenizer_ceiling.scores["corr"].value
    assert 0.5 < found < 0.99


def test_other_grid_is_resampled_when_asked(real_cohort, maker, quick, tmp_path):
    """Samples on a grid moved by half a voxel: resampled, named in a note, and still recognisable."""
    moved = maker.grid.affine
    moved[:3, 3] += 1.5
    shifted = make_grid(maker.grid.shape, moved, maker.grid.space)
    replace(maker, grid=shifted).samples(tmp_path / "shifted", 1, 2)
    config = quick.model_copy(update={"resample": True})
    cohorts = choose_cohorts(real_cohort, tmp_path / "shifted", config, tmp_path / "work")
    assert cohorts.synthetic[0].load_grid().same_as(maker.grid)
    assert any("resampled" in note for note in cohorts.notes)
    assert 0.6 * brain_mask().sum() < cohorts.mask_XYZ.sum() < brain_mask().sum()


def test_single_samples_are_held_against_single_real_blocks(maker, quick, tmp_path):
    """Samples of the very process that made the cohort, in which a subject's mean of six blocks is much clearer than a block."""
    noisy = replace(maker, noise_sd=8.0)
    real = noisy.cohort(tmp_path / "real", 11, train=12, test=8, n_blocks=4)
    samples = noisy.samples(tmp_path / "samples", 12, 20)
    analysis, outcomes = run(real, samples, quick.model_copy(update={"baselines": False}), tmp_path)
    own, ceiling = (j.comparison.scores["top1_per_sample"] for j in (analysis.own, analysis.control))
    assert ceiling.n == own.n == 80
    assert own.value < 0.9  # a single block is hard to name
    assert ceiling.low < own.value < ceiling.high
    assert outcomes["top1_per_sample"] != "fail"


def test_people_who_respond_as_themselves_only_in_one_block_are_told(maker, real_cohort, quick, tmp_path):
    """As many people with two blocks as real ones; their blocks differ as much, but not by person."""
    rng, root = np.random.default_rng(31), tmp_path / "people"
    for index in range(8):
        own = {c: [maker.truth[c] + maker.subject_sd * smooth_map(rng) for _ in range(2)] for c in CONDITIONS}
        windows = {c: [maker.window(rng, effect) for effect in effects] for c, effects in own.items()}
        maker.write(root, f"synth{index:04d}", CONDITIONS, rng, windows=windows)
    analysis, _ = run(real_cohort, root, quick.model_copy(update={"baselines": False}), tmp_path)
    real, samples, others = (analysis.reliability[name] for name in ("real", "synthetic", "control"))
    assert samples.low < 0 < samples.high < real.low
    assert others.value > samples.high
    line = next(line for line in judge(analysis) if line.key == "reliability")
    assert (line.answer, line.counted) == ("info", False)
    assert "as many real blocks of other people" in line.detail
