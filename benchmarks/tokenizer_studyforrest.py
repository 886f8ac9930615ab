"""Contrast maps of the real studyforrest localizer run before and after a tokenizer fitted to half of it.

    python benchmarks/tokenizer_studyforrest.py DATASET [variant ...]

DATASET is the BIDS folder with ``sub-02_task-oneback_run-1``. The first half of the frames (78 of 156, in windows of
12 with a step of 6) fits the tokenizer; all frames are encoded and decoded. nilearn's first-level model
(SPM HRF, cosine drift 0.01 Hz, AR(1), 5 mm smoothing) then gives the maps that the dataset's README lists,
from the originals and from the reconstructions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from nilearn.glm.first_level import FirstLevelModel
from nilearn.masking import compute_epi_mask

from fmrisynth.config.load import load_config
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.blocks import BlockData
from fmrisynth.data.grid import Grid, native_grid
from fmrisynth.data.normalisation import denormalise
from fmrisynth.glm.map_scores import pearson
from fmrisynth.tokenize.fit import fit_tokenizer
from fmrisynth.tokenize.source import to_frames

CONTRASTS = {
    "face - (object + scramble) / 2": {"face": 1.0, "object": -0.5, "scramble": -0.5},
    "(scene + house) - (face + object)": {"scene": 0.5, "house": 0.5, "face": -0.5, "object": -0.5},
    "all images": dict.fromkeys(("face", "scene", "body", "house", "object", "scramble"), 1 / 6),
}
VARIANTS = {
    "pooling": ("pooling", []),
    "block PCA": ("patch-pca", []),
    "default": ("patch-overlap", []),
    "default, few-data prior": ("patch-overlap", ["model.prior_blocks=30"]),
    "default, global": ("patch-overlap", ["normalisation=global"]),
    "default C=8": ("patch-overlap", ["model.channels=8"]),
}
WINDOW, STEP, SKIP = 12, 6, 2


class HalfRun:
    """Windows of the first half of a run, as a source to fit to."""

    def __init__(self, whole: BlockData, grid: Grid, tr_s: float) -> None:
        self.whole, self.grid, self.tr_s, self.n_frames = whole, grid, tr_s, WINDOW
        half = whole.bold_XYZT.shape[3] // 2
        self.starts = list(range(SKIP, half - WINDOW + 1, STEP))

    def __len__(self) -> int:
        return len(self.starts)

    def data(self, index: int) -> BlockData:
        """One window."""
        start = self.starts[index]
        return BlockData(
            self.whole.bold_XYZT[..., start : start + WINDOW], self.whole.reference_XYZ, self.whole.mask_XYZ
        )

    def anatomy(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The run's mask and mean."""
        yield self.whole.mask_XYZ, self.whole.reference_XYZ


def load_run(dataset: Path) -> tuple[BlockData, Grid, float, pd.DataFrame]:
    """The run on its native grid, scaled to a mean of 10,000, and its images merged to blocks."""
    stem = dataset / "sub-02" / "func" / "sub-02_task-oneback_run-1"
    image = nib.load(f"{stem}_bold.nii.gz")
    bold = np.asarray(image.dataobj, dtype=np.float32)
    mask = np.asarray(compute_epi_mask(image).dataobj) > 0
    grid, box = native_grid(bold.shape, image.affine, mask)
    low = [max(0, -s.start) for s in box]
    high = [max(0, s.stop - n) for s, n in zip(box, bold.shape, strict=False)]
    pads = list(zip(low, high, strict=True))
    inside = tuple(slice(s.start + p, s.stop + p) for s, p in zip(box, low, strict=True))
    bold = np.pad(bold, [*pads, (0, 0)])[inside]
    mask = np.pad(mask, pads)[inside]
    bold *= 10_000 / bold[mask].mean()
    reference = bold.mean(axis=3)
    mask &= reference > 0
    events = pd.read_csv(f"{stem}_events.tsv", sep="\t")[["onset", "duration", "trial_type"]]
    new = (events.trial_type != events.trial_type.shift()) | (events.onset.diff() > 2)
    blocks = events.assign(end=events.onset + events.duration).groupby(new.cumsum())
    blocks = blocks.agg(onset=("onset", "first"), end=("end", "last"), trial_type=("trial_type", "first"))
    return (
        BlockData(bold, reference, mask),
        grid,
        2.0,
        blocks.assign(duration=blocks.end - blocks.onset).drop(columns="end"),
    )


def contrast_maps(
    bold_XYZT: np.ndarray, mask_XYZ: np.ndarray, grid: Grid, tr_s: float, events: pd.DataFrame
) -> np.ndarray:
    """z maps of the contrasts inside the mask, (contrasts, V)."""
    mask = nib.Nifti1Image(mask_XYZ.astype(np.uint8), grid.affine)
    model = FirstLevelModel(t_r=tr_s, hrf_model="spm", drift_model="cosine", high_pass=0.01, noise_model="ar1",
                            smoothing_fwhm=5, mask_img=mask, minimize_memory=True)  # fmt: skip
    model.fit(nib.Nifti1Image(bold_XYZT, grid.affine), events=events)
    columns = model.design_matrices_[0].columns
    rows = [[weights.get(c, 0.0) for c in columns] for weights in CONTRASTS.values()]
    return np.stack([model.compute_contrast(np.array(r)).get_fdata()[mask_XYZ] for r in rows])


def main() -> None:
    """Print one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    arguments = parser.parse_args()
    whole, grid, tr_s, events = load_run(arguments.dataset)
    print(f"grid {grid.shape}, {int(whole.mask_XYZ.sum())} voxels, {len(events)} blocks")
    original = contrast_maps(whole.bold_XYZT, whole.mask_XYZ, grid, tr_s, events)
    print("| variant | " + " | ".join(CONTRASTS) + " |\n" + "| --- " * (len(CONTRASTS) + 1) + "|")
    print("| peak z, originals | " + " | ".join(f"{z.max():.1f}" for z in original) + " |")
    for name in arguments.variants:
        preset, overrides = VARIANTS[name]
        config = load_config(TokenizeConfig, "tokenize", preset=preset, overrides=overrides)
        tokenizer = fit_tokenizer(HalfRun(whole, grid, tr_s), config)
        frames = to_frames(whole, config.normalisation)
        back = tokenizer.decode(tokenizer.encode(frames))[:, 0].permute(1, 2, 3, 0).numpy()
        bold = denormalise(back, whole.reference_XYZ, whole.mask_XYZ, config.normalisation)
        rebuilt = contrast_maps(bold, whole.mask_XYZ, grid, tr_s, events)
        cells = [f"r {r:.3f}, peak z {z.max():.1f}" for r, z in zip(pearson(original, rebuilt), rebuilt, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
