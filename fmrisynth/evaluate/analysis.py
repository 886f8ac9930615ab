"""All numbers of one evaluation, before any of them is written or drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import stdtrit

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.checks import CHECKS, Context, Verdict
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.distinguish import classifier_checks, copies_check, distinct_check, donors_check
from fmrisynth.evaluate.embedding import Embedding, compare_embeddings
from fmrisynth.evaluate.jackknife import MIN_SUBJECTS, Evidence, Standing, gather, jackknife_variance, judge, standings
from fmrisynth.evaluate.parts import Parts
from fmrisynth.evaluate.privacy import Audit, Gallery
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.rois import Roi, peak_rois, read_atlas, read_spheres
from fmrisynth.evaluate.scoring import Comparison, Score, compare_maps, noise_free_ceiling, split_half_ceiling
from fmrisynth.evaluate.summary import Blocks, Reference, Summary
from fmrisynth.evaluate.truth import Ceiling, truth_correlations
from fmrisynth.evaluate.utility import Cell, utility_check, utility_grid
from fmrisynth.evaluate.variance import explained_variance, intraclass_correlation
from fmrisynth.glm.windows import iterate_windows
from fmrisynth.progress import log, track
from fmrisynth.stage import Stage


@dataclass
class Judged:
    """One dataset in the place of samples: its scores, the answers of all checks, and its privacy audits."""

    comparison: Comparison
    evidence: Evidence
    verdicts: list[Verdict]
    audits: dict[str, Audit]


@dataclass
class Baseline:
    """A trivial generator, judged like samples.

    `standings` says per statistic whether it is nearer to the real data than the synthetic data are, beyond chance.
    """

    name: str
    judged: Judged
    standings: dict[str, Standing | None]


@dataclass
class Analysis:
    """Everything that the report shows."""

    cohorts: Cohorts
    real: Summary
    synthetic: Summary
    peer: Summary | None
    own: Judged
    control: Judged | None
    control_note: str
    split_half: dict[str, Score]
    split_half_note: str
    noise_free_corr: float | None
    tokenizer_ceiling: Comparison | None
    baselines: list[Baseline]
    rois: list[Roi]
    roi_note: str
    utility: list[Cell]
    variance: dict[str, dict[str, float | None]]
    reliability: dict[str, Score]
    truth: dict[str, Ceiling] = field(default_factory=dict)
    embedding: Embedding | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def comparison(self) -> Comparison:
        """The samples' scores."""
        return self.own.comparison


class Judge:
    """Judges datasets against the real people of one evaluation.

    Parameters
    ----------
    real : Summary
        To compare with.
    peer : Summary or None
        As many blocks of other real people as there are samples: what can be reached.
    context : Context
    training : Blocks or None
        Training windows, for privacy; without them the audit compares with the real people.
    config : EvaluateConfig
    """

    def __init__(
        self, real: Summary, peer: Summary | None, context: Context, training: Blocks | None, config: EvaluateConfig
    ) -> None:
        self.real, self.peer, self.context, self.config = real, peer, context, config
        self._training = training or real.blocks
        self._galleries: dict[int | None, dict[str, Gallery]] = {}

    def __call__(
        self, other: Summary, conditions: list[str] | None = None, *, whole: bool = True, classifiers: bool = True,
        n_training: int | None = None, n_groups: int | None = None,
    ) -> Judged:  # fmt: skip
        """Judge a dataset.

        Parameters
        ----------
        other : Summary
            Samples, or what stands in their place.
        conditions : list of str, optional
            If not all of the evaluation's.
        whole : bool
            With classifiers, utility and the search for duplicates; without them for baselines.
        classifiers : bool
            With the classifiers of real against other blocks, which take longest, where `whole`.
        n_training : int, optional
            Copies are looked for among the first so many training windows; all by default. For training people who stand in for samples:
            those of the others.
        n_groups : int, optional
            At most so many groups of people are left out, one by one: as many as of the dataset it is held against.
        """
        real, peer, names = self.real, self.peer, conditions or self.context.conditions
        candidates = names + [c for c in self.context.candidates if c not in names]
        context = replace(self.context, conditions=names, candidates=candidates)
        evidence = gather(real.properties, other.properties, peer.properties if peer else None, context, n_groups)
        found = judge(evidence)
        comparison = compare_maps(real.properties, other.properties, names, candidates, self.config.seed)
        add_intervals(comparison, evidence)
        galleries = self._gallery(n_training)
        samples = {"dynamics": other.windows_NCT, "anatomy": other.blocks.anatomy_NC}
        audits = {name: gallery.audit(samples[name]) for name, gallery in galleries.items()}
        found["copies"] = copies_check("copies", audits.get("dynamics"))
        found["copied_anatomy"] = copies_check("copied_anatomy", audits.get("anatomy"))
        if whole and classifiers:
            found |= {v.check.key: v for v in classifier_checks(real, other, peer, names)}
        if whole:
            found["distinct"] = distinct_check(other, galleries["dynamics"].reach if galleries else None)
            found["donors"] = donors_check(other, peer)
            found["utility"] = utility_check(real, other, peer, names)
        return Judged(comparison, evidence, [found[c.key] for c in CHECKS if c.key in found], audits)

    def _gallery(self, n_training: int | None) -> dict[str, Gallery]:
        """Of dynamics and of anatomies, made once; none for fewer than three people."""
        if n_training not in self._galleries:
            own, made = self._training.at(slice(n_training)), {}
            if len(set(own.people_N)) >= 3:
                made["dynamics"] = Gallery(own.windows_NCT, own.people_N, own.conditions_N)
                made["anatomy"] = Gallery(own.anatomy_NC, own.people_N, one_each=True)
            self._galleries[n_training] = made
        return self._galleries[n_training]


def add_intervals(comparison: Comparison, evidence: Evidence) -> None:
    """95 % intervals of Corr and RSA on Fisher's z scale: how they vary between cohorts of as many people and samples."""
    for name, key in (("corr", "corr"), ("rsa_pearson", "rsa")):
        score, variance = comparison.scores[name], evidence.variance(key, lambda one: _fisher_z(one.other))
        if score.value is None or variance is None:
            continue
        centre, reach = _fisher_z(score.value), evidence.quantile() * float(np.sqrt(variance))
        score.low, score.high = float(np.tanh(centre - reach)), float(np.tanh(centre + reach))


def reliability(properties: Properties, conditions: list[str]) -> Score:
    """How alike a person's blocks of a condition are: the intraclass correlation of effects on cells, with a 95 % jackknife interval."""
    kept = properties.rows.only(np.isin(properties.rows.conditions_N, conditions))

    def without(*groups: int) -> float:
        rows = kept.only(~np.isin(kept.group_N, groups))
        return intraclass_correlation(rows.effect_NC, rows.people_N, rows.conditions_N)

    value, people = without(), len(set(kept.people_N))
    if not np.isfinite(value):
        return Score(None, people, "people", note="no person has two blocks of a condition")
    n = properties.n_groups
    left_out_G, pairs_G = (
        np.array([without(g, *((g + i) % n for i in more)) for g in range(n)]) for more in ((), (1,))
    )
    if properties.fewest(conditions) < MIN_SUBJECTS or not (np.isfinite(left_out_G) & np.isfinite(pairs_G)).all():
        return Score(
            value,
            people,
            "people",
            note=f"no interval: it needs {MIN_SUBJECTS} people with two blocks in each condition",
        )
    reach = float(stdtrit(n - 1, 0.975) * np.sqrt(jackknife_variance(left_out_G, pairs_G)))
    return Score(value, people, "people", value - reach, value + reach)


def _fisher_z(r: float) -> float:
    return float(np.arctanh(np.clip(r, -0.999999, 0.999999)))


def analyse(cohorts: Cohorts, config: EvaluateConfig, stage: Stage) -> Analysis:
    """Compute everything; reads each real, training and synthetic block once (those of the baselines and of the tokenizer's ceiling again).

    `stage` owns the folder in which summaries are kept.
    """
    notes = list(cohorts.notes)
    rois, roi_note = choose_rois(cohorts, config)
    parts = Parts(cohorts, config, stage, Probes(cohorts.grid, cohorts.mask_XYZ, rois))
    peer, control = parts.read_training()
    shared = [c for c in cohorts.conditions if c in parts.patterns]
    real = parts.of("real", cohorts.real, keep_effects=False)
    synthetic = parts.of("synthetic", cohorts.synthetic)
    _refuse_constant(synthetic)
    log.info("checks")
    whole = shared == cohorts.conditions
    odd = {c: p.odd_energy for c, p in parts.patterns.items()}
    context = Context(cohorts.conditions, cohorts.candidates, rois, parts.timing if whole else {}, odd)
    judged = Judge(real, peer if whole else None, context, parts.training, config)
    own = judged(synthetic)
    stands_in = judged(control, n_training=parts.n_reference) if control is not None and whole else None
    found, cells = [], []
    if parts.training is not None and shared and config.baselines:
        for name, rival in parts.baselines(shared).items():
            verdict = judged(rival, shared, whole=False, n_groups=len(own.evidence.left_out))
            found.append(Baseline(name, verdict, standings(own.evidence, verdict.evidence)))
    if control is not None and peer is not None and whole and config.utility_grid:
        cells = utility_grid(real, control, peer, synthetic, cohorts.conditions, config.seed)
    if parts.training is None:
        notes.append("The privacy audit compares with the evaluated subjects, as there is no separate training split.")
    split_half, split_half_note = split_half_ceiling(
        real.properties, cohorts.conditions, config.split_half_repeats, config.seed
    )
    corr = split_half.get("corr")
    truth = {}
    if config.truth is not None:
        truth = truth_correlations(config.truth, cohorts, real.properties, synthetic.properties, config.glm)
    return Analysis(
        cohorts=cohorts, real=real, synthetic=synthetic, peer=peer, own=own, control=stands_in,
        control_note=_control_note(control, stands_in), split_half=split_half, split_half_note=split_half_note,
        noise_free_corr=noise_free_ceiling(corr.value) if corr is not None and corr.value is not None else None,
        tokenizer_ceiling=parts.tokenizer_ceiling(),
        baselines=found, rois=rois, roi_note=roi_note, utility=cells,
        variance={"real": explained_variance(real), "synthetic": explained_variance(synthetic)},
        reliability={
            name: reliability(summary.properties, cohorts.conditions)
            for name, summary in (("real", real), ("synthetic", synthetic), ("control", control)) if summary is not None
        }, truth=truth,
        embedding=compare_embeddings(cohorts, config, parts), notes=notes,
    )  # fmt: skip


def _control_note(control: Summary | None, judged: Judged | None) -> str:
    if control is None or judged is None:
        return "No control: it needs training people apart from the compared ones, with all compared conditions."
    return (
        f"Control: {control.n_blocks} real blocks of {len(set(control.people_N))} training people, as many per "
        "condition as there are samples (fewer where there are not so many), through the same scores and checks. "
        "Ceilings are the same of the other half of the training people."
    )


def _refuse_constant(synthetic: Summary) -> None:
    if not any(np.isfinite(window).all() and np.ptp(window) > 0 for window in synthetic.windows_NCT):
        raise FmrisynthError(
            f"all {synthetic.n_blocks} synthetic blocks are constant or not finite; the generator that made them is broken or untrained."
        )


def choose_rois(cohorts: Cohorts, config: EvaluateConfig) -> tuple[list[Roi], str]:
    """The user's ROIs, the packaged spheres in MNI space, or peaks of other real data; with a sentence on which."""
    grid, mask = cohorts.grid, cohorts.mask_XYZ
    if config.roi_atlas is not None:
        if config.roi_labels is None:
            raise FmrisynthError(
                f"{config.roi_atlas}: an ROI atlas needs roi_labels, a TSV with columns index, label, task."
            )
        return read_atlas(mask, grid, config.roi_atlas, config.roi_labels), f"Regions of {config.roi_atlas.name}."
    if config.rois is not None:
        return read_spheres(mask, grid, config.rois), f"Spheres of {config.rois.name}."
    if not grid.is_native:
        rois = [roi for roi in read_spheres(mask, grid) if any(roi.belongs_to(c) for c in cohorts.conditions)]
        covered = all(any(roi.belongs_to(c) for roi in rois) for c in cohorts.conditions)
        if rois and covered:
            return rois, "Packaged spheres at representative MNI coordinates, three per task."
    source, text = (
        (cohorts.train, "the training split") if cohorts.train else (cohorts.real, "the evaluated real data themselves")
    )
    blocks = [block for block in source if block.condition in cohorts.conditions]
    if not blocks:
        return [], "No regions: there are no real blocks to choose them from."
    reference, windows = Reference(config.glm), iterate_windows(blocks, mask, grid, config.glm)
    for _ in reference.watch(track(windows, "blocks for regions", total=len(blocks))):
        pass
    found = reference.arrays(Probes(grid, mask, []))
    t_KV = found["effect"] / np.sqrt(np.maximum(found["variance"], 1e-12))
    maps = dict(zip(map(str, found["conditions"]), t_KV, strict=True))
    note = f"Data-driven spheres of 6 mm around the largest |t| of {text}, at least 20 mm apart (no atlas fits this space or task)."
    if not cohorts.train:
        note += " They were chosen on the data they are shown with, which favours the real curves."
    return peak_rois(maps, mask, grid, text), note
