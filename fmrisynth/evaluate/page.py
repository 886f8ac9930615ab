"""The HTML report of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fmrisynth.bids.origin import read_origin
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.nifti import read_image
from fmrisynth.evaluate import checks
from fmrisynth.evaluate.analysis import Analysis
from fmrisynth.evaluate.checks import ANSWERS
from fmrisynth.evaluate.checks import show as show_numbers
from fmrisynth.evaluate.courses import roi_course
from fmrisynth.evaluate.variance import principal_components
from fmrisynth.evaluate.verdicts import SCORE_TITLES, Judgement, headline, reliability_sentence, show
from fmrisynth.glm.map_scores import map_correlations
from fmrisynth.glm.maps import to_volume
from fmrisynth.progress import count
from fmrisynth.report import Cards, Element, Figure, Page, Section, Table, Text, Verdicts, write_page
from fmrisynth.report import figures as draw
from fmrisynth.report.brain import glass_brains, mosaic
from fmrisynth.report.html import Card, Status, Verdict, banner_of

DISPLAY_SHARE, GLASS_SHARE = 0.33, 0.5
"""Slices and glass brains are transparent below this share of the colour limit."""

_OTHERS = {"ceiling": "real-against-real ceilings (blue)", "baseline": "baselines (grey)"}
LEAST_POINTS = 5
"""A picture of principal components of fewer volumes says nothing."""

STATUS: dict[str, Status] = {"fail": "fail", "unclear": "warn", "pass": "pass", "info": "info"}
"""Of each answer, in the order of the summary."""


def write_report(
    path: Path, analysis: Analysis, lines: list[Judgement], config: EvaluateConfig, real: Path, synthetic: Path
) -> None:
    """Write the report, and its figures as PDF beside it."""
    cohorts = analysis.cohorts
    n_real = len({block.subject for block in cohorts.real})
    n_synthetic = len({block.subject for block in cohorts.synthetic})
    sections = [
        Section("Summary", _summary(analysis, lines)),
        Section("Scores", _scores(analysis)),
        Section("Activation maps", _maps(analysis, config)),
        Section("Geometry and specificity", _geometry(analysis)),
        Section("Time courses", _courses(analysis)),
        Section("Checks", _checks(analysis)),
        Section("Variance", _variance(analysis)),
        Section("Privacy", _privacy(analysis)),
        Section("Embedding", _embedding(analysis)),
        Section("Utility", _utility(analysis)),
        Section("Methods", _methods(analysis, config)),
    ]
    origins = read_origin(real), read_origin(synthetic)
    page = Page(
        title=f"Synthetic against {'phantom' if origins[0].is_phantom else 'real'} task fMRI",
        banner=banner_of(*origins),
        subtitle=headline(lines, analysis.own.evidence.fewest),
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
    write_page(path, page)


SHORT = {
    "corr": ("Corr", "corr"),
    "rsa_pearson": ("RSA", "rsa"),
    "top1_per_sample": ("Top-1, single samples", "top1_per_sample"),
}
"""Scores on the cards: their short titles, and the checks that judge them."""


def _summary(analysis: Analysis, lines: list[Judgement]) -> list[Element]:
    answers = {line.key: line.answer for line in lines}
    control = analysis.control.comparison.scores if analysis.control is not None else {}
    cards = []
    for name, (short, key) in SHORT.items():
        score = analysis.comparison.scores.get(name)
        if score is None:
            continue
        note = f"as many real blocks {show(control[name])}" if name in control else "no other real people as a control"
        if score.low is not None and score.high is not None:
            note = f"95 % interval {score.low:.2f} to {score.high:.2f}; {note}"
        value, note = ("–", score.note) if score.value is None else (f"{score.value:.2f}", note)
        cards.append(Card(short, value, note, STATUS[answers.get(key, "info")]))
    verdicts = []
    for line in sorted(lines, key=lambda line: list(STATUS).index(line.answer)):  # worst first
        twin = f" (as many real blocks: {ANSWERS[line.control]})" if line.control else ""
        verdicts.append(Verdict(STATUS[line.answer], line.title + twin, line.detail[:1].upper() + line.detail[1:]))
    notes = [*analysis.notes, *analysis.comparison.notes, analysis.control_note]
    text = (
        "Every check has two limits, stated beforehand. It passes when its whole 95 % interval is short of the one, fails when "
        "the whole interval is beyond the other, and otherwise cannot tell. In brackets: the answer that as many real blocks "
        "of other people get."
    )
    return [Cards(cards), Text("\n\n".join(notes), note=True), Text(text), Verdicts(verdicts)]


def _scores(analysis: Analysis) -> list[Element]:
    scores, per_condition = analysis.comparison.scores, analysis.comparison.corr_per_condition
    others = [("as many real blocks", analysis.control.comparison)] if analysis.control is not None else []
    ceilings = {name: c.scores for name, c in others}
    if analysis.tokenizer_ceiling is not None:
        ceilings["tokenizer"] = analysis.tokenizer_ceiling.scores
    if analysis.split_half:
        ceilings["split halves of test"] = analysis.split_half
    others += [(b.name, b.judged.comparison) for b in analysis.baselines]
    known = [
        ("Synthetic", "synthetic", scores),
        *((f"Ceiling: {name}", "ceiling", own) for name, own in ceilings.items()),
    ]
    known += [(f"Baseline: {b.name}", "baseline", b.judged.comparison.scores) for b in analysis.baselines]
    p = ", ".join(f"{SCORE_TITLES[k]} {max(s.p, 0.001):.3f}" for k, s in scores.items() if s.p is not None)
    elements: list[Element] = [
        Text(
            "Every score stands between what as many real blocks of other people reach and what a trivial generator gets. "
            "Brackets hold 95 % intervals: over cohorts of as many people and samples (delete-a-group jackknife) for Corr "
            "and RSA, Wilson's over conditions or blocks for Top-1, the range over random halves for split halves. "
            + (f"Permutation p (condition labels shuffled): {p}." if p else "")
        ),
        Table(
            ("", "Corr", "RSA Pearson", "RSA Spearman", "Top-1 group", "Top-1 samples"),
            [[name, *(show(own.get(key)) for key in SCORE_TITLES)] for name, _, own in known], highlight=0,
        ),
    ]  # fmt: skip
    for key, title in (("corr", "Corr"), ("rsa_pearson", "RSA (Pearson)")):
        dots = [
            {"name": name.split(": ")[-1], "role": role, "value": own[key].value, "low": own[key].low, "high": own[key].high}
            for name, role, own in known if key in own
        ]  # fmt: skip
        if any(dot["value"] is not None for dot in dots):
            drawn = {dot["role"] for dot in dots if dot["value"] is not None}
            others_drawn = [text for role, text in _OTHERS.items() if role in drawn]
            caption = (
                f"{' and '.join([f'{title} of the synthetic data (orange)', *others_drawn])}, with 95 % intervals."
            )
            elements.append(Figure.of(draw.score_figure(dots, title), caption, width="half", vector=True, name=key))
    if len(per_condition) > 1:
        table = [[c, value, *(o.corr_per_condition.get(c) for _, o in others)] for c, value in per_condition.items()]
        caption = "Correlation of each condition's group map with the real test map."
        elements.append(Table(["Condition", "Synthetic", *(name for name, _ in others)], table, caption=caption))
    if analysis.truth:
        caption = (
            "Correlation of group effects with the planted truth of the phantom. What a window map estimates follows "
            "from the events: blocks that come before reach into the window. The ceiling is what noise-free maps of "
            "that reach; n/a where the dataset does not say what came before."
        )
        table = [
            [c, t.real, t.synthetic, "n/a" if t.ceiling is None else f"{t.ceiling:.3f}", t.estimates]
            for c, t in analysis.truth.items()
        ]
        columns = ("Condition", "Real test", "Synthetic", "Ceiling", "The window map estimates")
        elements.append(Table(columns, table, caption=caption))
    if analysis.noise_free_corr is not None:
        text = (
            f"A perfect, noise-free group map would correlate {analysis.noise_free_corr:.2f} with the real test maps "
            "(Spearman-Brown from the split halves). "
        )
        elements.append(Text(text + analysis.split_half_note, note=True))
    return elements


def _maps(analysis: Analysis, config: EvaluateConfig) -> list[Element]:
    cohorts, mask_XYZ = analysis.cohorts, analysis.cohorts.mask_XYZ
    maps = analysis.comparison.maps
    unit = "z" if maps.kind == "z" else "% signal change"
    background = read_image(cohorts.real[0].reference_path, ndim=3).scaled()
    elements: list[Element] = [
        Text(
            f"Group maps ({unit}) of the real data, of the synthetic data, and their difference on the scale of the real map: the "
            "synthetic map is first brought to the real map's spread, because z grows with the number of samples. Colours of a row "
            "reach its own limit; values below a third of it are transparent."
        )
    ]
    for index, condition in enumerate(cohorts.conditions):
        real, other = (to_volume(maps_KV[index], mask_XYZ) for maps_KV in (maps.real_LV, maps.other_KV))
        spread = np.nanstd(maps.other_KV[index])
        scaled = other * (np.nanstd(maps.real_LV[index]) / spread) if spread > 0 else other
        limits = [_limit(real), _limit(other), _limit(real)]
        n_real, n_synthetic = (s.properties.n_people(condition) for s in (analysis.real, analysis.synthetic))
        rows = [
            (f"{condition}: real (n = {n_real})", real),
            (f"synthetic (n = {n_synthetic})", other),
            ("synthetic (rescaled) - real", scaled - real),
        ]
        figure = mosaic(
            rows, background, mask_XYZ, cohorts.grid, limits=limits, threshold=DISPLAY_SHARE, unit=unit, relative_threshold=True
        )  # fmt: skip
        r = analysis.comparison.corr_per_condition.get(condition)
        text = "not defined" if r is None else f"{r:.2f}"
        caption = f"{condition}: correlation of the synthetic with the real group map {text}."
        elements.append(Figure.of(figure, caption, name=f"maps-{condition}"))
        if config.glass_brain and not cohorts.grid.is_native:
            rows = [("real", real / max(limits[0], 1e-9)), ("synthetic", other / max(limits[1], 1e-9))]
            caption = f"{condition} on the glass brain; each map as a share of its own colour limit, above half of it."
            glass = glass_brains(rows, cohorts.grid, threshold=GLASS_SHARE, limit=1.0)
            elements.append(Figure.of(glass, caption, name=f"glass-{condition}"))
    real_KV, other_KV = _compared(analysis)
    if real_KV.size:
        figure = draw.scatter_figure(real_KV, other_KV, cohorts.conditions, unit=unit)
        caption = "Every voxel of the mask: synthetic against real. The dotted line is equality."
        elements.append(Figure.of(figure, caption, name="voxels"))
    return elements


def _compared(analysis: Analysis) -> tuple[np.ndarray, np.ndarray]:
    """Real and synthetic group maps of the compared conditions, where all of them are finite, (K, V)."""
    real_LV, other_KV = analysis.comparison.maps.compared
    return real_LV[: len(other_KV)], other_KV


def _limit(volume: np.ndarray) -> float:
    values = np.abs(volume[volume != 0])
    return float(np.percentile(values, 99.5)) if values.size else 1.0


def _geometry(analysis: Analysis) -> list[Element]:
    names = analysis.cohorts.conditions
    elements: list[Element] = []
    real_KV, other_KV = _compared(analysis)
    if len(names) >= 2 and real_KV.size:
        maps = (("real", real_KV), ("synthetic", other_KV))
        figure = draw.matrix_figure([(name, map_correlations(m, m)) for name, m in maps], names, names)
        caption = (
            "Representational geometry: correlations between the group maps of all pairs of conditions. "
            "RSA is the correlation of their upper halves."
        )
        elements.append(Figure.of(figure, caption, vector=True, name="geometry"))
    matrices = [("synthetic map against real maps", analysis.comparison.cross_KL)]
    figure = draw.matrix_figure(
        matrices, names, analysis.cohorts.candidates, row_label="synthetic", column_label="real"
    )
    caption = (
        "Confusion matrix of Top-1: each synthetic map (row) should correlate most with its own real map (diagonal)."
    )
    return [*elements, Figure.of(figure, caption, vector=True, name="top1")]


def _courses(analysis: Analysis) -> list[Element]:
    panels = []
    for condition in analysis.cohorts.conditions:
        for index, roi in enumerate(analysis.rois):
            if roi.belongs_to(condition):
                lines = {}
                for name, summary in (("real", analysis.real), ("synthetic", analysis.synthetic)):
                    mean, sem, n = roi_course(summary.properties, condition, index)
                    lines[f"{name} (n = {n})"] = (mean, sem, name)
                place = roi.label if condition in roi.label else f"{condition}\n{roi.label}"
                panels.append({"title": place, "lines": lines})
    if not panels:
        return [Text(analysis.roi_note or "No regions lie inside the mask.", note=True)]
    figure = draw.courses_figure(panels, analysis.cohorts.tr_s)
    caption = "Mean percent signal change of each region; the band is the standard error of the mean over subjects."
    return [Text(analysis.roi_note), Figure.of(figure, caption, vector=True, name="courses")]


def _checks(analysis: Analysis) -> list[Element]:
    control = {v.check.key: v for v in analysis.control.verdicts} if analysis.control is not None else {}
    rivals = [(b.standings, {v.check.key: v for v in b.judged.verdicts}) for b in analysis.baselines]
    rows = []
    for v in analysis.own.verdicts:
        key = v.check.key
        judged = show_numbers(v.value, v.low, v.high).replace(", ", ",\u00a0")
        rows.append([
            v.check.title, v.real, v.other, judged, v.check.rule, ANSWERS[v.answer],
            _short(control.get(key)), *(_short(twins.get(key), standings.get(key)) for standings, twins in rivals),
        ])  # fmt: skip
    columns = [
        "Check", "Real", "Synthetic", "Judged number", "Rule", "Answer", "As many real blocks",
        *(b.name for b in analysis.baselines),
    ]  # fmt: skip
    caption = (
        "Brackets: 95 % intervals over cohorts of as many real subjects and samples (delete-a-group jackknife). Last "
        "columns: the judged number of real blocks and of the baselines, with their answers, and whether a baseline "
        "is nearer to the real data than the samples, farther, or even."
    )
    elements: list[Element] = [Table(columns, rows, caption=caption)]
    names = analysis.cohorts.conditions
    table = [
        [v.check.title, *(f"{value:.2f}" + ("" if answer == "pass" else f" ({ANSWERS[answer]})") for value, answer in v.parts.values())]
        for v in analysis.own.verdicts if list(v.parts) == names
    ]  # fmt: skip
    if table:
        caption = "A check fails when one condition does, at a level shared by all of them."
        elements.append(Table(("Per condition", *names), table, caption=caption))
    known = {"real": analysis.real.properties, "synthetic": analysis.synthetic.properties}
    if analysis.peer is not None:
        known["other real people"] = analysis.peer.properties
    courses = {name: np.nanmean(p.rows.autocorrelation_NL, axis=0) for name, p in known.items()}
    lags = np.arange(1, len(courses["real"]) + 1) * analysis.cohorts.tr_s
    figure = draw.lines_figure(
        lags, courses, xlabel="lag (s)", ylabel="autocorrelation", title="Temporal autocorrelation"
    )
    caption = "Autocorrelation of voxel time courses within the window."
    elements.append(Figure.of(figure, caption, width="half", vector=True, name="autocorrelation"))
    power = {name: p.rows.spectrum_NF.mean(axis=0) for name, p in known.items()}
    frequencies = np.fft.rfftfreq(analysis.cohorts.n_frames, analysis.cohorts.tr_s)[1:]
    figure = draw.lines_figure(
        frequencies, power, xlabel="frequency (Hz)", ylabel="power (%²)", title="Power spectrum", logy=bool((power["synthetic"] > 0).all())
    )  # fmt: skip
    caption = "Power of voxel time courses, averaged over the brain."
    elements.append(Figure.of(figure, caption, width="half", vector=True, name="spectrum"))
    matrices = [(name, known[name].connectivity_PP) for name in ("real", "synthetic")]
    if (n_parcels := len(matrices[0][1])) >= 5:
        caption = f"Functional connectivity of {n_parcels} parcels (cubes of 8 voxels), residuals of the window GLM."
        elements.append(Figure.of(draw.connectivity_figure(matrices), caption, name="connectivity"))
    return elements


def _short(verdict: checks.Verdict | None, standing: str | None = None) -> str:
    """The judged number of real blocks or of a baseline, its answer, and how a baseline stands against the synthetic data."""
    if verdict is None:
        return "–"
    return ", ".join(part for part in (show_numbers(verdict.value), ANSWERS[verdict.answer], standing) if part)


def _variance(analysis: Analysis) -> list[Element]:
    elements: list[Element] = [
        Text(
            "Principal components of block-mean volumes of the real data. In real cohorts the subject explains most of the variance, then "
            "the phase-encoding direction, and the task least (paper, Fig. 3). Shares are corrected for the number of groups."
        )
    ]
    for name, summary in (("real", analysis.real), ("synthetic", analysis.synthetic)):
        rows = summary.properties.rows
        if len(rows.volume_NC) < LEAST_POINTS:
            continue
        scores, shares = principal_components(rows.volume_NC)
        encodings = list(rows.phase_encodings_N)
        panels = [(f"{name}: by subject", scores, list(summary.people_N))] if name == "real" else []
        if all(encodings) and len(set(encodings)) > 1:
            panels.append((f"{name}: by phase encoding", scores, encodings))
        panels.append((f"{name}: by task", scores, list(summary.conditions_N)))
        caption = f"First two principal components of {len(scores)} {name} block-mean volumes."
        width: Literal["full", "half"] = "full" if len(panels) > 1 else "half"
        elements.append(
            Figure.of(draw.components_figure(panels, list(shares)), caption, width=width, name=f"components-{name}")
        )
    shares_of = analysis.variance
    keys = list(dict.fromkeys([*shares_of["real"], *shares_of["synthetic"]]))
    table = [[key, shares_of["real"].get(key), shares_of["synthetic"].get(key)] for key in keys]
    said = Text(reliability_sentence(analysis))
    return [*elements, Table(("Share of variance explained", "Real", "Synthetic"), table), said]


def _privacy(analysis: Analysis) -> list[Element]:
    audits = analysis.own.audits
    if not audits:
        return []
    elements: list[Element] = [
        Text(
            "Distance of every synthetic block to its nearest training block, against the distance of training blocks "
            "to the nearest block of another subject. Samples left of the dashed line are nearer than 95 % of "
            "training blocks are to each other."
        )
    ]
    for name, audit in audits.items():
        figure = draw.histogram_figure(
            {"training to training": audit.train_nearest_N, "synthetic to training": audit.synthetic_nearest_M},
            xlabel=f"nearest-neighbour distance ({name})", title=f"Privacy audit: {name}", mark=("threshold", audit.threshold),
        )  # fmt: skip
        caption = (
            f"{name}: {100 * audit.share_below:.0f} % of samples under the threshold, {len(audit.copies)} singled out as near copies; "
            f"ratio of mean distances {audit.ratio_of_means:.2f}."
        )
        elements.append(Figure.of(figure, caption, width="half", vector=True, name=f"distances-{name}"))
    others = {"Synthetic": analysis.own} | {f"Baseline: {b.name}": b.judged for b in analysis.baselines}
    if analysis.control is not None:
        others["As many real blocks"] = analysis.control
    audited = {name: judged.audits["dynamics"] for name, judged in others.items() if judged.audits}
    rows = [
        [name, f"{100 * a.share_below:.0f} %", len(a.copies), a.ratio_of_means, a.outcome]
        for name, a in audited.items()
    ]
    columns = ("Dynamics", "Under the threshold", "Singled out", "Mean distance, times training to training", "Audit")
    caption = "What writes training data out again may look as real as it likes: it is no substitute for samples that copy nobody."
    elements.append(Table(columns, rows, highlight=0, caption=caption))
    return elements


def _embedding(analysis: Analysis) -> list[Element]:
    found = analysis.embedding
    if found is None:
        return []
    rows = [
        [
            name,
            show_numbers(d.frechet, d.frechet_low, d.frechet_high),
            show_numbers(d.kernel, d.kernel_low, d.kernel_high, 3),
            d.n,
        ]
        for name, d in found.distances.items()
    ]
    caption = (
        "Distances from the compared real people in the mean tokens of a masked autoencoder of flat maps, with 95 % "
        "intervals over people. Real blocks of other people are the floor: no sample needs to be nearer."
    )
    columns = ("Blocks", "Fréchet distance", "Kernel distance", "Blocks compared")
    elements: list[Element] = [Table(columns, rows, highlight=0, caption=caption)]
    if found.audit is not None:
        below, audit = f"{100 * found.audit.share_below:.0f} % of samples under the threshold", found.audit
        text = (
            f"Nearest training blocks in this space: {below}, {len(audit.copies)} singled out; audit: {audit.outcome}."
        )
        elements.append(Text(text))
    return elements


def _utility(analysis: Analysis) -> list[Element]:
    if not analysis.utility:
        return []
    counts = sorted({cell.n_real_people for cell in analysis.utility})
    table: dict[tuple[str, str], dict[int, str]] = {}
    for cell in analysis.utility:
        name = "real blocks alone" if cell.added == "nothing" else f"with {cell.multiple} times as many: {cell.added}"
        row = table.setdefault((cell.classifier, name), {})
        row[cell.n_real_people] = f"{cell.accuracy:.2f} ± {cell.sd:.2f}"
    rows = [[*key, *(row.get(n, "–") for n in counts)] for key, row in table.items()]
    return [
        Text(
            "What the samples are worth to who wants to tell conditions apart (conditional ICA, Tajini et al. 2021): "
            "classifiers trained on the effect maps of a few real people's blocks with so many times as many blocks "
            "added, and tested on the real test people. Noise (the same blocks again with half their own standard "
            "deviation), class mean + noise and conditional ICA are made from those few people; the samples' model "
            "has seen its whole training cohort."
        ),
        Table(
            ("Classifier", "Trained on", *(f"{n} real people" for n in counts)), rows,
            caption="Accuracy: mean ± standard deviation over draws of the people.",
        ),
    ]  # fmt: skip


def _methods(analysis: Analysis, config: EvaluateConfig) -> list[Element]:
    glm, real, synthetic = config.glm, analysis.real.properties, analysis.synthetic.properties
    drift = ", linear drift" if glm.resolved_drift == "linear" else ""
    n_voxels = min(config.resampling_voxels, int(analysis.cohorts.mask_XYZ.sum()))
    return [
        Text(
            f"Window GLM: block boxcar convolved with the {glm.hrf} response, constant{drift}; percent of the block's "
            f"reference volume; {glm.resolved_noise_model} noise; smoothing {glm.resolved_smoothing_fwhm_mm:g} mm. A "
            "subject's effect is the unweighted fixed effect over its blocks; group maps are one-sample "
            "random-effects t, shown as z.\n\n"
            "Intervals: delete-a-group jackknife over real subjects, samples and real control blocks. Split halves: "
            f"{config.split_half_repeats} random halves. Both use {n_voxels:,} voxels. Permutation p: condition labels "
            "shuffled, all orders up to seven conditions.\n\n"
            "Baselines are fitted on training blocks: class mean plus resampled residuals, and a low-rank Gaussian. "
            "Formulas and references: docs/metrics.md."
        ),
        Table(
            ("Group maps", "Real model", "Real n", "Synthetic model", "Synthetic n"),
            [
                [c, *(value for p in (real, synthetic) for value in (p.model(c), p.n_people(c)))]
                for c in analysis.cohorts.conditions
            ],
        ),
        Text("Scores: " + ", ".join(SCORE_TITLES.values()) + ".", note=True),
    ]
