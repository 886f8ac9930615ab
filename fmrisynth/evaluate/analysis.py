"""All numbers of one evaluation, before any of them is written or drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block, read_blocks
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate import baselines
from fmrisynth.evaluate.checks import CHECKS, Context, Verdict
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.distinguish import classifier_checks, copies_check, distinct_check, donors_check, in_turn
from fmrisynth.evaluate.jackknife import Evidence, Standing, gather, judge, standings
from fmrisynth.evaluate.privacy import Audit, Gallery
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.reconstruct import reconstructed_windows
from fmrisynth.evaluate.response import Pattern, Timing
from fmrisynth.evaluate.rois import Roi, peak_rois, read_atlas, read_spheres
from fmrisynth.evaluate.scoring import Comparison, Score, compare_maps, noise_free_ceiling, split_half_ceiling
from fmrisynth.evaluate.summary import (
    Blocks,
    Reference,
    Summariser,
    Summary,
    WindowStore,
    load_arrays,
    patterns_of,
    save_arrays,
    summarise,
)
from fmrisynth.evaluate.truth import Ceiling, truth_correlations
from fmrisynth.evaluate.utility import Cell, utility_check, utility_grid
from fmrisynth.evaluate.variance import explained_variance
from fmrisynth.glm.effects import subject_effects
from fmrisynth.glm.group import group_map
from fmrisynth.glm.windows import Window, iterate_windows
from fmrisynth.progress import log, track
from fmrisynth.stage import Stage, Unit, content_digest


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
    training : Blocks or None
        Training windows, for privacy; without them the audit compares with the real people.
    config : EvaluateConfig
    """

    def __init__(
        self, real: Summary, peer: Summary | None, context: Context, training: Blocks | None, config: EvaluateConfig
    ) -> None:
        self.real, self.peer, self.context, self.config = real, peer, context, config
        self._training = training or real.blocks
        self._galleries: dict[int | None, tuple[Gallery, Gallery] | None] = {}

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
        galleries = self._gallery(n_training)
        audits = {}
        if galleries is not None:
            blocks = other.blocks
            audits = {
                "dynamics": galleries[0].audit(blocks.windows_NCT),
                "anatomy": galleries[1].audit(blocks.anatomy_NC),
            }
        found["copies"] = copies_check("copies", audits.get("dynamics"))
        found["copied_anatomy"] = copies_check("copied_anatomy", audits.get("anatomy"))
        if whole:
            found |= {v.check.key: v for v in classifier_checks(real, other, peer, names)}
            found["distinct"] = distinct_check(other, galleries[0].reach if galleries else None)
            found["donors"] = donors_check(other, peer)
            found["utility"] = utility_check(real, other, peer, names)
        return Judged(comparison, evidence, [found[c.key] for c in CHECKS if c.key in found], audits)

    def _gallery(self, n_training: int | None) -> tuple[Gallery, Gallery] | None:
        """Of dynamics and of anatomies, made once; None for fewer than three people."""
        if n_training not in self._galleries:
            own, percentile = self._training.first(n_training), self.config.privacy_percentile
            self._galleries[n_training] = None
            if len(set(own.people_N)) >= 3:
                self._galleries[n_training] = (
                    Gallery(own.windows_NCT, own.people_N, own.conditions_N, percentile),
                    Gallery(own.anatomy_NC, own.people_N, None, percentile, one_each=True),
                )
        return self._galleries[n_training]


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


class Parts:
    """Reads datasets and keeps their summaries between calls: each is made again only when what determines it has changed.

    Parameters
    ----------
    cohorts : Cohorts
    config : EvaluateConfig
    stage : Stage
        Owner of the output folder.
    probes : Probes
    """

    def __init__(self, cohorts: Cohorts, config: EvaluateConfig, stage: Stage, probes: Probes) -> None:
        self.cohorts, self.config, self.stage, self.probes = cohorts, config, stage, probes
        n_voxels = int(cohorts.mask_XYZ.sum())
        rng = np.random.default_rng(config.seed)
        self.voxels = np.sort(rng.choice(n_voxels, min(n_voxels, config.resampling_voxels), replace=False))
        self.patterns: dict[str, Pattern] = {}
        self.training: Blocks | None = None
        self.timing: dict[str, Timing] = {}
        self._about: dict[str, Any] = {
            "mask": cohorts.mask_XYZ, "grid": cohorts.grid, "regions": probes.rois, "glm": config.glm, "voxels": self.voxels,
        }  # fmt: skip

    def stream(self, blocks: Sequence[Block], what: str) -> Iterator[Window]:
        """Windows one at a time, with a progress bar."""
        windows = iterate_windows(blocks, self.cohorts.mask_XYZ, self.cohorts.grid, self.config.glm)
        return track(windows, what, total=len(blocks))

    def summariser(self, **options: Any) -> Summariser:
        """An empty summary."""
        return Summariser(self.probes, self.config.glm, self.voxels, self.patterns, **options)

    def path(self, label: str) -> Path:
        """Where a summary is kept, without suffix."""
        return self.stage.out / "parts" / label

    def keep(self, label: str, about: dict[str, Any], make: Callable[[], None]) -> None:
        """Have a part made, unless it is there and what determines it is the same."""
        unit = Unit(label, self._about | about, make, self.path(label).with_suffix(".npz").relative_to(self.stage.out))
        self.stage.part(unit)

    def summary(self, label: str, about: dict[str, Any], make: Callable[[], Summary]) -> Summary:
        """A summary, made now or found."""
        self.keep(label, about, lambda: make().save(self.path(label)))
        return Summary.load(self.path(label))

    def of(self, label: str, blocks: list[Block], **options: Any) -> Summary:
        """The summary of a dataset's blocks."""
        about = {"blocks": digest_of(blocks), "reference": self.stage.result_digest("training"), **options}
        return self.summary(
            label, about, lambda: summarise(self.stream(blocks, f"{label} blocks"), self.summariser(**options))
        )

    def read_training(self) -> tuple[Summary | None, Summary | None]:
        """One pass over the training blocks.

        Half of the people are the reference, whose patterns tell the responses of all datasets, and as many of their blocks as there are samples
        are the *peers*; as many of the others are the *control*.

        Returns
        -------
        peer, control : Summary or None
            None without training people, and where these have too few blocks.
        """
        train = self.cohorts.train
        if not train:
            return None, None
        people, chosen = choose_control(train, self.cohorts.synthetic, self.cohorts.conditions, self.config.seed)
        halves = [[i for i, b in enumerate(train) if (b.subject in people) == side] for side in (False, True)]
        self.n_reference = len(halves[0])
        about = {"blocks": digest_of(train), "halves": halves, "chosen": chosen}
        self.keep("training", about, lambda: self._read_training(halves, chosen))
        arrays, windows_NCT = load_arrays(self.path("training"))
        self.training = Blocks(windows_NCT, arrays["anatomy"], arrays["people"], arrays["blocks"])
        self.patterns = patterns_of(arrays, self.probes)
        self.timing = {
            c: Timing(course, self.cohorts.tr_s) for c, course in zip(self.patterns, arrays["course"], strict=True)
        }
        peer, control = (Summary.load(self.path(key)) if chosen[key] else None for key in ("peer", "control"))
        return peer, control

    def _read_training(self, halves: list[list[int]], chosen: dict[str, set[int]]) -> None:
        train = self.cohorts.train
        store, reference = WindowStore(self.probes), Reference(self.config.glm)
        windows = self.stream([train[i] for i in chain(*halves)], "training blocks")
        arrays: dict[str, np.ndarray] = {}
        for half, key in zip(halves, ("peer", "control"), strict=True):
            keep = self.summariser(as_samples=True)
            own = islice(windows, len(half))
            for index, window in zip(half, reference.watch(own) if key == "peer" else own, strict=True):
                store.add(window)
                if index in chosen[key]:
                    keep.add(window)
            if chosen[key]:
                keep.finish().save(self.path(key))
            if key == "peer":
                arrays = reference.arrays(self.probes)
                self.patterns = patterns_of(arrays, self.probes)
        blocks = store.blocks()
        arrays |= {"anatomy": blocks.anatomy_NC, "people": blocks.people_N, "blocks": blocks.conditions_N}
        save_arrays(self.path("training"), arrays, blocks.windows_NCT)

    def baselines(self, conditions: list[str]) -> dict[str, Summary]:
        """Samples of the baselines; training blocks are read only when one of them must be made."""
        config = self.config
        own = baselines.choose_blocks(self.cohorts.train, conditions, config.baseline_training_blocks, config.seed)
        about = {
            "blocks": digest_of(own), "conditions": conditions, "n": config.baseline_samples, "seed": config.seed,
            "reference": self.stage.result_digest("training"),
        }  # fmt: skip
        fitted: list[baselines.TrainingWindows] = []

        def make(name: str, seed: int) -> Summary:
            if not fitted:
                fitted.append(baselines.TrainingWindows(self.stream(own, "training blocks of the baselines")))
            windows = baselines.GENERATORS[name](fitted[0], conditions, config.baseline_samples, seed)
            return summarise(track(windows, name, total=config.baseline_samples * len(conditions)), self.summariser())

        return {
            name: self.summary(name.replace(" ", "-"), about, partial(make, name, config.seed + 1 + i))
            for i, name in enumerate(baselines.GENERATORS)
        }

    def tokenizer_ceiling(self) -> Comparison | None:
        """Scores of real blocks that went through a tokenizer (one of each person and condition), against the same blocks before."""
        config, cohorts = self.config, self.cohorts
        known = {(b.subject, b.condition): b for b in reversed(cohorts.real) if b.condition in cohorts.conditions}
        own = list(reversed(known.values()))
        if config.tokenizer is not None:
            folder = config.tokenizer
            about: dict[str, Any] = {"tokenizer": sorted(path for path in folder.rglob("*") if path.is_file())}
            windows = reconstructed_windows(own, cohorts.mask_XYZ, cohorts.grid, config.glm, folder)
        elif config.reconstructions is not None:
            rebuilt = {b.bold: b for b in read_blocks(config.reconstructions)}
            own = [b for b in own if b.bold in rebuilt]
            if not own:
                raise FmrisynthError(
                    f"{config.reconstructions}: holds no blocks of the compared subjects and conditions; reconstruct the same test blocks."
                )
            again = [rebuilt[b.bold] for b in own]
            about = {"reconstructions": digest_of(again)}
            windows = iterate_windows(again, cohorts.mask_XYZ, cohorts.grid, config.glm)
        else:
            return None
        about |= {"blocks": digest_of(own)}
        after = self.summary(
            "tokenizer",
            about,
            lambda: summarise(track(windows, "tokenizer ceiling", total=len(own)), self.summariser()),
        ).properties
        before = self.of("before-tokenizer", own).properties
        conditions = [c for c in cohorts.conditions if after.has(c)]
        return compare_maps(before, after, conditions, conditions, config.seed)


def digest_of(blocks: Sequence[Block]) -> list[str]:
    """Digest of what a window is made of: images, reference volumes and tables."""
    roots: dict[Path, list[Path]] = {}
    for block in blocks:
        table = block.root / f"sub-{block.subject}" / f"sub-{block.subject}_scans.tsv"
        roots.setdefault(block.root, []).extend((block.path, block.reference_path, table))
    return [content_digest(root, list(dict.fromkeys(files))) for root, files in roots.items()]


def analyse(cohorts: Cohorts, config: EvaluateConfig, stage: Stage) -> Analysis:
    """Compute everything; reads each real, training and synthetic block once (those of the baselines and of the tokenizer's ceiling again).

    Parameters
    ----------
    cohorts : Cohorts
        What is compared.
    config : EvaluateConfig
    stage : Stage
        Owner of the folder in which summaries are kept.
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
    timing = parts.timing if whole else {}
    judged = Judge(
        real, peer if whole else None, Context(cohorts.conditions, cohorts.candidates, rois, timing, odd), parts.training, config
    )  # fmt: skip
    own = judged(synthetic)
    stands_in = judged(control, n_training=parts.n_reference) if control is not None and whole else None
    found, cells = [], []
    if parts.training is not None and shared and config.baselines:
        for name, rival in parts.baselines(shared).items():
            verdict = judged(rival, shared, whole=False)
            standing = standings(own.evidence, verdict.evidence)
            found.append(Baseline(name, verdict, standing, config.baseline_samples))
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
        variance={"real": explained_variance(real), "synthetic": explained_variance(synthetic)}, truth=truth, notes=notes,
    )  # fmt: skip


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
