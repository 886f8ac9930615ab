"""Haemodynamic responses and regressors on a fine time grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

DT_S = 0.1
"""Step of the fine grid, seconds."""

HRF_LENGTH_S = 32.0


def double_gamma(
    times_s: np.ndarray, delay_s: float = 6.0, undershoot_s: float = 16.0, ratio: float = 1 / 6
) -> np.ndarray:
    """SPM's double-gamma response, scaled so that its integral is one.

    Parameters
    ----------
    times_s : array
        Seconds after the event.
    delay_s, undershoot_s : float
        Delays of response and undershoot (shape parameters of the two gamma densities at dispersion 1 s;
        the peaks lie one second earlier).
    ratio : float
        Undershoot relative to the response.

    Notes
    -----
    Friston et al. 1998, NeuroImage 7:30; the same function as ``spm_hrf``.
    """
    response = _gamma_density(times_s, delay_s) - ratio * _gamma_density(times_s, undershoot_s)
    return response / (1.0 - ratio)


def _gamma_density(times_s: np.ndarray, shape: float) -> np.ndarray:
    t = np.maximum(times_s, 1e-9)
    return np.where(times_s > 0, np.exp((shape - 1) * np.log(t) - t - gammaln(shape)), 0.0)


def convolved_boxcar(
    onsets_s: Sequence[float],
    durations_s: Sequence[float],
    amplitudes: Sequence[float],
    times_s: np.ndarray,
    delay_s: float = 6.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks convolved with the response, and the derivative by delay, at the given times.

    Returns
    -------
    regressor, derivative : arrays of shape (n_times,), float32
        A long block of amplitude 1 reaches 1. `derivative` is minus the time derivative per second: adding
        ``tau * derivative`` delays the regressor by ``tau`` seconds to first order.
    """
    n_fine = int(np.ceil((float(times_s.max()) + HRF_LENGTH_S) / DT_S)) + 1
    boxcar = np.zeros(n_fine)
    edges = np.arange(n_fine) * DT_S
    for onset, duration, amplitude in zip(onsets_s, durations_s, amplitudes, strict=True):
        overlap = np.minimum(edges + DT_S, onset + duration) - np.maximum(edges, onset)
        boxcar += amplitude * np.clip(overlap / DT_S, 0.0, 1.0)
    kernel = double_gamma((np.arange(round(HRF_LENGTH_S / DT_S)) + 0.5) * DT_S, delay_s) * DT_S
    fine = np.convolve(boxcar, kernel)[:n_fine]
    middle = edges + DT_S  # the response to input up to this time
    regressor = np.interp(times_s, middle, fine, left=0.0)
    derivative = np.interp(times_s, middle, -np.gradient(fine, DT_S), left=0.0)
    return regressor.astype(np.float32), derivative.astype(np.float32)
