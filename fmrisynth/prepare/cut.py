"""From one source run to its blocks: resample in space, cut and resample in time, scale.

The run is streamed frame by frame: every frame goes into the temporal mean, and only the frames that some
window needs are resampled. Nothing of the size of a run is ever held.

Axis legend: X, Y, Z voxel axes; T frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmrisynth.bids.runs import Run
from fmrisynth.data.blocks import GRAND_MEAN, BlockData
from fmrisynth.data.grid import Grid, mni_brain_mask
from fmrisynth.data.nifti import Header, iterate_frames, read_image
from fmrisynth.data.percent import check_mean
from fmrisynth.data.resample import SpatialResampler, temporal_matrix
from fmrisynth.errors import FmrisynthError
from fmrisynth.prepare.plan import PlannedRun, PlannedWindow
from fmrisynth.progress import log

MIN_COVERAGE = 0.7
"""Least share of the standard box that an image in MNI space must hold (HCP's images hold 94 %)."""

COARSE = (slice(None, None, 4),) * 3
"""Voxels that are enough to see whether an image has lost its mean."""


@dataclass(frozen=True)
class CutRun:
    """The blocks of one run.

    Attributes
    ----------
    reference_XYZ : float32 array
        Temporal mean of the whole run, scaled.
    mask_XYZ : bool array
        Brain voxels.
    factor : float
        What the source's intensities were multiplied with.
    mask_source : str
        Where the mask came from.
    bad_frames : frozenset of int
        Frames that are no signal; windows get them from their neighbours.
    doubts : tuple of str
        What was odd about the image, in sentences.
    """

    reference_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    factor: float
    mask_source: str
    bad_frames: frozenset[int]
    doubts: tuple[str, ...]
    _scale: float  # the same for frames in stored units
    _frames_Tzyx: np.ndarray  # the resampled frames, in order of time
    _rows: dict[int, int]  # source frame -> row of _frames_Tzyx
    _run: PlannedRun

    def blocks(self) -> Iterator[tuple[PlannedWindow, BlockData]]:
        """Yield each window's arrays."""
        outside = ~self.mask_XYZ.T.ravel()
        for planned in self._run.windows:
            weights, first, last = _window_weights(self._run, planned, self.bad_frames)
            rows = self._frames_Tzyx[self._rows[first] : self._rows[last] + 1]  # contiguous: no copy
            mixed = (weights * np.float32(self._scale)) @ rows.reshape(len(rows), -1)
            mixed[:, outside] = 0.0
            np.maximum(mixed, 0.0, out=mixed)
            bold_XYZT = mixed.reshape(len(mixed), *rows.shape[1:]).T
            yield planned, BlockData(bold_XYZT, self.reference_XYZ, self.mask_XYZ)


def cut_run(run: PlannedRun, grid: Grid, source_mask_XYZ: np.ndarray | None) -> CutRun:
    """Resample one run and cut its windows.

    Parameters
    ----------
    run : PlannedRun
        The run and its windows.
    grid : Grid
        Target grid.
    source_mask_XYZ : bool array or None
        Brain mask on the source grid; None takes the MNI brain mask where the run has signal.

    Raises
    ------
    FmrisynthError
        The image is not in the grid's space, is damaged, or has no usable signal in the brain.
    """
    path, header = run.source.bold, run.header
    resampler = _resampler(path, header, grid)
    rows = {frame: row for row, frame in enumerate(_frames_needed(run))}
    frames_Tzyx = np.empty((len(rows), *grid.shape[::-1]), dtype=np.float32)
    mean, bad = _MeanOfFrames(header), set(run.source.bad_frames)
    for number, frame in enumerate(iterate_frames(path)):
        cropped = resampler.crop_frame(frame)
        if cropped.min() == cropped.max():  # dropped by the scanner, or not written
            bad.add(number)
        cropped = mean.add(cropped, counts=number not in bad)
        if number in rows:
            resampler.resample_crop(cropped, out_zyx=frames_Tzyx[rows[number]])
    reference = resampler.resample_crop(mean.values())
    mask_XYZ, mask_source = _mask_on_grid(run.source, resampler, source_mask_XYZ, reference)
    doubts = _doubts(run, mean, bad, resampler, source_mask_XYZ)
    _check_finite(path, mean.bad_XYZ, resampler, source_mask_XYZ, mask_XYZ)
    grand_mean = float(reference[mask_XYZ].mean(dtype=np.float64))
    if not np.isfinite(grand_mean) or grand_mean <= 0:
        raise FmrisynthError(
            f"{path}: expected BOLD intensities with a positive mean in the brain, found {grand_mean:.4g}; give the "
            "image before demeaning or standardising."
        )
    check_mean(path, *mean.sample(None if source_mask_XYZ is None else resampler.crop_frame(source_mask_XYZ)))
    scale = GRAND_MEAN / grand_mean
    return CutRun(
        reference_XYZ=np.where(mask_XYZ, reference * np.float32(scale), np.float32(0)),
        mask_XYZ=mask_XYZ, factor=scale / mean.slope_left, mask_source=mask_source,
        bad_frames=frozenset(bad), doubts=doubts, _scale=scale, _frames_Tzyx=frames_Tzyx, _rows=rows, _run=run,
    )  # fmt: skip


def brain_mask(run: Run, header: Header, *, native: bool) -> np.ndarray | None:
    """The brain mask on the run's own grid: as given, or for native grids from the mean image.

    Raises
    ------
    FmrisynthError
        The mask is empty, or not on the grid of the image.
    """
    if run.mask is not None:
        mask_XYZ = read_image(run.mask, ndim=3).scaled() > 0.5
        if not mask_XYZ.any():
            raise FmrisynthError(f"{run.mask}: the brain mask is empty; make it again.")
        return mask_XYZ
    return _epi_mask(run.bold, header) if native else None


class _MeanOfFrames:
    """Sum of frames in a type that cannot overflow, and the voxels that are not finite in some or in every frame."""

    def __init__(self, header: Header) -> None:
        self._convert = header.intercept != 0 or header.slope < 0
        small = header.dtype.kind in "iu" and header.dtype.itemsize <= 2 and not self._convert
        self._type = np.dtype(np.int32 if small else np.float64)
        self._floats = header.dtype.kind == "f"
        self._header = header
        self.slope_left = 1.0 if self._convert else header.slope  # still to be applied to frames and mean
        self._sum: np.ndarray | None = None
        self._n = 0
        self._ever_XYZ: np.ndarray | None = None
        self._always_XYZ: np.ndarray | None = None
        self._coarse = self._coarse_squares = np.zeros(())

    def add(self, cropped_XYZ: np.ndarray, *, counts: bool = True) -> np.ndarray:
        """Take a frame, into the mean if it `counts`; return it with voxels that are not finite set to 0."""
        if self._sum is None:
            self._sum = np.zeros(cropped_XYZ.shape, dtype=self._type, order="F")
            self._ever_XYZ = np.zeros(cropped_XYZ.shape, dtype=bool)
            self._always_XYZ = np.ones(cropped_XYZ.shape, dtype=bool)
        if self._floats and not np.isfinite(cropped_XYZ.sum(dtype=np.float64)):
            bad = ~np.isfinite(cropped_XYZ)
            self._ever_XYZ |= bad
            self._always_XYZ &= bad
            cropped_XYZ = np.where(bad, 0, cropped_XYZ)
        else:
            self._always_XYZ = np.zeros(cropped_XYZ.shape, dtype=bool)
        if self._convert:
            slope, intercept = np.float32(self._header.slope), np.float32(self._header.intercept)
            cropped_XYZ = cropped_XYZ.astype(np.float32) * slope + intercept
        if counts:
            self._sum += cropped_XYZ
            self._n += 1
            coarse = cropped_XYZ[COARSE].astype(np.float64)
            self._coarse, self._coarse_squares = self._coarse + coarse, self._coarse_squares + coarse**2
        return cropped_XYZ

    @property
    def bad_XYZ(self) -> np.ndarray | None:
        """Voxels that are finite in some frames and not in others; None without any."""
        assert self._ever_XYZ is not None
        found = self._ever_XYZ & ~self.missing_XYZ
        return found if found.any() else None

    @property
    def missing_XYZ(self) -> np.ndarray:
        """Voxels that are finite in no frame: the image does not reach there."""
        assert self._always_XYZ is not None
        return self._always_XYZ

    def sample(self, mask_XYZ: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Temporal mean and standard deviation of some voxels of the mask, or of the brightest ones without a mask."""
        mean = self._coarse / max(self._n, 1)
        deviation = np.sqrt(np.maximum(self._coarse_squares / max(self._n, 1) - mean**2, 0.0))
        chosen = deviation > 0
        if mask_XYZ is not None:
            chosen &= mask_XYZ[COARSE]
        elif chosen.any():
            chosen &= mean >= np.quantile(mean[chosen], 0.75)
        return mean[chosen], deviation[chosen]

    def values(self) -> np.ndarray:
        """Temporal mean, float32."""
        assert self._sum is not None
        return (self._sum / max(self._n, 1)).astype(np.float32)


def _resampler(path: Path, header: Header, grid: Grid) -> SpatialResampler:
    resampler = SpatialResampler(header.shape[:3], header.affine, grid)  # type: ignore[arg-type]
    try:
        coverage = resampler.coverage(np.ones(grid.shape, dtype=bool))
    except FmrisynthError as error:
        if grid.is_native:
            raise FmrisynthError(
                f"{path}: the run is rotated by {resampler.rotation_degrees:.1f} degrees against the participant's "
                "first run; realign the runs (fMRIPrep does)."
            ) from None
        raise FmrisynthError(f"{path}: {error}") from None
    if not grid.is_native and coverage < MIN_COVERAGE:
        raise FmrisynthError(
            f"{path}: the image holds {coverage:.0%} of the box of the MNI brain, expected at least {MIN_COVERAGE:.0%}; "
            "its affine is not MNI space: run fMRIPrep first, or use --native."
        )
    return resampler


def _window_weights(
    run: PlannedRun, planned: PlannedWindow, bad_frames: Collection[int] = ()
) -> tuple[np.ndarray, int, int]:
    """Temporal weights of a window (n_out, n_used), and the first and last source frame they use.

    Weights of bad frames go to the nearest good ones of the window, as in linear interpolation.
    """
    timing, window = run.timing, planned.window
    weights = temporal_matrix(timing.times_s, window.times_s, timing.tr_s, window.tr_s)
    used = np.flatnonzero(weights.any(axis=0))
    first, last = int(used[0]), int(used[-1])
    weights = weights[:, first : last + 1].copy()
    good = [frame for frame in range(first, last + 1) if frame not in bad_frames]
    if not good:
        raise FmrisynthError(
            f"{run.source.bold}: every volume of a window is empty or marked as no signal; leave the run out."
        )
    for frame in set(range(first, last + 1)) - set(good):
        before, after = [g for g in good if g < frame], [g for g in good if g > frame]
        one, other = (before or after)[-1 if before else 0], (after or before)[0 if after else -1]
        share = 0.0 if one == other else (frame - one) / (other - one)
        weights[:, one - first] += (1 - share) * weights[:, frame - first]
        weights[:, other - first] += share * weights[:, frame - first]
        weights[:, frame - first] = 0.0
    return weights, first, last


def _frames_needed(run: PlannedRun) -> list[int]:
    needed: set[int] = set()
    for planned in run.windows:
        _, first, last = _window_weights(run, planned)
        needed.update(range(first, last + 1))
    return sorted(needed)


def _doubts(
    run: PlannedRun, mean: _MeanOfFrames, bad: Collection[int], resampler: SpatialResampler,
    source_mask_XYZ: np.ndarray | None,
) -> tuple[str, ...]:  # fmt: skip
    path, doubts = run.source.bold, []
    empty = sorted(set(bad) - run.source.bad_frames)
    if empty:
        doubts.append(f"{path}: {len(empty)} volumes are empty (the first is {empty[0]}, counted from 0); their neighbours "
                      "are taken instead.")  # fmt: skip
    n_missing = 0 if source_mask_XYZ is None else int((mean.missing_XYZ & resampler.crop_frame(source_mask_XYZ)).sum())
    if n_missing:
        doubts.append(f"{path}: {n_missing} voxels inside the brain mask are NaN or infinite in every frame; they are taken "
                      "as outside.")  # fmt: skip
    for text in doubts:
        log.warning("%s", text)
    return tuple(doubts)


def _mask_on_grid(
    run: Run, resampler: SpatialResampler, source_mask_XYZ: np.ndarray | None, reference_XYZ: np.ndarray
) -> tuple[np.ndarray, str]:
    if source_mask_XYZ is not None:
        mask_XYZ = resampler(source_mask_XYZ) >= 0.5
        origin = run.mask.name if run.mask is not None else "computed from the mean image (nilearn compute_epi_mask)"
    else:
        # Where a run has no mask: the MNI brain, without voxels that the scan did not reach.
        mask_XYZ = mni_brain_mask(resampler.grid).copy()
        origin = "MNI152 brain mask"
    mask_XYZ &= reference_XYZ > 0
    if not mask_XYZ.any():
        raise FmrisynthError(
            f"{run.bold}: there is no voxel with signal inside the brain mask ({origin}); check the image and its mask."
        )
    return mask_XYZ, origin


def _check_finite(
    path: Path,
    bad_XYZ: np.ndarray | None,
    resampler: SpatialResampler,
    source_mask_XYZ: np.ndarray | None,
    mask_XYZ: np.ndarray,
) -> None:
    if bad_XYZ is None:
        return
    if source_mask_XYZ is not None:
        n_bad = int((bad_XYZ & resampler.crop_frame(source_mask_XYZ)).sum())
    else:
        n_bad = int(((resampler.resample_crop(bad_XYZ) >= 0.5) & mask_XYZ).sum())
    if n_bad:
        raise FmrisynthError(
            f"{path}: {n_bad} voxels inside the brain mask are NaN or infinite, expected finite intensities; the "
            "preprocessing of this run failed, run it again."
        )


def _epi_mask(path: Path, header: Header) -> np.ndarray:
    import nibabel as nib
    from nilearn.masking import compute_epi_mask

    mean = _MeanOfFrames(header)
    for frame in iterate_frames(path):
        mean.add(frame)
    image = nib.Nifti1Image(mean.values(), header.affine)
    mask_XYZ = np.zeros(header.shape[:3], dtype=bool)
    for opening in (2, False):  # eroding by two voxels leaves nothing of a very coarse brain
        if not mask_XYZ.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mask_XYZ = np.asarray(compute_epi_mask(image, opening=opening).dataobj) > 0
    if not mask_XYZ.any():
        raise FmrisynthError(f"{path}: no brain was found in the mean image; give a desc-brain_mask beside it.")
    return mask_XYZ
