"""All numbers of one evaluation, before any of them is written or drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import read_blocks
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate import baselines
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.jackknife import Realism, Standing, judge_realism, standings
from fmrisynth.evaluate.privacy import Audit, audit
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.realism import Check
from fmrisynth.evaluate.reconstruct import reconstructed_windows
from fmrisynth.evaluate.rois import Roi, peak_rois, read_atlas, read_spheres
from fmrisynth.evaluate.scoring import (
    Comparison,
    GroupMaps,
    Score,
    compare_maps,
    group_maps,
    leave_one_out_top1,
    noise_free_ceiling,
    split_half_ceiling,
)
from fmrisynth.evaluate.summary import Summary, summarise
from fmrisynth.evaluate.truth import truth_correlations
from fmrisynth.evaluate.utility import Transfer, transfers
from fmrisynth.evaluate.variance import explained_variance
from fmrisynth.glm.effects import EffectTable, subject_effects
from fmrisynth.glm.windows import iterate_windows
from fmrisynth.progress import log, track


@dataclass
class Baseline:
    """A trivial generator's scores, realism and privacy.

    `standings` says per check whether it is nearer to the real data than the synthetic data are, beyond chance.
    """

    name: str
    comparison: Comparison
    checks: list[Check]
    standings: dict[str, Standing | None]
    privacy: Audit | None
    n_per_condition: int


@dataclass
class Analysis:
    """Everything that the report shows."""

    cohorts: Cohorts
    real: Summary
    synthetic: Summary
    train: Summary | None
    real_maps: GroupMaps
    synthetic_maps: GroupMaps
    comparison: Comparison
    split_half: dict[str, Score]
    split_half_note: str
    train_ceiling: Comparison | None
    noise_free_corr: float | None
    real_per_block: Score | None
    tokenizer_ceiling: Comparison | None
    baselines: list[Baseline]
    checks: list[Check]
    rois: list[Roi]
    roi_note: str
    privacy: dict[str, Audit]
    utility: list[Transfer]
    variance: dict[str, dict[str, float | None]]
    truth: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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

    def stream(blocks, what):
        return track(iterate_windows(blocks, cohorts.mask_XYZ, cohorts.grid, config.glm), what, total=len(blocks))

    real = summarise(stream(cohorts.real, "real blocks"), probes, config.glm)
    synthetic = summarise(stream(cohorts.synthetic, "synthetic blocks"), probes, config.glm)
    _refuse_constant(synthetic)
    real_maps = group_maps(real.table, cohorts.candidates)
    synthetic_maps = group_maps(synthetic.table, cohorts.conditions)
    rng = np.random.default_rng(config.seed)
    n_voxels = int(cohorts.mask_XYZ.sum())
    voxels = np.sort(rng.choice(n_voxels, min(n_voxels, config.resampling_voxels), replace=False))

    def score(maps: GroupMaps, summary: Summary, repeats: int) -> Comparison:
        order = maps.conditions + [c for c in cohorts.candidates if c not in maps.conditions]
        candidates = group_maps(real.table, order)
        return compare_maps(
            candidates, maps, real.table, summary.table, bootstrap_repeats=repeats, voxels=voxels, seed=config.seed,
            block_effects_RV=summary.block_effects_RV,
        )  # fmt: skip

    def realism(summary: Summary, conditions: list[str]) -> Realism:
        reference = train.properties if train is not None else None
        return judge_realism(real.properties, summary.properties, conditions, rois, reference)

    log.info("scores and bootstrap")
    comparison = score(synthetic_maps, synthetic, config.bootstrap_repeats)
    split_half, split_half_note = split_half_ceiling(
        real.table, cohorts.conditions, config.split_half_repeats, voxels, config.seed
    )
    train: Summary | None = None
    train_ceiling, found = None, []
    with baselines.training_store(out, config.baseline_training_blocks, config.seed) as store:
        shared: list[str] = []
        if cohorts.train:
            watched = store.watch(stream(cohorts.train, "training blocks"))
            train = summarise(watched, probes, config.glm, n_groups=1)
            shared = [c for c in cohorts.conditions if c in set(train.conditions_N)]
        own = realism(synthetic, cohorts.conditions)
        if train is not None and shared:
            train_ceiling = score(group_maps(train.table, shared), train, min(config.bootstrap_repeats, 200))
        if train is not None and shared and config.baselines:
            n = config.baseline_samples
            streams = (
                baselines.class_mean_residuals(store, shared, n, config.seed + 1),
                baselines.pca_gaussian(store, shared, n, config.seed + 2),
                baselines.nearest_training(store, train, synthetic, shared, n),
            )
            for name, windows in zip(baselines.NAMES, streams, strict=True):
                summary = summarise(track(windows, name, total=n * len(shared)), probes, config.glm)
                scored = score(group_maps(summary.table, shared), summary, min(config.bootstrap_repeats, 200))
                rival = realism(summary, shared)
                copied = audit(train.windows_NCT, train.subjects_N, summary.windows_NCT, config.privacy_percentile)
                found.append(Baseline(name, scored, rival.checks, standings(own, rival), copied, n))
    audit_base = train or real
    privacy = {}
    for name, base, samples in (
        ("dynamics", audit_base.windows_NCT, synthetic.windows_NCT), ("anatomy", audit_base.anatomy_NC, synthetic.anatomy_NC),
    ):  # fmt: skip
        outcome = audit(base, audit_base.subjects_N, samples, config.privacy_percentile)
        if outcome is not None:
            privacy[name] = outcome
    if not privacy:
        notes.append("No privacy audit: it needs training blocks of at least three subjects.")
    elif train is None:
        notes.append("The privacy audit compares with the evaluated subjects, as there is no separate training split.")
    truth = {}
    if config.truth is not None:
        truth = truth_correlations(config.truth, cohorts.grid, cohorts.mask_XYZ, real_maps, synthetic_maps)
    corr = split_half.get("corr")
    return Analysis(
        cohorts=cohorts, real=real, synthetic=synthetic, train=train, real_maps=real_maps, synthetic_maps=synthetic_maps,
        comparison=comparison, split_half=split_half, split_half_note=split_half_note, train_ceiling=train_ceiling,
        noise_free_corr=noise_free_ceiling(corr.value) if corr is not None and corr.value is not None else None,
        real_per_block=leave_one_out_top1(real.table, real.block_effects_RV, cohorts.candidates),
        tokenizer_ceiling=_tokenizer_ceiling(cohorts, config, real, voxels),
        baselines=found, checks=own.checks, rois=rois, roi_note=roi_note,
        privacy=privacy, utility=transfers(real, synthetic, train, cohorts.conditions),
        variance={"real": explained_variance(real), "synthetic": explained_variance(synthetic)}, truth=truth, notes=notes,
    )  # fmt: skip


def _refuse_constant(synthetic: Summary) -> None:
    still = [
        block.subject for block, window in zip(synthetic.blocks, synthetic.windows_NCT, strict=True)
        if not np.isfinite(window).all() or np.ptp(window) == 0
    ]  # fmt: skip
    if len(still) == len(synthetic.blocks):
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
    maps = {c: group_maps(table, [c]).z_KV[0] for c in cohorts.conditions if c in table.conditions}
    note = f"Data-driven spheres of 6 mm around the largest |z| of {text}, at least 20 mm apart (no atlas fits this space or task)."
    if not cohorts.train:
        note += " They were chosen on the data they are shown with, which favours the real curves."
    return peak_rois(maps, mask, grid, text), note


def _tokenizer_ceiling(
    cohorts: Cohorts, config: EvaluateConfig, real: Summary, voxels: np.ndarray
) -> Comparison | None:
    if config.tokenizer is not None:
        own = [b for b in cohorts.real if b.condition in cohorts.conditions]
        windows = reconstructed_windows(own, cohorts.mask_XYZ, cohorts.grid, config.glm, config.tokenizer)
        probes = Probes(cohorts.grid, cohorts.mask_XYZ, [])
        reconstructed = summarise(track(windows, "tokenizer ceiling", total=len(own)), probes, config.glm, n_groups=1)
        table, block_effects_RV = reconstructed.table, reconstructed.block_effects_RV
    elif config.reconstructions is not None:
        table, block_effects_RV = _reconstructed_table(cohorts, config, real, config.reconstructions), None
    else:
        return None
    conditions = [c for c in cohorts.conditions if c in table.conditions]
    order = conditions + [c for c in cohorts.candidates if c not in conditions]
    return compare_maps(
        group_maps(real.table, order), group_maps(table, conditions), real.table, table,
        bootstrap_repeats=0, voxels=voxels, seed=config.seed, block_effects_RV=block_effects_RV,
    )  # fmt: skip


def _reconstructed_table(cohorts: Cohorts, config: EvaluateConfig, real: Summary, root: Path) -> EffectTable:
    blocks = [b for b in read_blocks(root) if b.condition in cohorts.conditions]
    subjects = set(real.subjects_N)
    blocks = [block for block in blocks if block.subject in subjects]
    if not blocks:
        raise FmrisynthError(
            f"{root}: holds no blocks of the compared subjects and conditions; reconstruct the same test blocks."
        )
    return subject_effects(blocks, config.glm, grid=cohorts.grid, mask_XYZ=cohorts.mask_XYZ)
