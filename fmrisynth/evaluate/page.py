"""The HTML report of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.evaluate.analysis import Analysis, Baseline
from fmrisynth.evaluate.courses import roi_courses
from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.scoring import Score
from fmrisynth.evaluate.variance import principal_components, volume_features
from fmrisynth.evaluate.verdicts import SCORE_TITLES, Judgement, ceiling_of, headline, show
from fmrisynth.glm.map_scores import map_correlations
from fmrisynth.glm.maps import to_volume
from fmrisynth.progress import count
from fmrisynth.report import Cards, Element, Figure, Page, Section, Table, Text, Verdicts, render_page
from fmrisynth.report import figures as draw
from fmrisynth.report.brain import glass_brains, mosaic
from fmrisynth.report.html import Card, Verdict

DISPLAY_SHARE, GLASS_SHARE = 0.33, 0.5
"""Slices and glass brains are transparent below this share of the colour limit."""

OUTCOME_WORDS = {"pass": "passed", "warn": "look", "fail": "failed", "info": "–"}


def render_report(
    analysis: Analysis, lines: list[Judgement], config: EvaluateConfig, real: Path, synthetic: Path
) -> str:
    """The whole report as HTML text."""
    cohorts = analysis.cohorts
    n_real = len({block.subject for block in cohorts.real})
    n_synthetic = len({block.subject for block in cohorts.synthetic})
    sections = [
        Section("Summary", _summary(analysis, lines)),
        Section("Scores", _scores(analysis)),
        Section("Activation maps", _maps(analysis, config)),
        Section("Geometry and specificity", _geometry(analysis)),
        Section("Time courses", _courses(analysis)),
        Section("Realism", _realism(analysis)),
        Section("Variance", _variance(analysis)),
        Section("Privacy", _privacy(analysis)),
        Section("Utility", _utility(analysis)),
        Section("Methods", _methods(analysis, config)),
    ]
    page = Page(
        title="Synthetic against real task fMRI",
        subtitle=headline(lines),
        facts=(
            ("real", f"{real.name}: {count(n_real, 'subject')}, {count(len(cohorts.real), 'block')}"),
            ("synthetic", f"{synthetic.name}: {count(n_synthetic, 'sample')}"),
            ("conditions", str(len(cohorts.conditions))),
            ("voxels compared", f"{int(cohorts.mask_XYZ.sum()):,}"),
            ("space", cohorts.grid.space),
            ("window", f"{cohorts.n_frames} frames of {cohorts.tr_s:g} s"),
            ("seed", str(config.seed)),
        ),
        sections=[section for section in sections if section.elements],
    )
    return render_page(page)


def _outcome(lines: list[Judgement], key: str):
    return next((line.outcome for line in lines if line.key == key), "info")


def _summary(analysis: Analysis, lines: list[Judgement]) -> list[Element]:
    cards = []
    for name in ("corr", "rsa_pearson", "top1", "top1_per_sample"):
        score = analysis.comparison.scores.get(name)
        if score is None:
            continue
        ceiling = ceiling_of(analysis, name)
        context = f"real against real {ceiling[0]:.2f}" if ceiling else "no ceiling"
        if score.low is not None and score.high is not None:
            context = f"95 % interval {score.low:.2f} to {score.high:.2f}; {context}"
        short = {
            "corr": "Corr",
            "rsa_pearson": "RSA",
            "top1": "Top-1, group maps",
            "top1_per_sample": "Top-1, single samples",
        }
        value = "–" if score.value is None else f"{score.value:.2f}"
        cards.append(
            Card(
                short[name], value, context if score.value is not None else score.note, _outcome(lines, f"score.{name}")
            )
        )
    elements: list[Element] = [Cards(cards)]
    notes = [*analysis.notes, *analysis.comparison.notes]
    if notes:
        elements.append(Text("\n\n".join(notes), note=True))
    elements.append(Verdicts([Verdict(line.outcome, line.title, line.detail) for line in lines]))
    return elements


def _scores(analysis: Analysis) -> list[Element]:
    columns = ("", "Corr", "RSA Pearson", "RSA Spearman", "Top-1 group", "Top-1 samples")
    keys = ("corr", "rsa_pearson", "rsa_spearman", "top1", "top1_per_sample")

    def row(name: str, scores: dict[str, Score]) -> list[str]:
        return [name, *(show(scores.get(key)) for key in keys)]

    rows = [row("Synthetic", analysis.comparison.scores)]
    if analysis.train_ceiling is not None:
        rows.append(row("Ceiling: real training against test", analysis.train_ceiling.scores))
    if analysis.split_half:
        halves = dict(analysis.split_half)
        if analysis.real_per_block is not None:
            halves["top1_per_sample"] = analysis.real_per_block
        rows.append(row("Ceiling: split halves of test", halves))
    if analysis.tokenizer_ceiling is not None:
        rows.append(row("Ceiling: tokenizer reconstructions", analysis.tokenizer_ceiling.scores))
    rows += [row(f"Baseline: {b.name}", b.comparison.scores) for b in analysis.baselines]
    elements: list[Element] = [
        Text(
            "Every score stands between what real data reach against real data and what a trivial generator gets. Brackets hold 95 % "
            "intervals: bootstrap over subjects and samples for Corr and RSA, percentiles for Top-1 of group maps, Wilson for single samples, "
            "the range over random halves for split halves."
        ),
        Table(columns, rows, highlight=0),
    ]
    for key, title in (("corr", "Corr"), ("rsa_pearson", "RSA (Pearson)")):
        dots = [_dot("synthetic", "synthetic", analysis.comparison.scores[key])]
        if analysis.train_ceiling is not None:
            dots.append(_dot("train vs test", "ceiling", analysis.train_ceiling.scores[key]))
        if key in analysis.split_half:
            dots.append(_dot("split halves", "ceiling", analysis.split_half[key]))
        if analysis.tokenizer_ceiling is not None:
            dots.append(_dot("tokenizer", "ceiling", analysis.tokenizer_ceiling.scores[key]))
        dots += [_dot(b.name, "baseline", b.comparison.scores[key]) for b in analysis.baselines]
        if any(dot["value"] is not None for dot in dots):
            caption = f"{title} of the synthetic data (orange), real-against-real ceilings (blue) and baselines (grey), with 95 % intervals."
            elements.append(Figure.of(draw.score_figure(dots, title), caption, width="half", vector=True))
    per_condition = analysis.comparison.corr_per_condition
    if len(per_condition) > 1:
        columns2 = [
            "Condition",
            "Synthetic",
            *(["Real training"] if analysis.train_ceiling else []),
            *(b.name for b in analysis.baselines),
        ]
        table = []
        for condition, value in per_condition.items():
            cells: list[object] = [condition, value]
            if analysis.train_ceiling is not None:
                cells.append(analysis.train_ceiling.corr_per_condition.get(condition))
            cells += [b.comparison.corr_per_condition.get(condition) for b in analysis.baselines]
            table.append(cells)
        elements.append(
            Table(columns2, table, caption="Correlation of each condition's group map with the real test map.")
        )
    if analysis.truth:
        elements.append(
            Table(
                ("Condition", "Real test", "Synthetic"),
                [[condition, r["real"], r["synthetic"]] for condition, r in analysis.truth.items()],
                caption="Correlation of group effects with the planted truth of the phantom.",
            )
        )
    if analysis.noise_free_corr is not None:
        elements.append(
            Text(
                f"A perfect, noise-free group map would correlate {analysis.noise_free_corr:.2f} with the real test maps "
                "(Spearman-Brown from the split halves). " + analysis.split_half_note,
                note=True,
            )
        )
    elif analysis.split_half_note:
        elements.append(Text(analysis.split_half_note, note=True))
    return elements


def _dot(name: str, role: str, score: Score) -> dict[str, object]:
    return {"name": name, "role": role, "value": score.value, "low": score.low, "high": score.high}


def _background(analysis: Analysis) -> np.ndarray:
    from fmrisynth.data.nifti import read_image

    return read_image(analysis.cohorts.real[0].reference_path, ndim=3).scaled()


def _maps(analysis: Analysis, config: EvaluateConfig) -> list[Element]:
    cohorts = analysis.cohorts
    kind = analysis.comparison.map_kind
    real_KV = analysis.real_maps.z_KV if kind == "z" else analysis.real_maps.effect_KV
    other_KV = analysis.synthetic_maps.z_KV if kind == "z" else analysis.synthetic_maps.effect_KV
    unit = "z" if kind == "z" else "% signal change"
    background = _background(analysis)
    elements: list[Element] = [
        Text(
            f"Group maps ({unit}) of the real data, of the synthetic data, and their difference on the scale of the real map: the "
            "synthetic map is first brought to the real map's spread, because z grows with the number of samples. Colours of a row "
            "reach its own limit; values below a third of it are transparent."
        )
    ]
    for index, condition in enumerate(cohorts.conditions):
        real = to_volume(real_KV[index], cohorts.mask_XYZ)
        other = to_volume(other_KV[index], cohorts.mask_XYZ)
        spread = np.nanstd(other_KV[index])
        scaled = other * (np.nanstd(real_KV[index]) / spread) if spread > 0 else other
        limits = [_limit(real), _limit(other), _limit(real)]
        r = analysis.comparison.corr_per_condition.get(condition)
        n_real, n_synthetic = analysis.real_maps.n_subjects[condition], analysis.synthetic_maps.n_subjects[condition]
        figure = mosaic(
            [(f"{condition}: real (n = {n_real})", real), (f"synthetic (n = {n_synthetic})", other), ("synthetic (rescaled) - real", scaled - real)],
            background, cohorts.mask_XYZ, cohorts.grid, limits=limits, threshold=DISPLAY_SHARE, unit=unit, relative_threshold=True,
        )  # fmt: skip
        text = "not defined" if r is None else f"{r:.2f}"
        elements.append(Figure.of(figure, f"{condition}: correlation of the synthetic with the real group map {text}."))
        if config.glass_brain and not cohorts.grid.is_native:
            rows = [("real", real / max(limits[0], 1e-9)), ("synthetic", other / max(limits[1], 1e-9))]
            glass = glass_brains(rows, cohorts.grid, threshold=GLASS_SHARE, limit=1.0)
            elements.append(
                Figure.of(
                    glass,
                    f"{condition} on the glass brain; each map as a share of its own colour limit, above half of it.",
                )
            )
    finite = np.isfinite(real_KV[: len(cohorts.conditions)]).all(axis=0) & np.isfinite(other_KV).all(axis=0)
    if finite.any():
        figure = draw.scatter_figure(
            real_KV[: len(cohorts.conditions), finite], other_KV[:, finite], cohorts.conditions, unit=unit
        )
        elements.append(
            Figure.of(figure, "Every voxel of the mask: synthetic against real. The dotted line is equality.")
        )
    return elements


def _limit(volume: np.ndarray) -> float:
    values = np.abs(volume[volume != 0])
    return float(np.percentile(values, 99.5)) if values.size else 1.0


def _geometry(analysis: Analysis) -> list[Element]:
    cohorts = analysis.cohorts
    k = len(cohorts.conditions)
    elements: list[Element] = []
    names = cohorts.conditions
    kind = analysis.comparison.map_kind
    real_KV = analysis.real_maps.z_KV[:k] if kind == "z" else analysis.real_maps.effect_KV[:k]
    other_KV = analysis.synthetic_maps.z_KV if kind == "z" else analysis.synthetic_maps.effect_KV
    finite = np.isfinite(real_KV).all(axis=0) & np.isfinite(other_KV).all(axis=0)
    if k >= 2 and finite.any():
        real_KK = map_correlations(real_KV[:, finite], real_KV[:, finite])
        other_KK = map_correlations(other_KV[:, finite], other_KV[:, finite])
        figure = draw.matrix_figure([("real", real_KK), ("synthetic", other_KK)], names, names)
        elements.append(
            Figure.of(
                figure,
                "Representational geometry: correlations between the group maps of all pairs of conditions. RSA is the correlation of their upper halves.",
                vector=True,
            )
        )
    figure = draw.matrix_figure(
        [("synthetic map against real maps", analysis.comparison.cross_KL)], names, cohorts.candidates,
        row_label="synthetic", column_label="real",
    )  # fmt: skip
    elements.append(
        Figure.of(
            figure,
            "Confusion matrix of Top-1: each synthetic map (row) should correlate most with its own real map (diagonal).",
            vector=True,
        )
    )
    return elements


def _courses(analysis: Analysis) -> list[Element]:
    panels = []
    for condition in analysis.cohorts.conditions:
        for index, roi in enumerate(analysis.rois):
            if not roi.belongs_to(condition):
                continue
            lines = {}
            for name, summary, role in (
                ("real", analysis.real, "real"),
                ("synthetic", analysis.synthetic, "synthetic"),
            ):
                mean, sem, n = roi_courses(summary.properties, condition, index)
                lines[f"{name} (n = {n})"] = (mean, sem, role)
            place = roi.label if condition in roi.label else f"{condition}\n{roi.label}"
            panels.append({"title": place, "lines": lines})
    if not panels:
        return [Text(analysis.roi_note or "No regions lie inside the mask.", note=True)]
    figure = draw.courses_figure(panels, analysis.cohorts.tr_s)
    return [
        Text(analysis.roi_note),
        Figure.of(
            figure,
            "Mean percent signal change of each region; the band is the standard error of the mean over subjects.",
            vector=True,
        ),
    ]


def _realism(analysis: Analysis) -> list[Element]:
    columns = [
        "Property",
        "Real",
        "Synthetic",
        "Judged number",
        "What",
        "Outcome",
        *(b.name for b in analysis.baselines),
    ]
    rows = [
        [
            check.title, check.real, check.synthetic, show(check, 3).replace(", ", ",\u00a0"), check.what, OUTCOME_WORDS[check.outcome],
            *(_rival(baseline, check.key) for baseline in analysis.baselines),
        ]
        for check in analysis.checks
    ]  # fmt: skip
    real, synthetic = analysis.real.properties, analysis.synthetic.properties
    lags = np.arange(1, real.autocorrelation_NL.shape[1] + 1) * analysis.cohorts.tr_s
    frequencies = np.fft.rfftfreq(analysis.cohorts.n_frames, analysis.cohorts.tr_s)[1:]
    pairs: dict[str, Properties] = {"real": real, "synthetic": synthetic}
    if analysis.train is not None:
        pairs["real training"] = analysis.train.properties
    elements: list[Element] = [
        Table(
            columns,
            rows,
            caption="Properties that the three scores do not see. Brackets: 95 % intervals over cohorts of as many real subjects and samples "
            "(delete-a-group jackknife). Last columns: the baselines' judged number, and whether they are nearer to the real data than the "
            "synthetic data are, farther, or even (a difference within chance).",
        )
    ]
    elements.append(
        Figure.of(
            draw.lines_figure(
                lags,
                {n: np.nanmean(s.autocorrelation_NL, axis=0) for n, s in pairs.items()},
                xlabel="lag (s)",
                ylabel="autocorrelation",
                title="Temporal autocorrelation",
            ),
            "Autocorrelation of voxel time courses within the window.",
            width="half",
            vector=True,
        )
    )
    elements.append(
        Figure.of(
            draw.lines_figure(
                frequencies,
                {n: s.spectrum_NF.mean(axis=0) for n, s in pairs.items()},
                xlabel="frequency (Hz)",
                ylabel="power (%²)",
                title="Power spectrum",
                logy=bool((synthetic.spectrum_NF.mean(axis=0) > 0).all()),
            ),
            "Power of voxel time courses, averaged over the brain.",
            width="half",
            vector=True,
        )
    )
    if real.connectivity_PP.shape[0] >= 5:
        figure = draw.connectivity_figure([("real", real.connectivity_PP), ("synthetic", synthetic.connectivity_PP)])
        elements.append(
            Figure.of(
                figure,
                f"Functional connectivity of {real.connectivity_PP.shape[0]} parcels (cubes of {8} voxels), residuals of the window GLM.",
            )
        )
    return elements


def _rival(baseline: Baseline, key: str) -> str:
    """A baseline's judged number and how it stands against the synthetic data."""
    twin = next((check for check in baseline.checks if check.key == key), None)
    if twin is None or twin.value is None:
        return "–"
    standing = baseline.standings[key]
    return show(replace(twin, low=None), 3) + (f", {standing}" if standing else "")


def _variance(analysis: Analysis) -> list[Element]:
    elements: list[Element] = [
        Text(
            "Principal components of block-mean volumes of the real data. In real cohorts the subject explains most of the variance, then "
            "the phase-encoding direction, and the task least (paper, Fig. 3). Shares are corrected for the number of groups."
        )
    ]
    for name, summary in (("real", analysis.real), ("synthetic", analysis.synthetic)):
        features = volume_features(summary)
        if len(features) < 3:
            continue
        scores, shares = principal_components(features)
        panels = [(f"{name}: by subject", scores, list(summary.subjects_N))] if name == "real" else []
        encodings = [block.phase_encoding for block in summary.blocks]
        if all(encodings) and len(set(encodings)) > 1:
            panels.append((f"{name}: by phase encoding", scores, [str(e) for e in encodings]))
        panels.append((f"{name}: by task", scores, list(summary.conditions_N)))
        figure = draw.components_figure(panels, list(shares))
        elements.append(
            Figure.of(
                figure,
                f"First two principal components of {len(features)} {name} block-mean volumes.",
                width="full" if len(panels) > 1 else "half",
            )
        )
    keys = list(dict.fromkeys([*analysis.variance["real"], *analysis.variance["synthetic"]]))
    rows = [[key, analysis.variance["real"].get(key), analysis.variance["synthetic"].get(key)] for key in keys]
    elements.append(Table(("Share of variance explained", "Real", "Synthetic"), rows))
    return elements


def _privacy(analysis: Analysis) -> list[Element]:
    if not analysis.privacy:
        return []
    elements: list[Element] = [
        Text(
            "Distance of every synthetic block to its nearest training block, against the distance of training blocks to the nearest block of "
            "another subject. Samples left of the dashed line are nearer than 95 % of training blocks are to each other."
        )
    ]
    for name, audit in analysis.privacy.items():
        figure = draw.histogram_figure(
            {"training to training": audit.train_nearest_N, "synthetic to training": audit.synthetic_nearest_M},
            xlabel=f"nearest-neighbour distance ({name})", title=f"Privacy audit: {name}", mark=("threshold", audit.threshold),
        )  # fmt: skip
        elements.append(
            Figure.of(
                figure,
                f"{name}: {100 * audit.share_below:.0f} % of samples under the threshold, {len(audit.copies)} singled out as near copies; "
                f"ratio of mean distances {audit.ratio_of_means:.2f}.",
                width="half",
                vector=True,
            )
        )
    own = analysis.privacy.get("dynamics")
    audits = [("Synthetic", own), *((f"Baseline: {b.name}", b.privacy) for b in analysis.baselines)]
    rows = [
        [name, f"{100 * a.share_below:.0f} %", len(a.copies), a.ratio_of_means, OUTCOME_WORDS[a.outcome]]
        for name, a in audits
        if a is not None
    ]
    if len(rows) > 1:
        columns = (
            "Dynamics",
            "Under the threshold",
            "Singled out",
            "Mean distance, times training to training",
            "Outcome",
        )
        caption = "What writes training data out again may look as real as it likes: it is no substitute for samples that copy nobody."
        elements.append(Table(columns, rows, highlight=0, caption=caption))
    return elements


def _utility(analysis: Analysis) -> list[Element]:
    if not analysis.utility:
        return []
    rows = [
        [f"{t.trained_on} → {t.tested_on}", t.accuracy, f"{t.low:.2f} to {t.high:.2f}", t.chance, t.n_train, t.n_test]
        for t in analysis.utility
    ]
    return [
        Text("A ridge classifier of the condition, trained on one dataset and tested on another."),
        Table(
            ("Trained on → tested on", "Accuracy", "95 % interval", "Chance", "Training blocks", "Test blocks"), rows
        ),
    ]


def _methods(analysis: Analysis, config: EvaluateConfig) -> list[Element]:
    glm = config.glm
    return [
        Text(
            f"Window GLM: block boxcar convolved with the {glm.hrf} response, constant{', linear drift' if glm.resolved_drift == 'linear' else ''}; "
            f"percent of the block's reference volume; {glm.resolved_noise_model} noise; smoothing {glm.resolved_smoothing_fwhm_mm:g} mm. A subject's effect is the "
            "unweighted fixed effect over its blocks; group maps are one-sample random-effects t, shown as z.\n\n"
            f"Bootstrap: {config.bootstrap_repeats} resamples of real subjects and synthetic samples. Split halves: {config.split_half_repeats} random halves. Both use "
            f"{min(config.resampling_voxels, int(analysis.cohorts.mask_XYZ.sum())):,} voxels. Permutation p: condition labels shuffled, all orders up to seven conditions.\n\n"
            "Baselines are fitted on the training split: class mean plus resampled residuals, a Gaussian with the training mean and covariance per condition, "
            "and the training block nearest to each synthetic block. Formulas and references: docs/metrics.md."
        ),
        Table(
            ("Group maps", "Real model", "Real n", "Synthetic model", "Synthetic n"),
            [
                [
                    c,
                    analysis.real_maps.models[c],
                    analysis.real_maps.n_subjects[c],
                    analysis.synthetic_maps.models[c],
                    analysis.synthetic_maps.n_subjects[c],
                ]
                for c in analysis.cohorts.conditions
            ],
        ),
        Text("Scores: " + ", ".join(SCORE_TITLES.values()) + ".", note=True),
    ]
