"""Which blocks are compared with which, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmrisynth.bids.origin import Origin, read_origin
from fmrisynth.conditions import suggest
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block, common_grid, read_blocks, refuse_unless_blocks
from fmrisynth.data.grid import Grid
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm.windows import common_mask


@dataclass(frozen=True, kw_only=True)
class ChosenBlocks:
    """The blocks to compare, as the tables of the datasets tell them.

    Attributes
    ----------
    real, train, synthetic : list of Block
        Real blocks to compare with; real training blocks (may be empty); synthetic blocks.
    conditions : list of str
        Synthesised conditions that the real data have too: the K of the scores.
    candidates : list of str
        All real conditions, `conditions` first: what Top-1 chooses from.
    notes : list of str
        What is reduced or unusual about this comparison, in sentences.
    """

    real: list[Block]
    train: list[Block]
    synthetic: list[Block]
    conditions: list[str]
    candidates: list[str]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Cohorts(ChosenBlocks):
    """The same on one grid and mask.

    Attributes
    ----------
    grid : Grid
    mask_XYZ : bool array
        Voxels usable in every block of all three.
    n_frames, tr_s
        Window shape, the same everywhere.
    """

    grid: Grid
    mask_XYZ: np.ndarray
    n_frames: int
    tr_s: float


def choose_blocks(real_root: Path, synthetic_root: Path, config: EvaluateConfig) -> ChosenBlocks:
    """Read both indices, choose splits and conditions; no image is read.

    Raises
    ------
    FmrisynthError
        Something is no block dataset, or the datasets share no condition.
    """
    notes: list[str] = []
    every_real = read_blocks(real_root)
    synthetic = read_blocks(synthetic_root)
    if not synthetic:
        raise FmrisynthError(f"{synthetic_root}: the dataset has no blocks; run `fmrisynth sample` first.")
    real = every_real
    if config.test_split != "all":
        real = [block for block in every_real if block.split == config.test_split]
    if not real:
        real = every_real
        notes.append(
            f"The real dataset has no subject in the {config.test_split} split, so all its subjects are compared"
            + perhaps_seen(read_origin(real_root), read_origin(synthetic_root))
        )
    seen = {block.subject for block in real}
    every_training = every_real if config.training is None else read_blocks(config.training)
    train = [block for block in every_training if block.split == "train" and block.subject not in seen]
    if not train:
        notes.append("There are no training blocks apart from the compared ones, so no baselines were fitted.")

    refuse_unless_blocks([*real, *synthetic, *train], "`evaluate` compares blocks; for runs use --unit run")
    known_real = list(dict.fromkeys(block.condition for block in real))
    known_synthetic = list(dict.fromkeys(block.condition for block in synthetic))
    wanted = list(config.conditions) or known_synthetic
    for label in wanted:
        if label not in known_synthetic:
            raise UsageError(
                f"condition {label!r} is not among the synthetic blocks; {suggest(label, known_synthetic)}"
            )
    conditions = [label for label in wanted if label in known_real]
    if not conditions:
        raise FmrisynthError(
            f"{synthetic_root}: its conditions ({', '.join(known_synthetic)}) share none with {real_root} "
            f"({', '.join(known_real)}); sample the conditions of the real dataset."
        )
    lost = [label for label in wanted if label not in known_real]
    if lost:
        notes.append(f"No real blocks of {', '.join(lost)}: these synthetic blocks were left out.")
    people = {label: len({block.subject for block in real if block.condition == label}) for label in known_real}
    least = min(3, *(people[label] for label in conditions))
    rare = [label for label in known_real if label not in conditions and people[label] < least]
    if rare:
        notes.append(f"Real conditions with fewer than {least} subjects are no candidates of Top-1: {', '.join(rare)}.")
    candidates = conditions + [label for label in known_real if label not in (*conditions, *rare)]
    if len(candidates) > len(conditions):
        notes.append(
            f"{len(candidates) - len(conditions)} real conditions were not synthesised ({', '.join(candidates[len(conditions) :])}); they "
            "stay candidates of Top-1 and take no part in Corr and RSA."
        )
    return ChosenBlocks(
        real=[block for block in real if block.condition in candidates],
        train=[block for block in train if block.condition in candidates],
        synthetic=[block for block in synthetic if block.condition in conditions],
        conditions=conditions,
        candidates=candidates,
        notes=notes,
    )


def choose_cohorts(real_root: Path, synthetic_root: Path, config: EvaluateConfig, work: Path | None = None) -> Cohorts:
    """Choose the blocks, check timing and grids, intersect the masks.

    Parameters
    ----------
    real_root, synthetic_root : Path
        Block datasets.
    config : EvaluateConfig
    work : Path, optional
        Folder for resampled copies of synthetic blocks; without it (or ``config.resample``) grids must agree.

    Raises
    ------
    FmrisynthError
        As `choose_blocks`; different frames or TR, different grids, or no common voxel.
    """
    chosen = choose_blocks(real_root, synthetic_root, config)
    real, train, synthetic, notes = chosen.real, chosen.train, chosen.synthetic, list(chosen.notes)
    shape = (real[0].n_frames, real[0].tr_s)
    for block in (*real, *train, *synthetic):
        if block.n_frames != shape[0] or abs(block.tr_s - shape[1]) > 1e-3:
            raise FmrisynthError(
                f"{block.path}: expected {shape[0]} frames of {shape[1]:g} s as in {real[0].path.name}, found {block.n_frames} "
                f"of {block.tr_s:g} s; prepare or sample with the same window."
            )
    grid, synthetic_grid = common_grid(real), common_grid(synthetic)
    if not grid.same_as(synthetic_grid) and config.resample and work is not None:
        from fmrisynth.evaluate.regrid import resample_blocks

        synthetic = resample_blocks(synthetic, grid, work)
        notes.append(
            f"The synthetic blocks were resampled from {synthetic_grid.shape} voxels of {synthetic_grid.voxel_mm[0]:g} mm onto the real "
            "grid, which smooths them."
        )
    elif not grid.same_as(synthetic_grid):
        raise FmrisynthError(
            f"the grids differ: {real_root} has {grid.shape}, space {grid.space}, affine {grid.affine_rows}; {synthetic_root} has "
            f"{synthetic_grid.shape}, space {synthetic_grid.space}, affine {synthetic_grid.affine_rows}; sample with a tokenizer of "
            "the real grid, or ask for it with --set resample=true."
        )
    mask_XYZ = _mask([*real, *train, *synthetic], grid, config.glm.min_reference_fraction)
    return Cohorts(
        real=real, train=train, synthetic=synthetic, conditions=chosen.conditions, candidates=chosen.candidates, notes=notes,
        grid=grid, mask_XYZ=mask_XYZ, n_frames=shape[0], tr_s=shape[1],
    )  # fmt: skip


def perhaps_seen(real: Origin, synthetic: Origin) -> str:
    """The end of a sentence: whether the model may have been trained on the compared people, as far as the datasets say it."""
    model = synthetic.trained_on
    if model is None:
        return "; what the model was trained on is not said: if it was on them, every score is optimistic."
    if (model.kind, model.name) != (real.kind, real.name):
        return "."
    n = "" if model.n_subjects is None else f" ({model.n_subjects:,} subjects)"
    return (
        f"; the model was trained on data of the same name, {real.name}{n}: if these people are among them, it has seen them and "
        "every score is optimistic."
    )


def _mask(blocks: Sequence[Block], grid: Grid, min_reference_fraction: float) -> np.ndarray:
    """Intersection of masks; blocks of one source run share mask and reference, so each run is read once."""
    runs: dict[tuple[str, str], Block] = {}
    for index, block in enumerate(blocks):
        runs.setdefault((f"{block.root}/{block.subject}", block.source or str(index)), block)
    return common_mask(list(runs.values()), grid, min_reference_fraction)
