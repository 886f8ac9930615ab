"""The datasets of an evaluation, read once each into summaries that are kept between calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block
from fmrisynth.evaluate import baselines
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.distinguish import in_turn
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.reconstruct import reconstructed_windows
from fmrisynth.evaluate.response import Pattern, Timing
from fmrisynth.evaluate.scoring import Comparison, compare_maps
from fmrisynth.evaluate.summary import (
    Blocks,
    Reference,
    Summariser,
    Summary,
    WindowStore,
    load_arrays,
    patterns_of,
    save_arrays,
)
from fmrisynth.glm.windows import Window, iterate_windows
from fmrisynth.progress import track
from fmrisynth.stage import Stage, Unit, content_digest


def choose_control(
    train: list[Block], synthetic: list[Block], conditions: list[str], seed: int
) -> tuple[set[str], dict[str, set[int]]]:
    """Who stands in for the samples, and which blocks: as many per condition as there are samples, people in turn.

    Half of the training people are the control, the others the reference. Returned are the former, and indices into
    `train` of the blocks of each half (``control``, ``peer``).
    """
    rng = np.random.default_rng(seed)
    names = sorted({block.subject for block in train})
    control = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
    people = np.array([block.subject for block in train])
    inside_N, conditions_N = np.isin(people, list(control)), np.array([block.condition for block in train])
    found: dict[str, set[int]] = {"control": set(), "peer": set()}
    for condition in conditions:
        n = sum(block.condition == condition for block in synthetic)
        for key in found:
            pool = np.flatnonzero((conditions_N == condition) & (inside_N == (key == "control")))
            found[key] |= {int(i) for i in in_turn(people, rng.permutation(pool))[:n]}
    return control, found


class Parts:
    """Reads datasets and keeps their summaries between calls: each is made again only when what determines it has changed.

    `stage` owns the output folder in which they are kept.
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
            label, about, lambda: self.summariser(**options).take(self.stream(blocks, f"{label} blocks"))
        )

    def read_training(self) -> tuple[Summary | None, Summary | None]:
        """One pass over the training blocks.

        Half of the people are the reference, whose patterns tell the responses of all datasets, and as many of their
        blocks as there are samples are the *peers*; as many of the others are the *control*. None without training
        people, and where these have too few blocks.
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
        store, reference = WindowStore(), Reference(self.config.glm)
        windows = self.stream([train[i] for i in chain(*halves)], "training blocks")
        arrays: dict[str, np.ndarray] = {}
        for half, key in zip(halves, ("peer", "control"), strict=True):
            keep = self.summariser(as_samples=True)
            own = islice(windows, len(half))
            for index, window in zip(half, reference.watch(own) if key == "peer" else own, strict=True):
                store.add(window.block.subject, window.block.condition, *self.probes.on_cells(window))
                if index in chosen[key]:
                    keep.add(keep.measure(window))
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
            return self.summariser().take(track(windows, name, total=config.baseline_samples * len(conditions)))

        labels = {name: "-".join(["baseline", *re.findall("[a-z]+", name.lower())]) for name in baselines.GENERATORS}
        return {
            name: self.summary(label, about, partial(make, name, config.seed + 1 + i))
            for i, (name, label) in enumerate(labels.items())
        }

    def tokenizer_ceiling(self) -> Comparison | None:
        """Scores of real blocks that went through a tokenizer (one of each person and condition), against the same blocks before."""
        config, cohorts = self.config, self.cohorts
        if config.tokenizer is None:
            return None
        known = {(b.subject, b.condition): b for b in reversed(cohorts.real) if b.condition in cohorts.conditions}
        own = list(reversed(known.values()))
        folder = config.tokenizer
        about = {"tokenizer": sorted(p for p in folder.rglob("*") if p.is_file()), "blocks": digest_of(own)}
        windows = reconstructed_windows(own, cohorts.mask_XYZ, cohorts.grid, config.glm, folder)
        windows = track(windows, "tokenizer ceiling", total=len(own))
        after = self.summary("tokenizer", about, lambda: self.summariser().take(windows)).properties
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
