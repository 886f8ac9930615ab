"""Write a whole run without holding it: frames go into the compressed file as they are rendered."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.data.nifti import image_packer
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
    header = nib.Nifti1Header()
    header.set_data_shape((*grid.shape, run.n_frames))
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("mm", "sec")
    header.set_sform(grid.affine, 4)
    header.set_qform(grid.affine, 4)
    header.set_zooms((*grid.voxel_mm, run.tr_s))
    header["vox_offset"] = 352
    slope = np.float32(run.reference_V.max() * _HEADROOM / 32767)
    header.set_slope_inter(float(slope), 0.0)
    anatomy = run.subject.anatomy
    white_V = np.clip(1.0 - anatomy.grey_V - anatomy.csf_V, 0, 1)
    tissues = np.stack(
        [anatomy.mask_V, anatomy.mask_V & (white_V > 0.9), anatomy.mask_V & (anatomy.csf_V > 0.9)]
    ).astype(np.float32)
    tissues /= np.maximum(tissues.sum(axis=1, keepdims=True), 1.0)
    signals = np.zeros((run.n_frames, 3), dtype=np.float32)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as stream,
    ):
        packer = image_packer()
        stream.write(packer.compress(header.binaryblock + b"\0" * (352 - len(header.binaryblock))))
        for first, frames_FV in run.chunks():
            signals[first : first + len(frames_FV)] = frames_FV @ tissues.T
            stored_FV = np.rint(frames_FV / slope).clip(0, 32767).astype("<i2")
            stream.write(packer.compress(run.subject.phantom.space.to_grid(stored_FV).tobytes(order="F")))
        stream.write(packer.flush())
    return signals
