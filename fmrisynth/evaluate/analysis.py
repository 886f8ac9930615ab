"""All numbers of one evaluation, before any of them is written or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block, read_blocks
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate import baselines
from fmrisynth.evaluate.checks import CHECKS, Context, Verdict
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.distinguish import classifier_checks, copies_check, distinct_check, donors_check, in_turn
from fmrisynth.evaluate.jackknife import Evidence, Standing, gather, judge, standings
from fmrisynth.evaluate.privacy import Audit, audit
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.reconstruct import reconstructed_windows
from fmrisynth.evaluate.response import Pattern, Timing
from fmrisynth.evaluate.rois import Roi, peak_rois, read_atlas, read_spheres
from fmrisynth.evaluate.scoring import (
    Comparison,
    Score,
    compare_maps,
    noise_free_ceiling,
    split_half_ceiling,
)
from fmrisynth.evaluate.summary import Summariser, Summary, WindowStore, patterns_of, summarise
from fmrisynth.evaluate.truth import Ceiling, truth_correlations
from fmrisynth.evaluate.utility import Cell, utility_check, utility_grid
from fmrisynth.evaluate.variance import explained_variance
from fmrisynth.glm.effects import subject_effects
from fmrisynth.glm.group import group_map
from fmrisynth.glm.windows import Window, iterate_windows
from fmrisynth.progress import log, track


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
    n_per_condition: int


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
    truth: dict[str, Ceiling] = field(default_factory=dict)
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
    training : WindowStore or None
        Training windows, for privacy; without them the audit compares with the real people.
    config : EvaluateConfig
    """

    def __init__(
        self,
        real: Summary,
        peer: Summary | None,
        context: Context,
        training: WindowStore | None,
        config: EvaluateConfig,
    ) -> None:
        self.real, self.peer, self.context, self.config = real, peer, context, config
        if training is not None:
            self._people = np.array(training.people)
            self._windows, self._anatomy = training.windows_NCT(), np.stack(training.anatomy)
        else:
            self._people, self._windows, self._anatomy = real.people_N, real.windows_NCT, real.anatomy_NC

    def __call__(
        self, other: Summary, conditions: list[str] | None = None, *, whole: bool = True, n_training: int | None = None
    ) -> Judged:
        """Judge a dataset.

        Parameters
        ----------
        other : Summary
            Samples, or what stands in their place.
        conditions : list of str, optional
            If not all of the evaluation's.
        whole : bool
            With classifiers and the search for duplicates; without them for baselines.
        n_training : int, optional
            Copies are looked for among the first so many training windows; all by default. For training people who stand in for samples:
            those of the others.
        """
        context = self.context if conditions is None else replace(self.context, conditions=conditions)
        names, candidates = context.conditions, context.candidates
        candidates = names + [c for c in candidates if c not in names]
        context = replace(context, candidates=candidates)
        real, peer = self.real, self.peer
        evidence = gather(real.properties, other.properties, peer.properties if peer else None, context)
        found = judge(evidence, names)
        comparison = compare_maps(real.properties, other.properties, names, candidates, self.config.seed)
        _add_intervals(comparison, evidence)
        base, people, anatomy = self._windows[:n_training], self._people[:n_training], self._anatomy[:n_training]
        percentile = self.config.privacy_percentile
        audits = {
            name: outcome
            for name, training, samples in (
                ("dynamics", base, other.windows_NCT),
                ("anatomy", anatomy, other.anatomy_NC),
            )
            if (outcome := audit(training, people, samples, percentile, one_each=name == "anatomy")) is not None
        }
        found["copies"] = copies_check("copies", audits.get("dynamics"))
        found["copied_anatomy"] = copies_check("copied_anatomy", audits.get("anatomy"))
        if whole:
            found |= {v.check.key: v for v in classifier_checks(real, other, peer, names)}
            found["distinct"] = distinct_check(other, base, people)
            found["donors"] = donors_check(other, peer)
            found["utility"] = utility_check(real, other, peer, names)
        return Judged(comparison, evidence, [found[c.key] for c in CHECKS if c.key in found], audits)


def _add_intervals(comparison: Comparison, evidence: Evidence) -> None:
    """95 % intervals of Corr and RSA on Fisher's z scale."""
    from scipy.special import stdtrit

    for name, key in (("corr", "corr"), ("rsa_pearson", "rsa")):
        score, error = comparison.scores[name], evidence.error_of(key)
        if score.value is None or error is None:
            continue
        centre = np.arctanh(np.clip(score.value, -0.999999, 0.999999))
        reach = float(stdtrit(evidence.dof, 0.975)) * error
        score.low, score.high = float(np.tanh(centre - reach)), float(np.tanh(centre + reach))


def choose_control(
    train: list[Block], synthetic: list[Block], conditions: list[str], seed: int
) -> tuple[set[str], dict[str, set[int]]]:
    """Who stands in for the samples, and which blocks: as many per condition as there are samples, people in turn.

    Returns
    -------
    people : set of str
        Half of the training people: the control. The others are the reference.
    chosen : dict
        ``control`` and ``peer``: indices into `train` of the blocks of each half, as many as there are samples.
    """
    rng = np.random.default_rng(seed)
    names = sorted({block.subject for block in train})
    control = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
    people = np.array([block.subject for block in train])
    found: dict[str, set[int]] = {"control": set(), "peer": set()}
    for condition in conditions:
        n = sum(block.condition == condition for block in synthetic)
        for key in found:
            pool = [
                i
                for i, b in enumerate(train)
                if b.condition == condition and (b.subject in control) == (key == "control")
            ]
            found[key] |= {int(i) for i in in_turn(people, rng.permutation(np.array(pool, int)))[:n]}
    return control, found


def analyse(cohorts: Cohorts, config: EvaluateConfig, out: Path) -> Analysis:
    """Compute everything; reads each real, training and synthetic block once (twice for native-space ROIs).

    Parameters
    ----------
    cohorts : Cohorts
        What is compared.
    config : EvaluateConfig
    out : Path
        Folder for temporary files.
    """
    notes = list(cohorts.notes)
    rois, roi_note = choose_rois(cohorts, config)
    probes = Probes(cohorts.grid, cohorts.mask_XYZ, rois)
    rng = np.random.default_rng(config.seed)
    n_voxels = int(cohorts.mask_XYZ.sum())
    voxels = np.sort(rng.choice(n_voxels, min(n_voxels, config.resampling_voxels), replace=False))

    def stream(blocks: list[Block], what: str) -> Iterator[Window]:
        return track(iterate_windows(blocks, cohorts.mask_XYZ, cohorts.grid, config.glm), what, total=len(blocks))

    with baselines.training_store(out, config.baseline_training_blocks, config.seed) as store:
        training = WindowStore(probes) if cohorts.train else None
        peer = control = None
        halves: list[list[int]] = [[], []]
        patterns, timing, shared = {}, {}, []
        if training is not None:
            people, chosen = choose_control(cohorts.train, cohorts.synthetic, cohorts.conditions, config.seed)
            halves = [
                [i for i, b in enumerate(cohorts.train) if (b.subject in people) == side] for side in (False, True)
            ]
            watched = store.watch(training.watch(stream([cohorts.train[i] for i in chain(*halves)], "training blocks")))
            reference_keep = Summariser(probes, config.glm, voxels, n_groups=1)
            peer_keep = Summariser(probes, config.glm, voxels, as_samples=True, keep_effects=True)
            for index, window in zip(halves[0], islice(watched, len(halves[0])), strict=True):
                reference_keep.add(window)
                if index in chosen["peer"]:
                    peer_keep.add(window)
            reference, peer = reference_keep.finish().properties, peer_keep.finish()
            shared = [c for c in cohorts.conditions if c in set(reference.rows.conditions_N)]
            patterns = patterns_of(reference, probes, shared)
            timing = templates(reference, patterns, store, cohorts.tr_s)
            control_keep = Summariser(probes, config.glm, voxels, patterns, as_samples=True, keep_effects=True)
            for index, window in zip(halves[1], watched, strict=True):
                if index in chosen["control"]:
                    control_keep.add(window)
            control = control_keep.finish() if chosen["control"] else None
        real = summarise(stream(cohorts.real, "real blocks"), Summariser(probes, config.glm, voxels, patterns))
        synthetic = summarise(
            stream(cohorts.synthetic, "synthetic blocks"),
            Summariser(probes, config.glm, voxels, patterns, keep_effects=True),
        )
        _refuse_constant(synthetic)
        log.info("checks")
        whole = shared == cohorts.conditions
        odd = {c: p.odd_energy for c, p in patterns.items()}
        judged = Judge(
            real, peer if whole else None, Context(cohorts.conditions, cohorts.candidates, rois, timing if whole else {}, odd),
            training, config,
        )  # fmt: skip
        own = judged(synthetic)
        stands_in = judged(control, n_training=len(halves[0])) if control is not None and whole else None
        found, rivals = [], {}
        if training is not None and shared and config.baselines:
            n = config.baseline_samples
            streams = (
                baselines.class_mean_residuals(store, shared, n, config.seed + 1),
                baselines.pca_gaussian(store, shared, n, config.seed + 2),
                baselines.low_rank_gaussian(store, shared, n, config.seed + 3),
                baselines.nearest_training(store, training, synthetic, shared, n),
            )
            for name, windows in zip(baselines.NAMES, streams, strict=True):
                keep = Summariser(probes, config.glm, voxels, patterns, keep_effects=True)
                rivals[name] = summarise(track(windows, name, total=n * len(shared)), keep)
                rival = judged(rivals[name], shared, whole=False)
                found.append(Baseline(name, rival, standings(own.evidence, rival.evidence), n))
        cells = []
        if control is not None and whole and config.utility_grid:
            sources = {"samples": synthetic} | {
                name: rivals[name] for name in rivals if name != "nearest training sample"
            }
            cells = utility_grid(real, control, sources, cohorts.conditions, config.seed)
    if training is None:
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
        tokenizer_ceiling=_tokenizer_ceiling(cohorts, config, real.properties, probes, voxels),
        baselines=found, rois=rois, roi_note=roi_note, utility=cells,
        variance={"real": explained_variance(real), "synthetic": explained_variance(synthetic)}, truth=truth, notes=notes,
    )  # fmt: skip


def templates(
    reference: Properties, patterns: dict[str, Pattern], store: baselines.TrainingStore, tr_s: float
) -> dict[str, Timing]:
    """Per condition the course of the reference people's pattern, as a template of its timing."""
    return {c: Timing(store.mean(c) @ pattern.weights_V, tr_s) for c, pattern in patterns.items()}


def _control_note(control: Summary | None, judged: Judged | None) -> str:
    if control is None or judged is None:
        return "No control: it needs training people apart from the compared ones, with all compared conditions."
    return (
        f"Control: {control.n_blocks} real blocks of {len(set(control.people_N))} training people, as many per condition as there are samples "
        "(fewer where there are not so many), through the same scores and checks. Ceilings are the same of the other half of the training people."
    )


def _refuse_constant(synthetic: Summary) -> None:
    still = [
        person for person, window in zip(synthetic.people_N, synthetic.windows_NCT, strict=True)
        if not np.isfinite(window).all() or np.ptp(window) == 0
    ]  # fmt: skip
    if len(still) == synthetic.n_blocks:
        raise FmrisynthError(
            f"all {len(still)} synthetic blocks are constant or not finite; the generator that made them is broken or untrained."
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
    table = subject_effects(blocks, config.glm, grid=grid, mask_XYZ=mask)
    maps = {c: group_map(table, c).estimate.z for c in cohorts.conditions if c in table.conditions}
    note = f"Data-driven spheres of 6 mm around the largest |z| of {text}, at least 20 mm apart (no atlas fits this space or task)."
    if not cohorts.train:
        note += " They were chosen on the data they are shown with, which favours the real curves."
    return peak_rois(maps, mask, grid, text), note


def _tokenizer_ceiling(
    cohorts: Cohorts, config: EvaluateConfig, real: Properties, probes: Probes, voxels: np.ndarray
) -> Comparison | None:
    windows: Iterable[Window]
    if config.tokenizer is not None:
        own = [b for b in cohorts.real if b.condition in cohorts.conditions]
        windows = reconstructed_windows(own, cohorts.mask_XYZ, cohorts.grid, config.glm, config.tokenizer)
    elif config.reconstructions is not None:
        subjects = set(real.rows.people_N)
        own = [
            b
            for b in read_blocks(config.reconstructions)
            if b.condition in cohorts.conditions and b.subject in subjects
        ]
        if not own:
            raise FmrisynthError(
                f"{config.reconstructions}: holds no blocks of the compared subjects and conditions; reconstruct the same test blocks."
            )
        windows = iterate_windows(own, cohorts.mask_XYZ, cohorts.grid, config.glm)
    else:
        return None
    keep = Summariser(probes, config.glm, voxels, n_groups=1, keep_effects=True)
    rebuilt = summarise(track(windows, "tokenizer ceiling", total=len(own)), keep).properties
    conditions = [c for c in cohorts.conditions if rebuilt.has(c)]
    candidates = conditions + [c for c in cohorts.candidates if c not in conditions]
    return compare_maps(real, rebuilt, conditions, candidates, config.seed)
