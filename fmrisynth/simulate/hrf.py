"""Haemodynamic responses and regressors on a fine time grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

DT_S = 0.1
"""Step of the fine grid, seconds."""

HRF_LENGTH_S = 32.0


def double_gamma(
    times_s: np.ndarray, delay_s: float = 6.0, width: float = 1.0, undershoot_s: float = 16.0, ratio: float = 1 / 6
) -> np.ndarray:
    """SPM's double-gamma response, scaled so that its integral is one.

    Parameters
    ----------
    times_s : array
        Seconds after the event.
    delay_s, undershoot_s : float
        Delays of response and undershoot, the means of the two gamma densities (at width 1 the peaks lie one
        second earlier).
    width : float
        Standard deviation of the response relative to SPM's (its dispersion is the square).
    ratio : float
        Undershoot relative to the response.

    Notes
    -----
    Friston et al. 1998, NeuroImage 7:30; the same function as ``spm_hrf``.
    """
    response = _gamma_density(times_s / width**2, delay_s / width**2) / width**2 - ratio * _gamma_density(
        times_s, undershoot_s
    )
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
    width: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks convolved with the response, and its derivatives by delay and width, at the given times.

    Returns
    -------
    regressor, by_delay, by_width : arrays of shape (n_times,), float32
        A long block of amplitude 1 reaches 1. To first order, adding ``tau * by_delay`` delays the regressor by
        ``tau`` seconds, and adding ``w * by_width`` makes the response ``exp(w)`` times as wide.
    """
    n_fine = int(np.ceil((float(times_s.max()) + HRF_LENGTH_S) / DT_S)) + 1
    boxcar = np.zeros(n_fine)
    edges = np.arange(n_fine) * DT_S
    for onset, duration, amplitude in zip(onsets_s, durations_s, amplitudes, strict=True):
        overlap = np.minimum(edges + DT_S, onset + duration) - np.maximum(edges, onset)
        boxcar += amplitude * np.clip(overlap / DT_S, 0.0, 1.0)
    lags = (np.arange(round(HRF_LENGTH_S / DT_S)) + 0.5) * DT_S
    step = 0.1
    wider, narrower = (double_gamma(lags, delay_s, width * np.exp(sign * step / 2)) for sign in (1, -1))
    fine = np.convolve(boxcar, double_gamma(lags, delay_s, width) * DT_S)[:n_fine]
    by_width = np.convolve(boxcar, (wider - narrower) / step * DT_S)[:n_fine]
    reached = edges + DT_S  # the response to input up to this time
    curves = (fine, -np.gradient(fine, DT_S), by_width)
    regressor, by_delay, by_width = (np.interp(times_s, reached, c, left=0.0).astype(np.float32) for c in curves)
    return regressor, by_delay, by_width
