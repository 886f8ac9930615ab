"""Noise of a run: what the head, the blood and the scanner do, each where it does it.

Low-rank parts, time courses (T, R) times maps (R, V) in percent signal change: fluctuations of functional networks
and of the whole brain, heartbeat and respiration (aliased by the repetition time as in a scanner), slow drift, and the
rigid movement that realignment left, which changes the signal by the slope of the image: most at edges. Full-rank
parts, each a field in space and time whose standard deviation has a map: thermal noise, white and constant over
the image in scanner units, and the slow local fluctuation of blood, strong at vessels and in CSF.

Axis legend: T frames of the run, F output frames, R rank, V support voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmrisynth.config.simulate import NoiseConfig
from fmrisynth.simulate.activations import blob_matrix
from fmrisynth.simulate.anatomy import Anatomy, gradients
from fmrisynth.simulate.people import SITE_NOISE, Person
from fmrisynth.simulate.randomness import Traits, stream
from fmrisynth.simulate.space import CoarseFields, Smoother, Space

NODE_FWHM_MM = 18.0
NETWORK_TAU_S = 5.0
"""Correlation time of networks and of the whole brain."""
VASCULAR_FWHM_MM = 9.0
VASCULAR_TAU_S = 2.0
VESSEL_SD = 0.8
"""SD of the log of how much vessel a voxel holds, beyond what its tissue says."""
REFERENCE_VOXEL_MM = 3.0
FORGOTTEN = 0.01
"""Weight below which an innovation of the autoregression counts as forgotten."""
_BEFORE = 1000
"""Names of innovation frames start this many frames before the run."""

N_DRIFT = 4
DARKEST = 0.12
"""Relative changes are taken against at least this share of the median intensity: darker voxels are air and bone."""


@dataclass(frozen=True)
class SpatialNoise:
    """Noise maps of one subject and phase encoding, percent signal change.

    Attributes
    ----------
    low_rank_RV : float32 array
        Maps of the low-rank parts, in the order of `TemporalNoise.low_rank_TR`; those of motion in percent per mm and
        per degree.
    thermal_V, vascular_V : float32 arrays
        Standard deviations of the full-rank parts.
    """

    low_rank_RV: np.ndarray
    thermal_V: np.ndarray
    vascular_V: np.ndarray


@dataclass(frozen=True)
class TemporalNoise:
    """Noise time courses of one run; `motion_T6` in mm (x, y, z) and degrees."""

    low_rank_TR: np.ndarray
    motion_T6: np.ndarray


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
    mixing = np.zeros((len(networks), n), dtype=np.float32)
    strength = np.exp(0.4 * traits.normal("node strength", (n,)))
    for row, members in enumerate(networks):
        mixing[row, members] = strength[members]
    maps = (mixing @ nodes) * (0.3 + 0.7 * anatomy.grey_V)
    return _scaled(maps, anatomy.mask_V & (anatomy.grey_V > 0.5), config.network_percent)


def vessels(space: Space, traits: Traits, anatomy: Anatomy) -> np.ndarray:
    """How much pulsating blood and CSF a voxel holds, (V,), median of the brain 1.

    CSF, the pial surface, the sagittal sinus, and the arteries at the base; then log-normal, as the sizes of vessels are.
    """
    x, y, z = space.coordinates_V3.T
    surface = np.exp(-0.5 * ((space.depth_mm - 2) / 4) ** 2)
    sinus = np.exp(-((x / 6) ** 2)) * np.exp(-(((space.depth_mm - 2) / 8) ** 2)) * (z > 0)
    base = np.exp(-((np.abs(x) / 25) ** 2 + ((y + 5) / 35) ** 2 + ((z + 22) / 18) ** 2))
    fields = CoarseFields(space, 7.0)
    own = VESSEL_SD * fields(traits.normal("vessels", (1, *fields.sizes)))[0]
    amount = (0.25 + 0.25 * anatomy.grey_V + 0.9 * anatomy.csf_V + 0.7 * surface + 1.5 * sinus + 1.2 * base) * np.exp(
        own
    )
    return (amount / np.median(amount[anatomy.mask_V])).astype(np.float32)


def spatial_noise(
    space: Space,
    traits: Traits,
    person: Person,
    anatomy: Anatomy,
    network_RV: np.ndarray,
    direction: str,
    config: NoiseConfig,
) -> SpatialNoise:
    """Noise maps of one subject in runs of one phase encoding."""
    mask = anatomy.mask_V
    baseline = anatomy.baseline[direction]
    level = float(np.median(baseline[mask]))
    visible = np.maximum(baseline, DARKEST * level)
    vessel_V = vessels(space, traits, anatomy)
    fields = CoarseFields(space, 35.0)
    phase, other_phase, *smooth = fields(traits.normal("physiology", (2 + N_DRIFT, *fields.sizes)))

    slopes = 100.0 * gradients(space, baseline) / visible
    # A rotation about an axis moves a voxel by the cross product of angle and position.
    x, y, z = space.coordinates_V3.T * np.float32(np.pi / 180)
    gx, gy, gz = slopes
    turning = np.stack([y * gz - z * gy, z * gx - x * gz, x * gy - y * gx])
    motion = config.motion_residual * np.concatenate([slopes, turning])

    # The pulse wave arrives at every place at its own time; breathing shifts the image along x, the phase encoding.
    pulse = vessel_V * np.stack([np.cos(3 * phase), np.sin(3 * phase)])
    breath = np.abs(gx) / 10 + 2 * anatomy.dephasing_V + anatomy.csf_V + 0.1
    breath = breath * np.stack([np.cos(2 * other_phase), np.sin(2 * other_phase)])
    drift = np.stack(smooth) / np.arange(1, N_DRIFT + 1, dtype=np.float32)[:, None]
    parts = [
        network_RV,
        config.global_percent * (0.5 + anatomy.grey_V)[None],
        _scaled(pulse, mask, config.cardiac_percent),
        _scaled(breath, mask, config.respiration_percent),
        _scaled(drift, mask, config.drift_percent),
        motion,
    ]
    g_factor = 1.0 + 1.0 * np.clip(space.depth_mm / 50.0, 0.0, 1.0)  # parallel imaging amplifies noise in the middle
    thermal = g_factor / visible
    # Noisier at 2 mm, such that a 2 mm run has the noise of a 3 mm run once it is resampled.
    thermal *= config.thermal_percent * SITE_NOISE[person.site] / np.median(thermal[mask])
    thermal *= REFERENCE_VOXEL_MM / space.voxel_mm
    return SpatialNoise(
        low_rank_RV=np.concatenate(parts).astype(np.float32),
        thermal_V=thermal.astype(np.float32),
        vascular_V=config.vascular_percent * vessel_V,
    )


def temporal_noise(
    rng: np.random.Generator, n_frames: int, tr_s: float, n_networks: int, restlessness: float, config: NoiseConfig
) -> TemporalNoise:
    """Draw the noise time courses of one run, each with unit variance (motion: mm and degrees)."""
    times = np.arange(n_frames) * tr_s
    slow = _ar1(rng, n_frames, n_networks + 1, float(np.exp(-tr_s / NETWORK_TAU_S)))
    cardiac = _quasi_periodic(rng, times, rate_hz=float(rng.normal(1.1, 0.12)), wander=0.03)
    respiration = _quasi_periodic(rng, times, rate_hz=float(rng.normal(0.3, 0.03)), wander=0.02)
    at = (np.arange(n_frames) + 0.5) / n_frames
    drift = np.sqrt(2) * np.stack([np.cos(np.pi * (k + 1) * at) for k in range(N_DRIFT)], axis=1)
    drift = drift * rng.normal(0, 1, N_DRIFT)
    steps = rng.normal(0, 1, (n_frames, 6)) * (rng.random((n_frames, 1)) < 0.25)
    walk = np.cumsum(steps, axis=0) / np.sqrt(max(0.25 * n_frames / 3, 1.0))
    breathing = np.outer(respiration[:, 0], [0.1, 0.15, 0.25, 0.1, 0.02, 0.02])
    motion = config.motion_mm * restlessness * (walk - walk[0] + breathing + _spikes(rng, times, restlessness, config))
    low_rank = np.concatenate([slow, cardiac, respiration, drift, motion], axis=1)
    return TemporalNoise(low_rank.astype(np.float32), motion.astype(np.float32))


def _spikes(rng: np.random.Generator, times_s: np.ndarray, restlessness: float, config: NoiseConfig) -> np.ndarray:
    """Sudden movements, (T, 6): the head jerks, returns within seconds, and comes to rest a little elsewhere."""
    path = np.zeros((len(times_s), 6))
    minutes = (times_s[-1] - times_s[0]) / 60
    for _ in range(rng.poisson(config.spikes_per_minute * restlessness * minutes)):
        after = times_s - rng.uniform(times_s[0], times_s[-1])
        way = rng.standard_t(3, 6) * np.array([1.5, 2.0, 3.0, 2.5, 1.2, 1.2])
        path += np.where(after >= 0, 0.2 + 0.8 * np.exp(-np.maximum(after, 0) / 1.5), 0.0)[:, None] * way
    return path


class LocalNoise:
    """Full-rank noise of one run: smooth in space, AR(1) in time, each frame from a generator of its own.

    Any frames can therefore be drawn without the others. The autoregression is written as the moving
    average of its last innovations, and smoothing, which commutes with it, comes last.

    Parameters
    ----------
    field : Smoother or CoarseFields
        Makes smooth fields (n, V) of white ones (n, size).
    correlation : float
        Between one frame and the next; 0 is white.
    seed : int
        With `name`, which run and part this is.
    """

    def __init__(self, field: Smoother | CoarseFields, correlation: float, seed: int, *name: str | int) -> None:
        self._field, self._phi = field, correlation
        self._memory = int(np.ceil(np.log(FORGOTTEN) / np.log(correlation))) if correlation > FORGOTTEN else 0
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
        n, memory = weights_FT.shape[1], self._memory
        lag = np.arange(n)[:, None] + memory - np.arange(n + memory)
        moving_average = np.where((lag >= 0) & (lag <= memory), self._phi ** np.clip(lag, 0, memory), 0.0)
        moving_average /= np.sqrt((self._phi ** (2 * np.arange(memory + 1))).sum())
        mixing = (weights_FT @ moving_average).astype(np.float32)
        white = np.empty((n + memory, self._field.size), np.float32)
        for row in range(n + memory):
            generator = stream(self._seed, *self._name, first + row - memory + _BEFORE)
            generator.standard_normal(out=white[row], dtype=np.float32)
        return self._field(mixing @ white)


def _scaled(maps_RV: np.ndarray, where_V: np.ndarray, percent: float) -> np.ndarray:
    """Scale maps so that the median, over `where_V`, of their summed standard deviation is `percent`."""
    sd = np.sqrt((maps_RV[:, where_V].astype(np.float64) ** 2).sum(axis=0))
    return (maps_RV * (percent / max(float(np.median(sd)), 1e-6))).astype(np.float32)


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
    "LocalNoise", "SpatialNoise", "TemporalNoise", "network_nodes", "spatial_noise", "subject_network_maps",
    "temporal_noise", "vessels",
]  # fmt: skip
