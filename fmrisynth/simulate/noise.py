"""Noise of a run: everything but local noise is low-rank, (T, R) time courses times (R, V) maps.

Parts, each in percent signal change: spontaneous fluctuations of functional networks, respiration and
heartbeat (aliased by the repetition time as in a scanner), slow drift, head motion that realignment left,
and local noise with a lag-one autocorrelation (thermal noise and what no other part explains).

Axis legend: T frames of the run, F output frames, R rank, V support voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmrisynth.config.simulate import NoiseConfig
from fmrisynth.simulate.activations import blob_matrix
from fmrisynth.simulate.anatomy import Anatomy, gradients
from fmrisynth.simulate.randomness import Traits, stream
from fmrisynth.simulate.space import CoarseFields, Smoother, Space

MESOSCALE_MAPS = 24
"""Maps of random mixtures of network nodes: fluctuations that are smaller than a network."""

NODE_FWHM_MM = 18.0
REFERENCE_VOXEL_MM = 3.0
REFERENCE_TR_S = 0.72
FORGOTTEN = 0.005
"""Weight below which an innovation of the autoregression counts as forgotten."""
_BEFORE = 1000
"""Names of innovation frames start this many frames before the run."""

N_DRIFT = 4
CLIP_PERCENT_PER_MM = 12.0
"""Gradients at the brain's rim are clipped here."""


@dataclass(frozen=True)
class SpatialNoise:
    """Noise maps of one subject and phase encoding, percent signal change.

    Attributes
    ----------
    network_RV, respiration_V, cardiac_RV, drift_RV, motion_RV : float32 arrays
        Maps of each part; `motion_RV` in percent per mm and per degree.
    local_V : float32 array
        Standard deviation of the local noise.
    """

    network_RV: np.ndarray
    respiration_RV: np.ndarray
    cardiac_RV: np.ndarray
    drift_RV: np.ndarray
    motion_RV: np.ndarray
    local_V: np.ndarray

    @property
    def stacked_RV(self) -> np.ndarray:
        """All low-rank maps, in the order of `TemporalNoise.stacked_TR`."""
        return np.concatenate([self.network_RV, self.respiration_RV, self.cardiac_RV, self.drift_RV, self.motion_RV])


@dataclass(frozen=True)
class TemporalNoise:
    """Noise time courses of one run; `motion_T6` in mm (x, y, z) and degrees."""

    network_TR: np.ndarray
    respiration_TR: np.ndarray
    cardiac_TR: np.ndarray
    drift_TR: np.ndarray
    motion_T6: np.ndarray

    @property
    def stacked_TR(self) -> np.ndarray:
        """All low-rank time courses."""
        return np.concatenate(
            [self.network_TR, self.respiration_TR, self.cardiac_TR, self.drift_TR, self.motion_T6], axis=1
        )


def network_nodes() -> tuple[np.ndarray, list[np.ndarray]]:
    """Nodes of functional networks: centres (300, 3) in mm and the members of each network.

    Seitzman et al. 2020, NeuroImage 206; the table is packaged with nilearn.
    """
    from nilearn.datasets import fetch_coords_seitzman_2018

    bunch = fetch_coords_seitzman_2018()
    centres = bunch.rois[["x", "y", "z"]].to_numpy(dtype=np.float64)
    names = np.asarray(bunch.networks)
    return centres, [np.flatnonzero(names == name) for name in np.unique(names) if name != "unassigned"]


def subject_network_maps(space: Space, traits: Traits, anatomy: Anatomy, config: NoiseConfig) -> np.ndarray:
    """Network maps of one subject, (R, V); squared and summed they average `network_percent` ** 2 in grey matter."""
    centres, networks = network_nodes()
    n = len(centres)
    nodes = blob_matrix(space, centres + 3.0 * traits.normal("node location", (n, 3)), np.full(n, NODE_FWHM_MM))
    strength = np.exp(0.4 * traits.normal("node strength", (n,)))
    mixing = np.zeros((len(networks) + MESOSCALE_MAPS, n), dtype=np.float32)
    for row, members in enumerate(networks):
        mixing[row, members] = strength[members]
    mixing[len(networks) :] = 0.2 * traits.normal("mesoscale", (MESOSCALE_MAPS, n))
    maps = (mixing @ nodes) * (0.3 + 0.7 * anatomy.grey_V)
    return _scaled(maps, anatomy.mask_V & (anatomy.grey_V > 0.5), config.network_percent)


def spatial_noise(
    space: Space, traits: Traits, anatomy: Anatomy, network_RV: np.ndarray, direction: str, config: NoiseConfig
) -> SpatialNoise:
    """Noise maps of one subject in runs of one phase encoding."""
    mask = anatomy.mask_V
    baseline = anatomy.baseline[direction]
    fields = CoarseFields(space, 60.0)
    smooth = fields(traits.normal("physiology", (4 + N_DRIFT, *fields.sizes)))
    edge = np.exp(-np.abs(space.depth_mm) / 6.0)
    respiration = np.stack([0.5 + 0.3 * smooth[0] + 0.6 * edge, 0.3 * smooth[1] + 0.3 * edge])
    points = space.coordinates_V3
    base = np.exp(
        -((np.abs(points[:, 0]) / 25) ** 2 + ((points[:, 1] + 5) / 35) ** 2 + ((points[:, 2] + 22) / 18) ** 2)
    )
    midline = np.exp(-((points[:, 0] / 7) ** 2)) * np.exp(-(((space.depth_mm - 4) / 10) ** 2))
    vessels = 0.15 + 1.5 * anatomy.csf_V + 1.2 * base + 0.6 * midline
    cardiac = vessels * np.stack([1.0 + 0.3 * smooth[2], 0.5 * smooth[3]])

    slopes = gradients(space, baseline) / baseline * 100.0
    slopes = np.clip(slopes, -CLIP_PERCENT_PER_MM, CLIP_PERCENT_PER_MM)
    # A rotation about an axis moves a voxel by the cross product of angle and position.
    x, y, z = points.T * np.float32(np.pi / 180)
    gx, gy, gz = slopes
    turning = np.stack([y * gz - z * gy, z * gx - x * gz, x * gy - y * gx])
    motion = config.motion_residual * np.concatenate([slopes, turning]).astype(np.float32)

    level = float(np.median(baseline[mask]))
    darkness = np.clip(level / baseline, 0.5, 4.0) ** 0.8
    g_factor = 1.0 + 0.25 * np.clip(space.depth_mm / 50.0, 0.0, 1.0)  # parallel imaging amplifies noise in the middle
    local = darkness * g_factor
    local *= config.local_percent * _voxel_factor(space.voxel_mm) / float(np.median(local[mask]))
    return SpatialNoise(
        network_RV=network_RV,
        respiration_RV=_scaled(respiration, mask, config.respiration_percent),
        cardiac_RV=_scaled(cardiac, mask, config.cardiac_percent),
        drift_RV=_scaled(smooth[4:] / np.arange(1, N_DRIFT + 1, dtype=np.float32)[:, None], mask, config.drift_percent),
        motion_RV=motion,
        local_V=local.astype(np.float32),
    )


def temporal_noise(
    rng: np.random.Generator, n_frames: int, tr_s: float, n_networks: int, config: NoiseConfig
) -> TemporalNoise:
    """Draw the noise time courses of one run, each with unit variance (motion: mm and degrees)."""
    times = np.arange(n_frames) * tr_s
    network = _ar1(rng, n_frames, n_networks, float(np.exp(-tr_s / config.network_tau_s)))
    respiration = _quasi_periodic(rng, times, rate_hz=float(rng.normal(0.3, 0.03)), wander=0.02)
    cardiac = _quasi_periodic(rng, times, rate_hz=float(rng.normal(1.1, 0.12)), wander=0.03)
    phase = (np.arange(n_frames) + 0.5) / n_frames
    drift = np.sqrt(2) * np.stack([np.cos(np.pi * (k + 1) * phase) for k in range(N_DRIFT)], axis=1)
    drift = drift * rng.normal(0, 1, N_DRIFT)
    steps = rng.normal(0, 1, (n_frames, 6)) * (rng.random((n_frames, 1)) < 0.25)
    walk = np.cumsum(steps, axis=0) / np.sqrt(max(0.25 * n_frames / 3, 1.0))
    breathing = np.outer(respiration[:, 0], [0.1, 0.15, 0.25, 0.1, 0.02, 0.02])
    motion = config.motion_mm * (walk - walk[0] + breathing)
    return TemporalNoise(*(a.astype(np.float32) for a in (network, respiration, cardiac, drift, motion)))


class LocalNoise:
    """Local noise of one run: smooth in space, AR(1) in time, each frame from a generator of its own.

    Any frames can therefore be drawn without the others. The autoregression is written as the moving
    average of its last innovations, and smoothing, which commutes with it, comes last.
    """

    def __init__(
        self, space: Space, smoother: Smoother, tr_s: float, config: NoiseConfig, seed: int, *name: str | int
    ) -> None:
        self._n_box = int(np.prod(space.shape))
        self._support = space.support
        self._smoother = smoother
        self._phi = config.local_ar ** (tr_s / REFERENCE_TR_S)
        self._memory = int(np.ceil(np.log(FORGOTTEN) / np.log(self._phi))) if self._phi > FORGOTTEN else 0
        self._active = config.local_percent > 0
        self._seed, self._name = seed, name

    def draw(self, weights_FT: np.ndarray, first: int) -> np.ndarray:
        """Unit-variance noise, (F, V) float32.

        Parameters
        ----------
        weights_FT : array
            How output frames are mixed from consecutive frames of the run.
        first : int
            Frame of the run that the first column stands for.
        """
        n = weights_FT.shape[1]
        if not self._active:
            return np.zeros((len(weights_FT), len(self._support)), np.float32)
        memory = self._memory
        lag = np.arange(n)[:, None] + memory - np.arange(n + memory)
        moving_average = np.where((lag >= 0) & (lag <= memory), self._phi ** np.clip(lag, 0, memory), 0.0)
        moving_average /= np.sqrt((self._phi ** (2 * np.arange(memory + 1))).sum())
        mixing = (weights_FT @ moving_average).astype(np.float32)
        white = np.empty((n + memory, self._n_box), np.float32)
        for row in range(n + memory):
            generator = stream(self._seed, *self._name, first + row - memory + _BEFORE)
            generator.standard_normal(out=white[row], dtype=np.float32)
        return self._smoother(mixing @ white)[:, self._support]


def _voxel_factor(voxel_mm: float) -> float:
    """Local noise relative to 3 mm, 1.15 at 2 mm: such that a 2 mm run has the noise of a 3 mm run once it is resampled."""
    return float((REFERENCE_VOXEL_MM / voxel_mm) ** 0.35)


def _scaled(maps_RV: np.ndarray, where_V: np.ndarray, percent: float) -> np.ndarray:
    """Scale maps so that the root mean square, over `where_V`, of their summed variance is `percent`."""
    power = float(np.mean((maps_RV[:, where_V].astype(np.float64) ** 2).sum(axis=0)))
    return (maps_RV * (percent / np.sqrt(max(power, 1e-12)))).astype(np.float32)


def _ar1(rng: np.random.Generator, n: int, columns: int, phi: float) -> np.ndarray:
    from scipy.signal import lfilter

    burn_in = 60
    white = rng.standard_normal((n + burn_in, columns)) * np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], white, axis=0)[burn_in:]


def _quasi_periodic(rng: np.random.Generator, times_s: np.ndarray, rate_hz: float, wander: float) -> np.ndarray:
    """Sine and cosine of a rhythm whose rate wanders, sampled at the frames (hence aliased), (T, 2)."""
    steps = np.diff(times_s, prepend=times_s[0])
    rate = rate_hz * np.exp(wander * np.cumsum(rng.normal(0, np.sqrt(np.maximum(steps, 1e-9)))) / 3)
    phase = 2 * np.pi * (np.cumsum(rate * steps) + rng.random())
    return np.sqrt(2) * np.stack([np.cos(phase), np.sin(phase)], axis=1)


__all__ = [
    "LocalNoise", "SpatialNoise", "TemporalNoise", "Traits", "network_nodes", "spatial_noise",
    "subject_network_maps", "temporal_noise",
]  # fmt: skip
