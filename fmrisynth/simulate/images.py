"""Write a whole run without holding it: frames go into the compressed file as they are rendered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmrisynth.data.nifti import write_frames
from fmrisynth.simulate.phantom import PhantomRun

_HEADROOM = 2.0
"""Largest value that can be stored, relative to the brightest voxel of the temporal mean."""


def write_run(path: Path, run: PhantomRun) -> np.ndarray:
    """Write a run as int16 ``.nii.gz`` on the phantom's grid, atomically.

    Parameters
    ----------
    path : Path
        Ends with ``.nii.gz``.
    run : PhantomRun
        The run; scalp is included.

    Returns
    -------
    array of shape (T, 3), float32
        Mean signal of the brain, of white matter and of CSF in each frame (for confounds).
    """
    grid = run.subject.phantom.grid
    anatomy = run.subject.anatomy
    white_V = np.clip(1.0 - anatomy.grey_V - anatomy.csf_V, 0, 1)
    tissues = np.stack(
        [anatomy.mask_V, anatomy.mask_V & (white_V > 0.9), anatomy.mask_V & (anatomy.csf_V > 0.9)]
    ).astype(np.float32)
    tissues /= np.maximum(tissues.sum(axis=1, keepdims=True), 1.0)
    signals = np.zeros((run.n_frames, 3), dtype=np.float32)

    def frames() -> Iterator[np.ndarray]:
        for first, frames_FV in run.chunks():
            signals[first : first + len(frames_FV)] = frames_FV @ tissues.T
            yield from np.moveaxis(run.subject.phantom.space.to_grid(frames_FV), 3, 0)

    largest = float(run.reference_V.max()) * _HEADROOM
    write_frames(path, frames(), run.n_frames, grid.affine, largest=largest, tr_s=run.tr_s)
    return signals
