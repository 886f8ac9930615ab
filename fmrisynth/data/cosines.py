"""Temporal frequencies of a block: observation noise is written in them.

Axis legend: T frames, F = T temporal frequencies.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import dct


def cosines(n_frames: int) -> np.ndarray:
    """Orthonormal cosines over the frames of a block (DCT-II), (F, T), float64, from the constant to the fastest."""
    basis: np.ndarray = dct(np.eye(n_frames), type=2, norm="ortho", axis=0)
    return basis
