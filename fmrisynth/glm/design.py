"""Design matrix of one block window.

The regressor is the block's boxcar convolved with a canonical haemodynamic response, sampled at the
window's frames. nilearn does the modelling, so the heights are nilearn's: the response integrates to
one, and a block much longer than the response reaches 1. An effect is therefore in the unit of the
data, *at the plateau of a long block*: percent signal change, for data in percent signal change.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fmrisynth.errors import FmrisynthError


@dataclass(frozen=True)
class Design:
    """A design matrix and the least-squares solution that belongs to it.

    Attributes
    ----------
    matrix_TP : array of shape (n_frames, n_regressors), float64
        Columns as in `names`.
    names : tuple of str
        Regressor names; the first is ``block``.
    pinv_PT : array of shape (n_regressors, n_frames), float64
        Moore-Penrose inverse of `matrix_TP`.
    covariance_PP : array of shape (n_regressors, n_regressors), float64
        ``pinv @ pinv.T``; times the noise variance it is the covariance of the estimates.
    """

    matrix_TP: np.ndarray
    names: tuple[str, ...]
    pinv_PT: np.ndarray
    covariance_PP: np.ndarray

    @property
    def dof(self) -> int:
        """Residual degrees of freedom: frames minus rank."""
        return self.matrix_TP.shape[0] - int(np.linalg.matrix_rank(self.matrix_TP))

    @classmethod
    def from_matrix(cls, matrix_TP: np.ndarray, names: tuple[str, ...]) -> Design:
        """Solve a given matrix once for all voxels."""
        matrix = np.asarray(matrix_TP, dtype=np.float64)
        pinv = np.linalg.pinv(matrix)
        return cls(matrix, names, pinv, pinv @ pinv.T)


@lru_cache(maxsize=4096)
def window_design(
    onset_s: float, duration_s: float, n_frames: int, tr_s: float, hrf: str = "spm", drift: str = "none"
) -> Design:
    """Design of one block window, through nilearn.

    Parameters
    ----------
    onset_s : float
        Block onset relative to the first frame, in seconds; may be negative (a delayed window).
    duration_s : float
        Block duration, in seconds, greater than 0.
    n_frames : int
        Frames of the window; frame k is acquired at ``k * tr_s``.
    tr_s : float
        Repetition time, in seconds.
    hrf : {"spm", "glover"}
        nilearn's name of the response; ``spm`` is the double gamma of SPM.
    drift : {"none", "linear"}
        Whether a linear trend is modelled.

    Returns
    -------
    Design
        Columns ``block``, optionally ``drift_1``, and ``constant``.

    Raises
    ------
    FmrisynthError
        Block without duration, window too short for the model, or block outside the window.
    """
    import pandas as pd
    from nilearn.glm.first_level import compute_regressor, make_first_level_design_matrix

    if duration_s <= 0:
        raise FmrisynthError(f"a block of {duration_s} s has no boxcar; give the block its duration in events.tsv.")
    if drift not in ("none", "linear"):
        raise FmrisynthError(f"drift {drift!r} is not defined for a block window; use none or linear.")
    frames_T, earliest = np.arange(n_frames) * tr_s, min(-24.0, onset_s - tr_s)
    if drift == "none":  # the same numbers as from the design matrix below, in a fraction of the time
        regressor, _ = compute_regressor(np.array([[onset_s], [duration_s], [1.0]]), hrf, frames_T, min_onset=earliest)
        design = Design.from_matrix(np.column_stack([regressor, np.ones(n_frames)]), ("block", "constant"))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a singular matrix is refused below, in our words
            frame = make_first_level_design_matrix(
                frames_T,
                pd.DataFrame({"onset": [onset_s], "duration": [duration_s], "trial_type": ["block"]}),
                hrf_model=hrf, drift_model="polynomial", drift_order=1, min_onset=earliest,
            )  # fmt: skip
        design = Design.from_matrix(frame.to_numpy(), tuple(str(name) for name in frame.columns))
    if design.dof < 1 or np.ptp(design.matrix_TP[:, 0]) < 1e-8:
        raise FmrisynthError(
            f"a window of {n_frames} frames of {tr_s} s with a block at {onset_s} s ({duration_s} s long) cannot carry "
            f"the {len(design.names)} regressors of the model; use longer windows or drift=none."
        )
    return design
