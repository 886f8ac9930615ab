"""``fmrisynth evaluate --unit run``: measure, judge, ``metrics.json`` and the report.

Axis legend: K conditions, V voxels of the common mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmrisynth.bids.origin import read_origin
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.reconstruct import reconstructed, tokenizer_of
from fmrisynth.evaluate.run_checks import MIN_PEOPLE, RunVerdict, judge, run_checks, slopes, slopes_on_truth
from fmrisynth.evaluate.runs import BANDS_HZ, Plan, RunCohort, RunNumbers, measure, regions_of
from fmrisynth.evaluate.truth import read_truth
from fmrisynth.glm.map_scores import pearson
from fmrisynth.glm.maps import to_volume
from fmrisynth.glm.windows import percent_signal
from fmrisynth.progress import count, log
from fmrisynth.report import Cards, Element, Figure, Page, Section, Table, Text, Verdicts
from fmrisynth.report import figures as draw
from fmrisynth.report.brain import mosaic
from fmrisynth.report.html import Card, Status, Verdict, banner_of

if TYPE_CHECKING:
    from fmrisynth.models.tokenizers.base import Tokenizer

STATUS: dict[str, Status] = {"passes": "pass", "fails": "fail", "cannot tell": "warn"}


def evaluate_runs(
    real_root: Path, synthetic_root: Path, config: EvaluateConfig
) -> tuple[dict[str, Any], Page, list[str]]:
    """Compare two datasets of whole runs.

    Returns
    -------
    metrics : dict
        Content of ``metrics.json``.
    page : Page
        The report.
    lines : list of str
        For the screen.
    """
    real, synthetic = RunCohort.open(real_root, config.test_split), RunCohort.open(synthetic_root)
    plan = Plan.of(real, synthetic)
    tokenizer = None if config.tokenizer is None else _tokenizer(config.tokenizer, plan)
    # Regions are where the real group responds most, which takes a reading of its own.
    first = measure(real, plan, None, "Real runs, effects")
    regions_RV = regions_of(np.stack([person.effects_KV for person in first]))
    del first
    people = measure(real, plan, regions_RV, "Real runs"), measure(synthetic, plan, regions_RV, "Synthetic runs")
    if tokenizer is not None and len(people[0]) < 4:
        log.warning(
            "%s: has fewer than four people, two for each half, so nothing is said of the tokenizer.", real_root
        )
        tokenizer = None
    verdicts = judge(run_checks(plan.tr_s), *people)
    ceiling = None if tokenizer is None else _ceiling(tokenizer, config.seed, real, plan, regions_RV, people[0])
    truth = None if config.truth is None else _truth(config.truth, plan, people)
    n_passed = sum(v.answer == "passes" for v in verdicts)
    n_failed = sum(v.answer == "fails" for v in verdicts)
    head = (
        f"{n_passed} of {len(verdicts)} checks pass, {n_failed} fail, {len(verdicts) - n_passed - n_failed} cannot tell"
    )
    metrics = {
        "unit": "run", "conditions": plan.conditions,
        "datasets": {
            name: {
                "name": cohort.root.name, "people": len(cohort.people), "runs": len(cohort.runs),
                "origin": read_origin(cohort.root).to_json(),
            }
            for name, cohort in (("real", real), ("synthetic", synthetic))
        },
        "checks": {v.check.key: _verdict_json(v) for v in verdicts},
        "tokenizer": ceiling, "slopes": slopes(*people), "truth": truth, "config_hash": config.digest(),
    }  # fmt: skip
    page = Page(
        title="Whole runs: synthetic against real" if not read_origin(real_root).is_phantom else "Whole runs: synthetic against phantom",
        subtitle=head,
        banner=banner_of(read_origin(real_root), read_origin(synthetic_root)),
        facts=(
            ("real", f"{real_root.name}: {len(real.people)} people, {count(len(real.runs), 'run')}"),
            ("synthetic", f"{synthetic_root.name}: {len(synthetic.people)} people, {count(len(synthetic.runs), 'run')}"),
            ("conditions", ", ".join(plan.conditions)),
        ),
        sections=[
            Section("Checks", _checks(verdicts, ceiling or {})),
            Section("Group maps", _maps(plan, people, real)),
            Section("Responses", _responses(plan, people)),
            Section("What of which condition is in which map", _slopes(plan, slopes(*people), truth)),
            Section("Signal over minutes", _spectrum(people)),
            Section("Methods", _methods(plan, ceiling is not None)),
        ],
    )  # fmt: skip
    return (
        metrics,
        page,
        [head, *(f"{v.check.title}: {_number(v)}: {v.answer}" for v in verdicts if v.answer != "passes")],
    )


def _tokenizer(folder: Path, plan: Plan) -> Tokenizer:
    """The tokenizer of a folder.

    Raises
    ------
    FmrisynthError
        It was made for another grid or repetition time.
    """
    tokenizer = tokenizer_of(folder, plan.grid)
    if abs(tokenizer.info.tr_s - plan.tr_s) > 1e-3:
        raise FmrisynthError(
            f"{folder}: its observation noise was measured every {tokenizer.info.tr_s:g} s, the runs have a volume every "
            f"{plan.tr_s:g} s; give the tokenizer of the model that made them."
        )
    return tokenizer


def _ceiling(
    tokenizer: Tokenizer, seed: int, real: RunCohort, plan: Plan, regions_RV: np.ndarray, people: Sequence[RunNumbers]
) -> dict[str, float]:
    """Every check's number for real runs after a tokenizer's encode and decode and with its observation noise.

    Half of the people after it stand against the other half before it, and the other way round: a person's own noise on both sides
    would count as agreement, and in the mean of both what the halves differ in cancels.
    """
    seeds = {run.path: seed + number for number, run in enumerate(real.runs)}

    def read(run: Block, mask_XYZ: np.ndarray) -> np.ndarray:
        return percent_signal(reconstructed(run.load(), tokenizer, seeds[run.path]), mask_XYZ)

    after = measure(real, plan, regions_RV, "Real runs, through the tokenizer", read)
    odd, even = slice(None, None, 2), slice(1, None, 2)
    pairs = [(people[one], after[other]) for one, other in ((odd, even), (even, odd))]
    return {
        check.key: float(np.mean([check.compute(*pair).mean() for pair in pairs])) for check in run_checks(plan.tr_s)
    }


def _verdict_json(verdict: RunVerdict) -> dict[str, Any]:
    return {
        "title": verdict.check.title, "value": verdict.value, "interval": [verdict.low, verdict.high], "each": verdict.each,
        "limits": [verdict.check.least, verdict.check.most], "answer": verdict.answer,
    }  # fmt: skip


def _truth(root: Path, plan: Plan, people: tuple[Sequence[RunNumbers], Sequence[RunNumbers]]) -> dict[str, Any]:
    """Group maps of both datasets against the planted ones."""
    found = [read_truth(root, condition, plan.grid) for condition in plan.conditions]
    unknown = [c for c, truth_XYZ in zip(plan.conditions, found, strict=True) if truth_XYZ is None]
    if unknown:
        log.warning("%s: no truth of %s, so group maps are not compared with any.", root, ", ".join(unknown))
        return {}
    truth_KV = np.stack([truth_XYZ[plan.mask_XYZ] for truth_XYZ in found if truth_XYZ is not None])
    content: dict[str, Any] = {}
    for name, own in zip(("real", "synthetic"), people, strict=True):
        group_KV = np.mean([person.effects_KV for person in own], axis=0)
        content[name] = {
            "r": [float(pearson(one, other)) for one, other in zip(group_KV, truth_KV, strict=True)],
            "slopes": slopes_on_truth(truth_KV, own),
        }
    return content


def _number(verdict: RunVerdict) -> str:
    if not math.isfinite(verdict.value):
        return "not to be had from runs like these"
    return f"{verdict.value:.2f}{f' {verdict.check.unit}' if verdict.check.unit else ''} ({_interval(verdict)})"


def _interval(verdict: RunVerdict) -> str:
    if not math.isfinite(verdict.low):
        return f"no interval, fewer than {MIN_PEOPLE} people"
    return f"95 %: {verdict.low:.2f} to {verdict.high:.2f}"


def _checks(verdicts: Sequence[RunVerdict], ceiling: Mapping[str, float]) -> list[Element]:
    cards = [
        Card(v.check.title.partition(",")[0], f"{v.value:.2f}", _interval(v), STATUS[v.answer]) for v in verdicts[:4]
    ]
    told = [
        Verdict(
            STATUS[v.answer],
            v.check.title,
            f"{_number(v)}; passes between {v.check.least:.2f} and {v.check.most:.2f}: {v.answer}."
            + (
                f" Real runs through the tokenizer: {ceiling[v.check.key]:.2f}."
                if math.isfinite(ceiling.get(v.check.key, math.nan))
                else ""
            ),
        )
        for v in verdicts
    ]
    return [Cards(cards), Verdicts(told)]


def _maps(plan: Plan, people: tuple[Sequence[RunNumbers], Sequence[RunNumbers]], real: RunCohort) -> list[Element]:
    groups = [np.mean([person.effects_KV for person in own], axis=0) for own in people]
    background = real.runs[0].load().reference_XYZ
    rows, limits = [], []
    for k, condition in enumerate(plan.conditions):
        limit = float(np.percentile(np.abs(groups[0][k]), 99.5))
        for name, group_KV in zip(("real", "synthetic"), groups, strict=True):
            rows.append((f"{condition}, {name}", to_volume(group_KV[k], plan.mask_XYZ)))
            limits.append(limit)
    figure = mosaic(
        rows, background, plan.mask_XYZ, plan.grid, threshold=0.33, relative_threshold=True, limits=limits, unit="%"
    )
    caption = (
        "Mean effects of whole runs in percent signal change, canonical response; "
        "values under a third of the limit are not shown."
    )
    return [
        Figure.of(figure, caption, name="maps"),
        Figure.of(draw.scatter_figure(*groups, plan.conditions, unit="%"), "Voxel by voxel; the line is equality.", name="voxels"),
    ]  # fmt: skip


def _responses(plan: Plan, people: tuple[Sequence[RunNumbers], Sequence[RunNumbers]]) -> list[Element]:
    panels: list[Mapping[str, object]] = []
    for k, condition in enumerate(plan.conditions):
        lines = {}
        for name, own in zip(("real", "synthetic"), people, strict=True):
            courses_NL = np.stack([person.fir_KLR[k, : plan.n_lags_K[k], k] for person in own])
            lines[name] = (courses_NL.mean(axis=0), courses_NL.std(axis=0, ddof=1) / np.sqrt(len(own)), name)
        panels.append({"title": condition, "lines": lines})
    said = (
        "Finite impulse responses in each condition's own region (where real people respond most), from the onset of its events; bands: "
        "standard error over people."
    )
    figure = draw.courses_figure(panels, plan.tr_s, xlabel="time from the onset (s)")
    return [Figure.of(figure, said, vector=True, name="responses")]


def _slopes(plan: Plan, slopes_KK: np.ndarray, truth: Mapping[str, Any] | None) -> list[Element]:
    columns = ["synthetic map of", *plan.conditions]
    rows = [[c, *map(float, row)] for c, row in zip(plan.conditions, slopes_KK, strict=True)]
    said = "How much of each real map (columns) is in each synthetic one: 1 on the diagonal and 0 elsewhere would be perfect."
    elements: list[Element] = [Table(columns, rows, said)]
    for name, found in (truth or {}).items():
        rows = [
            [c, r, *map(float, row)] for c, r, row in zip(plan.conditions, found["r"], found["slopes"], strict=True)
        ]
        elements.append(
            Table(
                [f"{name} map of", "r with truth", *plan.conditions],
                rows,
                f"The {name} group maps against the planted truth: correlation, and how much of each true map.",
            )
        )
    return elements


def _spectrum(people: tuple[Sequence[RunNumbers], Sequence[RunNumbers]]) -> list[Element]:
    power = [np.mean([person.power_B for person in own], axis=0) for own in people]
    bands = [f"{low:g} to {high:g}" for low, high in pairwise(BANDS_HZ)]
    rows = [[band, float(r), float(s)] for band, r, s in zip(bands, *power, strict=True)]
    return [
        Table(
            ["Hz", "real, %²", "synthetic, %²"],
            rows,
            "Power of voxels by frequency, task and all; below 0.01 Hz lie drifts of minutes.",
        )
    ]


def _methods(plan: Plan, with_tokenizer: bool) -> list[Element]:
    said = (
        " Real runs through the tokenizer: half of the people, encoded, decoded and with its observation noise, as samples have it, "
        "against the other half as they are, and the other way round; what a perfect network would reach, but for chance."
    )  # fmt: skip
    return [Text(
        "Every run is taken in percent of its temporal mean, inside the voxels that all masks share. Effects: "
        "canonical (SPM) responses and cosine drifts (128 s is 0.008 Hz; here 0.01 Hz), ordinary least squares, no "
        "smoothing. Impulse responses: one column per lag from the onset. Borders are looked for every "
        f"{plan.window_frames} frames. Intervals: delete-one jackknife over the people of both datasets, 95 %; a check "
        "passes when its whole interval lies inside the limits and fails when it lies outside." + (said if with_tokenizer else "")
    )]  # fmt: skip
