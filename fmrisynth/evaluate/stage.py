"""``fmrisynth evaluate``: analysis, ``metrics.json``, maps and report."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fmrisynth import __version__
from fmrisynth.bids.atomic import write_json
from fmrisynth.bids.origin import read_origin
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import subjects_of
from fmrisynth.data.forecasts import are_forecasts
from fmrisynth.embed.encoder import find_encoder
from fmrisynth.errors import FmrisynthError, must_exist
from fmrisynth.evaluate.analysis import Analysis, Judged, analyse
from fmrisynth.evaluate.cohorts import choose_blocks, choose_cohorts
from fmrisynth.evaluate.runs import RunCohort
from fmrisynth.evaluate.scoring import Comparison, Score
from fmrisynth.evaluate.verdicts import SCORE_TITLES, Judgement, headline, judge, show
from fmrisynth.models.bundled import tokenizer_dir
from fmrisynth.progress import StageSummary
from fmrisynth.report import write_page
from fmrisynth.stage import Stage, Unit

SCHEMA_VERSION = "2.2"
METHOD = 4
"""Of the numbers: evaluations by an earlier method are made again."""

METRICS = Path("metrics.json")
REPORT = Path("report.html")


OPTIONAL_INPUTS = ("rois", "roi_atlas", "roi_labels", "tokenizer", "truth", "training", "encoder", "inception")
"""Settings that are files or folders: their content counts, and where they lie does not."""


def run_stage(out: Path, real: Path, synthetic: Path, config: EvaluateConfig, *, force: bool = False) -> StageSummary:
    """Evaluate and write (see `fmrisynth.evaluate.evaluate_datasets`).

    Other settings than those of an earlier call are no reason to refuse: summaries that do not depend on them are kept.
    """
    if config.tokenizer is not None:  # the word bundled, too
        config = config.model_copy(update={"tokenizer": tokenizer_dir(config.tokenizer)})
    about: dict[str, Any] = {key: value for key, value in config if key not in OPTIONAL_INPUTS}
    inputs = {name: getattr(config, name) for name in OPTIONAL_INPUTS if getattr(config, name) is not None}
    for name, path in inputs.items():
        must_exist(path, f"what {name} names")
    if "encoder" in inputs:
        inputs["encoder"] = find_encoder(inputs["encoder"])
    if config.unit == "run":
        RunCohort.open(real), RunCohort.open(synthetic)
    elif config.unit == "anatomy":
        subjects_of(real), subjects_of(synthetic)
    else:
        choose_blocks(real, synthetic, config)
    for name, path in ({"real": real, "synthetic": synthetic} | inputs).items():
        about[name] = _content(path / "ground_truth" if (path / "ground_truth").is_dir() and name == "truth" else path)
    stage = Stage.begin(
        "evaluate", out, config, version=METHOD, sources=[real, synthetic], known=["evaluation"], settings={}, force=force,
        title=f"Evaluation of {synthetic.name} against {real.name}",
        readme=(
            "`report.html` is for people, `metrics.json` for machines; both hold the same numbers. "
            "`parts` is what later calls need not compute again."
        ),
        origin=read_origin(synthetic),
    )  # fmt: skip
    unit = Unit("evaluation", about, lambda: _evaluate(stage, real, synthetic, config), METRICS)
    try:
        return stage.summary(stage.do(unit, wait=False))
    except FmrisynthError:
        stage.withdraw()
        raise


def _content(path: Path) -> list[Path]:
    """The files of an input that count; of a block dataset the subjects'."""
    if not path.is_dir():
        return [path]
    folders = sorted(path.glob("sub-*/")) or [path]
    found = (entry for folder in folders for entry in sorted(folder.rglob("*")))
    return [entry for entry in found if entry.is_file() and not entry.name.startswith(".")]


def _evaluate(stage: Stage, real: Path, synthetic: Path, config: EvaluateConfig) -> list[str]:
    out = stage.out
    if config.unit != "block":
        if config.unit == "run":
            from fmrisynth.evaluate.run_stage import evaluate_runs as compare
        elif are_forecasts(synthetic):
            from fmrisynth.evaluate.forecasts import evaluate_forecasts as compare
        else:
            from fmrisynth.evaluate.anatomies import evaluate_anatomies as compare
        metrics, page, told = compare(real, synthetic, config)
        write_page(out / REPORT, page)
        write_json(
            out / METRICS, without_nan(metrics | {"schema_version": SCHEMA_VERSION, "fmrisynth_version": __version__})
        )
        return told
    with TemporaryDirectory(prefix="fmrisynth-evaluate-") as work:
        analysis = analyse(choose_cohorts(real, synthetic, config, Path(work)), config, stage)
    lines = judge(analysis)

    from fmrisynth.evaluate.page import write_report

    write_report(out / REPORT, analysis, lines, config, real, synthetic)
    write_json(out / METRICS, without_nan(metrics_of(analysis, lines, config, real, synthetic)))
    told = [headline(lines, analysis.own.evidence.fewest)]
    for name, title in SCORE_TITLES.items():
        score = analysis.comparison.scores.get(name)
        if score is not None:
            told.append(f"{title}: {show(score) if score.value is not None else score.note}")
    told += [line.detail for line in lines if line.key == "reliability"]
    told += [f"Note: {note}" for note in [*analysis.notes, *analysis.comparison.notes]]
    return told


def _scores_json(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: score.to_json() for name, score in scores.items()}


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "scores": _scores_json(comparison.scores), "corr_per_condition": comparison.corr_per_condition,
        "maps": comparison.maps.kind, "notes": comparison.notes,
    }  # fmt: skip


def _judged_json(judged: Judged | None) -> dict[str, Any]:
    if judged is None:
        return {}
    return _comparison_json(judged.comparison) | {
        "checks": {v.check.key: v.to_json() for v in judged.verdicts},
        "privacy": {name: audit.to_json() for name, audit in judged.audits.items()},
    }


def metrics_of(
    analysis: Analysis, lines: list[Judgement], config: EvaluateConfig, real_root: Path, synthetic: Path
) -> dict[str, Any]:
    """The content of ``metrics.json``; see ``docs/metrics.md`` for every field."""
    cohorts, real = analysis.cohorts, analysis.real.properties
    return {
        "schema_version": SCHEMA_VERSION,
        "fmrisynth_version": __version__,
        "config_hash": config.digest(),
        "seed": config.seed,
        "datasets": {
            "real": real_root.name, "synthetic": synthetic.name,
            "origin": {"real": read_origin(real_root).to_json(), "synthetic": read_origin(synthetic).to_json()},
            "space": cohorts.grid.space,
            "grid_shape": list(cohorts.grid.shape), "voxels": int(cohorts.mask_XYZ.sum()),
            "frames": cohorts.n_frames, "tr_s": cohorts.tr_s,
            "conditions": cohorts.conditions, "candidates": cohorts.candidates,
            "real_subjects": {c: real.n_people(c) for c in cohorts.candidates},
            "synthetic_samples": {c: analysis.synthetic.properties.n_people(c) for c in cohorts.conditions},
            "real_blocks": len(cohorts.real), "training_blocks": len(cohorts.train), "synthetic_blocks": len(cohorts.synthetic),
            "group_model": {c: real.model(c) for c in cohorts.candidates},
        },
        "units": {
            "effect": "percent signal change of the reference volume", "z": "standard normal deviate",
            "distance": "percent (L2 over cells and frames)",
        },
        "resampling": {
            "split_half_repeats": config.split_half_repeats,
            "voxels": min(config.resampling_voxels, int(cohorts.mask_XYZ.sum())),
        },
        "synthetic": _judged_json(analysis.own),
        "control": _judged_json(analysis.control) | {"note": analysis.control_note},
        "ceiling": {
            "split_half": {"scores": _scores_json(analysis.split_half), "note": analysis.split_half_note},
            "noise_free_corr": analysis.noise_free_corr,
            "tokenizer": None if analysis.tokenizer_ceiling is None else _comparison_json(analysis.tokenizer_ceiling),
        },
        "baselines": {
            b.name: _judged_json(b.judged) | {"against_synthetic": b.standings, "samples_per_condition": config.baseline_samples}
            for b in analysis.baselines
        },
        "truth": analysis.truth,
        "variance_explained": analysis.variance,
        "reliability": _scores_json(analysis.reliability),
        "embedding": None if analysis.embedding is None else analysis.embedding.to_json(),
        "utility": analysis.utility,
        "rois": {
            "note": analysis.roi_note,
            "regions": [
                {"label": r.label, "task": r.task, "origin": r.origin, "voxels": int(r.voxels_V.sum())}
                for r in analysis.rois
            ],
        },
        "summary": lines,
        "notes": analysis.notes,
    }  # fmt: skip


def without_nan(value: Any) -> Any:
    """Plain JSON values: records become objects, numpy numbers Python ones, NaN and infinity null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, np.ndarray):
        return without_nan(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
