"""What a tokenizer loses, measured on blocks it was not fitted to.

The measure that matters is the GLM ceiling: group effect maps computed from reconstructions against those
from the originals, with the same window GLM. No generator behind the tokenizer can score above it.
Everything is accumulated block by block, so memory does not grow with the cohort.

Axis legend: K conditions, S subjects, T frames, V voxels in the mask; X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fmrisynth.data.blocks import Block, BlockData
from fmrisynth.data.normalisation import denormalise
from fmrisynth.data.percent import percent_change, usable_voxels
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.design import window_design
from fmrisynth.glm.map_scores import pearson, score_maps
from fmrisynth.glm.statistics import RunningGroup
from fmrisynth.models.tokenizers import Tokenizer
from fmrisynth.models.tokenizers.base import perplexity
from fmrisynth.tokenize.source import to_frames

ACTIVE_SHARE = 0.05
"""Voxels with the largest |z| of a condition's original group map count as active."""

QUALITY_VOLUMES = 32
"""Volumes that PSNR and SSIM are computed on."""

N_SPLITS = 50
"""Random halves of the subjects behind the split-half reliability."""


@dataclass
class _Side:
    """Group statistics of one kind of data (original or reconstructed)."""

    groups: dict[str, RunningGroup] = field(default_factory=dict)
    effects_SV: dict[str, list[np.ndarray]] = field(default_factory=dict)
    course_TV: dict[str, np.ndarray] = field(default_factory=dict)
    n_courses: dict[str, int] = field(default_factory=dict)

    def add_course(self, condition: str, values_TV: np.ndarray) -> None:
        self.n_courses[condition] = self.n_courses.get(condition, 0) + 1
        total = self.course_TV.get(condition)
        self.course_TV[condition] = values_TV.astype(np.float64) if total is None else total + values_TV

    def add_subject(self, condition: str, effect_V: np.ndarray) -> None:
        self.groups.setdefault(condition, RunningGroup(len(effect_V))).add(effect_V)
        self.effects_SV.setdefault(condition, []).append(effect_V.astype(np.float32))


@dataclass(frozen=True)
class HeldOut:
    """The result of `measure_held_out`.

    Attributes
    ----------
    conditions : list of str
        K labels, sorted.
    mask_XYZ : bool array
        V voxels that all measures are taken over.
    original_KV, reconstructed_KV : array
        Group mean effects, percent signal change.
    map_r_K : array
        Pearson r of the two, per condition: the GLM ceiling.
    z_map_r_K : array or None
        The same for group z maps; None with fewer than two subjects.
    contrast_r_K : array or None
        The same after subtracting the mean map of all conditions: what tells conditions apart.
    rsa, top1 : float or None
        Correlation of the off-diagonal map correlations; share of conditions whose reconstruction is nearest
        to its own original. None with too few conditions.
    split_half_K : array or None
        Mean r between halves of the subjects, originals: the reliability of the target.
    split_half_reconstructed_K : array or None
        The same between halves of the reconstructions.
    subject_r : float
        Mean over subjects and conditions of the r of the subject's own maps.
    psnr_db, ssim : float
        Of normalised volumes inside the mask, data range from the 0.1 to the 99.9 percentile.
    course_r_K : array
        Mean over active voxels of the r of the condition's mean time course.
    voxel_r : float
        Mean over active voxels of the r over all frames of all blocks.
    kept_variance : float
        1 - residual variance / variance, over all frames and voxels.
    frequency_cmm, kept_frames, kept_effects : arrays
        Spatial frequency (cycles per mm) and the share of power kept there, in frames and in group effects.
    perplexity, codes_used : float or None
        Codebook use; None without a codebook.
    n_subjects, n_blocks : int
        What it was measured on.
    courses : dict
        Condition -> mean time courses (original, reconstructed) over active voxels and blocks, percent.
    failed : dict
        Subjects that could not be read, with the reason.
    """

    conditions: list[str]
    mask_XYZ: np.ndarray
    original_KV: np.ndarray
    reconstructed_KV: np.ndarray
    map_r_K: np.ndarray
    z_map_r_K: np.ndarray | None
    contrast_r_K: np.ndarray | None
    rsa: float | None
    top1: float | None
    split_half_K: np.ndarray | None
    split_half_reconstructed_K: np.ndarray | None
    subject_r: float
    psnr_db: float
    ssim: float
    course_r_K: np.ndarray
    voxel_r: float
    kept_variance: float
    frequency_cmm: np.ndarray
    kept_frames: np.ndarray
    kept_effects: np.ndarray
    perplexity: float | None
    codes_used: float | None
    n_subjects: int
    n_blocks: int
    courses: dict[str, tuple[np.ndarray, np.ndarray]]
    failed: dict[str, str]


def measure_held_out(
    subjects: Iterable[tuple[str, Iterable[tuple[Block, BlockData]]]], tokenizer: Tokenizer, *, batch_size: int = 12
) -> HeldOut:
    """Reconstruct held-out blocks and compare.

    Parameters
    ----------
    subjects : iterable of (label, blocks)
        One subject at a time; each block as (record, arrays).
    tokenizer : Tokenizer
        With its normalisation; each block is reconstructed on its own reference and mask.
    batch_size : int, default 12
        Volumes encoded and decoded at a time.

    Raises
    ------
    FmrisynthError
        No subject could be read.
    """
    mask = tokenizer.info.mask_XYZ
    original, rebuilt = _Side(), _Side()
    voxels = _VoxelSums(int(mask.sum()))
    spectrum = _Spectrum(tokenizer.info.grid.voxel_mm)
    quality: list[tuple[float, float]] = []
    failed: dict[str, str] = {}
    counts = _CodeUse(tokenizer)
    n_blocks = n_subjects = 0
    for label, blocks in subjects:
        effects: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        try:
            for block, data in blocks:
                frames = to_frames(data, tokenizer.info.normalisation)
                latents = tokenizer.encode(frames, batch_size=batch_size)
                counts.add(frames)
                back = tokenizer.decode(latents, batch_size=batch_size)
                truth_TV, back_TV = _percent(data, frames, tokenizer), _percent(data, back, tokenizer)
                weights_T = window_design(block.onset_s, block.duration_s, block.n_frames, block.tr_s).pinv_PT[0]
                effects.setdefault(block.condition, []).append((weights_T @ truth_TV, weights_T @ back_TV))
                for side, values in ((original, truth_TV), (rebuilt, back_TV)):
                    side.add_course(block.condition, values)
                voxels.add(truth_TV, back_TV)
                if n_blocks % 7 == 0:  # every seventh block: volumes of one block look alike
                    spectrum.add(_volume(truth_TV[:1], mask), _volume(back_TV[:1], mask))
                if n_blocks % 7 == 0 and len(quality) < QUALITY_VOLUMES:
                    quality.append(quality_of(frames[:1, 0], back[:1, 0], mask))
                n_blocks += 1
        except FmrisynthError as error:
            failed[label] = str(error)
            continue
        n_subjects += 1
        for condition, pairs in effects.items():
            original.add_subject(condition, np.mean([p[0] for p in pairs], axis=0))
            rebuilt.add_subject(condition, np.mean([p[1] for p in pairs], axis=0))
    if n_subjects == 0:
        reason = next(iter(failed.values()), "there are none")
        raise FmrisynthError(f"no held-out subject could be read for the tokenizer report: {reason}")
    return _summarise(original, rebuilt, voxels, spectrum, quality, counts, mask, n_subjects, n_blocks, failed)


def _summarise(original, rebuilt, voxels, spectrum, quality, counts, mask, n_subjects, n_blocks, failed) -> HeldOut:
    conditions = sorted(original.groups)
    original_KV = np.stack([np.mean(original.effects_SV[c], axis=0) for c in conditions])
    rebuilt_KV = np.stack([np.mean(rebuilt.effects_SV[c], axis=0) for c in conditions])
    # A condition that one subject alone has carries no spread over subjects, so no z.
    has_z = min(group.n for group in original.groups.values()) >= 2
    z_original = _group_z(original, conditions) if has_z else None
    z_rebuilt = _group_z(rebuilt, conditions) if has_z else None
    strength_KV = original_KV if z_original is None else z_original
    active_KV = [_largest(np.abs(row), ACTIVE_SHARE) for row in strength_KV]
    course_r, courses = [], {}
    for condition, active in zip(conditions, active_KV, strict=True):
        truth_TV, back_TV = original.course_TV[condition][:, active], rebuilt.course_TV[condition][:, active]
        course_r.append(np.nanmean(pearson(truth_TV.T, back_TV.T)))
        n = original.n_courses[condition]
        courses[condition] = (truth_TV.mean(axis=1) / n, back_TV.mean(axis=1) / n)
    scores = score_maps(original_KV, rebuilt_KV)
    several = len(conditions) >= 2
    effect_spectrum = _Spectrum(spectrum.voxel_mm)
    for row, back in zip(original_KV, rebuilt_KV, strict=True):
        effect_spectrum.add(_volume(row[None], mask), _volume(back[None], mask))
    any_active = np.logical_or.reduce(active_KV)
    return HeldOut(
        conditions=conditions, mask_XYZ=mask, original_KV=original_KV, reconstructed_KV=rebuilt_KV,
        map_r_K=scores.corr_K,
        z_map_r_K=None if z_original is None or z_rebuilt is None else pearson(z_original, z_rebuilt),
        contrast_r_K=pearson(original_KV - original_KV.mean(0), rebuilt_KV - rebuilt_KV.mean(0)) if several else None,
        rsa=None if scores.rsa_pearson is None else float(scores.rsa_pearson),
        top1=None if scores.top1 is None else float(scores.top1),
        split_half_K=split_half(original.effects_SV, conditions),
        split_half_reconstructed_K=split_half(rebuilt.effects_SV, conditions),
        subject_r=float(np.nanmean([
            pearson(np.stack(original.effects_SV[c]), np.stack(rebuilt.effects_SV[c])).mean() for c in conditions
        ])),
        psnr_db=float(np.mean([q[0] for q in quality])), ssim=float(np.mean([q[1] for q in quality])),
        course_r_K=np.array(course_r), voxel_r=float(np.nanmean(voxels.correlation()[any_active])),
        kept_variance=voxels.kept(), frequency_cmm=spectrum.centres(), kept_frames=spectrum.kept(),
        kept_effects=effect_spectrum.kept(), perplexity=counts.perplexity, codes_used=counts.used,
        n_subjects=n_subjects, n_blocks=n_blocks, courses=courses, failed=failed,
    )  # fmt: skip


def _group_z(side: _Side, conditions: Sequence[str]) -> np.ndarray:
    """Group z maps; 0 where no subject has data, so that there is no spread."""
    return np.nan_to_num(np.stack([side.groups[c].estimate().z for c in conditions]))


def split_half(effects: dict[str, list[np.ndarray]], conditions: Sequence[str], seed: int = 0) -> np.ndarray | None:
    """Mean r between the group maps of random halves of the subjects, per condition; None below four subjects."""
    if min(len(effects[c]) for c in conditions) < 4:
        return None
    rng = np.random.default_rng(seed)
    found = []
    for condition in conditions:
        effects_SV = np.stack(effects[condition])
        half = len(effects_SV) // 2
        orders = [rng.permutation(len(effects_SV)) for _ in range(N_SPLITS)]
        found.append(
            np.mean([pearson(effects_SV[o[:half]].mean(0), effects_SV[o[half : 2 * half]].mean(0)) for o in orders])
        )
    return np.array(found)


def _percent(data: BlockData, frames: Tensor, tokenizer: Tokenizer) -> np.ndarray:
    """Normalised volumes as percent signal change of the block's own reference, (T, V) in the tokenizer's mask."""
    info = tokenizer.info
    reference_V = data.reference_XYZ[info.mask_XYZ]
    inside = usable_voxels(data.reference_XYZ, data.mask_XYZ)[info.mask_XYZ]
    if info.normalisation == "dynamics":  # which is percent signal change already
        return frames[:, 0].numpy()[:, info.mask_XYZ] * inside
    values_XYZT = frames[:, 0].permute(1, 2, 3, 0).numpy()
    bold_XYZT = denormalise(values_XYZT, data.reference_XYZ, data.mask_XYZ, info.normalisation)
    change_VT = percent_change(bold_XYZT[info.mask_XYZ], np.where(inside, reference_V, 1.0)[:, None])
    return np.where(inside[:, None], change_VT, 0.0).T.astype(np.float32)


def _volume(values_NV: np.ndarray, mask_XYZ: np.ndarray) -> np.ndarray:
    whole = np.zeros((len(values_NV), *mask_XYZ.shape), np.float32)
    whole[:, mask_XYZ] = values_NV
    return whole


def _largest(values_V: np.ndarray, share: float) -> np.ndarray:
    values = np.nan_to_num(values_V)
    return values >= np.quantile(values, 1 - share)


def quality_of(truth: Tensor, back: Tensor, mask_XYZ: np.ndarray) -> tuple[float, float]:
    """PSNR (dB) and mean SSIM (Gaussian window of 1.5 voxels) of one volume inside the mask."""
    from monai.metrics.regression import compute_ssim_and_cs

    brain = torch.from_numpy(mask_XYZ)
    low, high = np.percentile(truth[0].numpy()[mask_XYZ], [0.1, 99.9])
    data_range = max(float(high - low), 1e-9)
    mse = float((truth[0] - back[0])[brain].double().square().mean())
    window = 11
    ssim, _ = compute_ssim_and_cs(
        back[None].float(), truth[None].float(), 3, (window,) * 3, (1.5,) * 3, data_range=data_range
    )
    margin = slice(window // 2, -(window // 2))  # the map covers whole windows only
    ssim_values = ssim[0, 0][brain[margin, margin, margin]]
    return 10 * float(np.log10(data_range**2 / max(mse, 1e-20))), float(ssim_values.mean())


class _VoxelSums:
    """Sums for the correlation of originals and reconstructions over all frames, per voxel."""

    def __init__(self, n_voxels: int) -> None:
        self.n = 0
        self.sums = np.zeros((5, n_voxels))
        self.residual = self.total = 0.0

    def add(self, truth_TV: np.ndarray, back_TV: np.ndarray) -> None:
        x, y = truth_TV.astype(np.float64), back_TV.astype(np.float64)
        self.n += len(x)
        self.sums += np.stack([x.sum(0), y.sum(0), (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)])
        self.residual += float(((x - y) ** 2).sum())
        self.total += float((x * x).sum())

    def correlation(self) -> np.ndarray:
        sx, sy, sxx, syy, sxy = self.sums / self.n
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sxy - sx * sy) / np.sqrt((sxx - sx**2) * (syy - sy**2))

    def kept(self) -> float:
        return 1.0 - self.residual / max(self.total, 1e-20)


class _Spectrum:
    """Radial power of originals and of what was lost, per spatial frequency."""

    N_BINS = 16

    def __init__(self, voxel_mm: tuple[float, float, float]) -> None:
        self.voxel_mm = voxel_mm
        self.edges = np.linspace(0, 0.5 / max(voxel_mm), self.N_BINS + 1)
        self.power = np.zeros((2, self.N_BINS))

    def add(self, truth_NXYZ: np.ndarray, back_NXYZ: np.ndarray) -> None:
        axes = [np.fft.fftfreq(n, d) for n, d in zip(truth_NXYZ.shape[1:], self.voxel_mm, strict=True)]
        radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
        index = np.digitize(radius.ravel(), self.edges) - 1
        use = index < self.N_BINS
        for row, values in enumerate((truth_NXYZ, truth_NXYZ - back_NXYZ)):
            power = (np.abs(np.fft.fftn(values, axes=(1, 2, 3))) ** 2).sum(axis=0).ravel()
            self.power[row] += np.bincount(index[use], weights=power[use], minlength=self.N_BINS)

    def centres(self) -> np.ndarray:
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def kept(self) -> np.ndarray:
        return 1.0 - self.power[1] / np.maximum(self.power[0], 1e-20)


class _CodeUse:
    """How often each code of a codebook is used."""

    MAX_VOLUMES = 512

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.codes: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        codes = self.tokenizer.codes(frames[:1]) if len(self.codes) < self.MAX_VOLUMES else None
        if codes is not None:
            self.codes.append(codes)

    @property
    def perplexity(self) -> float | None:
        return perplexity(torch.cat(self.codes)) if self.codes else None

    @property
    def used(self) -> float | None:
        """Share of the codebook that occurs at all."""
        if not self.codes:
            return None
        return len(torch.unique(torch.cat(self.codes))) / getattr(self.tokenizer.config, "codebook_size", 1)
