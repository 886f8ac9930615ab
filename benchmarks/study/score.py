"""Score a trained model in minutes: window-GLM effects of its samples against real group maps.

The effect of a sample is linear in its frames. Where decoding is affine too (the linear tokenizers), the GLM's weights
are applied to the latents and one volume is decoded instead of twelve; the observation noise is drawn as one volume
with the variance that the weights give it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, common_grid, read_blocks
from fmrisynth.data.cosines import cosines
from fmrisynth.data.normalisation import denormalise
from fmrisynth.diffusion.generate import generate_latents
from fmrisynth.glm.design import window_design
from fmrisynth.glm.effects import fit_one
from fmrisynth.glm.map_scores import map_correlations, score_maps
from fmrisynth.glm.statistics import random_effects
from fmrisynth.glm.windows import common_mask, iterate_windows
from fmrisynth.models.checkpoint import LoadedDenoiser
from fmrisynth.models.device import pick_device
from fmrisynth.models.tokenizers import Tokenizer
from fmrisynth.models.tokenizers.noise import ObservationNoise

SCORES = {
    "corr": "Corr",
    "rsa": "RSA",
    "top1": "Top-1",
    "top1_samples": "Top-1, samples",
    "effect_variance_ratio": "variance",
}
"""What `score` finds, as tables head it."""


@dataclass(frozen=True)
class RealMaps:
    """Group maps of one split of a cohort over K conditions and V voxels, and how much single blocks vary around them."""

    conditions: list[str]
    mask_XYZ: np.ndarray
    z_KV: np.ndarray
    block_variance_K: np.ndarray


def real_maps(root: Path, split: str, conditions: list[str], mask_XYZ: np.ndarray, cache: Path) -> RealMaps:
    """Measure, or read from `cache`."""
    if not cache.exists():
        blocks = [b for b in read_blocks(root, split=split) if b.condition in conditions]
        z_KV, variance_K = _measure(blocks, conditions, mask_XYZ)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.with_suffix(".part.npz").open("wb") as stream:
            np.savez(stream, z=z_KV, variance=variance_K)
        cache.with_suffix(".part.npz").rename(cache)
    with np.load(cache) as found:
        return RealMaps(conditions, mask_XYZ, found["z"], found["variance"])


def brain(root: Path, tokenizer: Tokenizer, splits: tuple[str, ...] = ("test",)) -> np.ndarray:
    """Voxels that all blocks of these splits and the tokenizer have."""
    blocks = [block for split in splits for block in read_blocks(root, split=split)]
    return common_mask(blocks, common_grid(blocks), GlmConfig().min_reference_fraction) & tokenizer.info.mask_XYZ


def _measure(blocks: list[Block], conditions: list[str], mask_XYZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    config, grid = GlmConfig(), common_grid(blocks)
    subjects: dict[str, dict[str, list[np.ndarray]]] = {}
    for window in iterate_windows(blocks, mask_XYZ, grid, config):
        own = subjects.setdefault(window.block.subject, {})
        own.setdefault(window.block.condition, []).append(fit_one(window, config).effect)
    z, variance = [], []
    for condition in conditions:
        found = [own[condition] for own in subjects.values() if condition in own]
        z.append(random_effects(np.stack([np.mean(effects, axis=0) for effects in found])).z)
        singles = np.concatenate([np.stack(effects) for effects in found])
        variance.append(np.median(singles.var(axis=0, ddof=1)))
    return np.stack(z), np.array(variance)


def equal_number_ceiling(
    root: Path, split: str, real: RealMaps, n: int, *, draws: int = 5, seed: int = 0
) -> dict[str, list[float]]:
    """What `n` real blocks per condition of another split score in place of samples, once for each of some random draws."""
    blocks = [b for b in read_blocks(root, split=split) if b.condition in real.conditions]
    effects = {c: np.stack([e for _, e in found]) for c, found in block_effects(blocks, real.mask_XYZ).items()}
    return draws_of(effects, real, n, draws=draws, seed=seed)


def block_effects(blocks: list[Block], mask_XYZ: np.ndarray) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Subject and window-GLM effect (V,) of every block, by condition."""
    config, grid = GlmConfig(), common_grid(blocks)
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for window in iterate_windows(blocks, mask_XYZ, grid, config):
        effect_V = fit_one(window, config).effect.astype(np.float32)
        found.setdefault(window.block.condition, []).append((window.block.subject, effect_V))
    return found


def draws_of(
    effects: dict[str, np.ndarray], real: RealMaps, n: int, *, draws: int, seed: int
) -> dict[str, list[float]]:
    """Scores of `n` blocks per condition, drawn without replacement, once for each draw."""
    rng = np.random.default_rng(seed)
    scores: list[dict[str, Any]] = []
    for _ in range(draws):
        scores.append(score({c: own[rng.permutation(len(own))[:n]] for c, own in effects.items()}, real))
    return {key: [s[key] for s in scores] for key in scores[0] if key != "corr_K"}


def is_affine(tokenizer: Tokenizer) -> bool:
    """Whether decoding is affine: tried on random latents."""
    a, b = torch.randn(2, 1, *tokenizer.info.latent_shape, generator=torch.Generator().manual_seed(0))
    zero, both = tokenizer.decode(torch.zeros_like(a)), tokenizer.decode(a + b)
    return bool(torch.allclose(both + zero, tokenizer.decode(a) + tokenizer.decode(b), atol=1e-3))


def sample_effects(
    model: LoadedDenoiser, tokenizer: Tokenizer, condition: str, mask_XYZ: np.ndarray, *, n: int, seed: int, sampler: str,
    steps: int, guidance: float, observation_noise: bool = True, group: int = 8,
) -> np.ndarray:  # fmt: skip
    """Window-GLM effects (N, V) of samples, percent signal change; samples as `fmrisynth sample` numbers and seeds them.

    `group` samples are advanced together, which is faster than one by one (most for the U-Net) and changes rounding only.
    """
    from fmrisynth.sample.plan import sample_seed

    info = tokenizer.info
    if not is_affine(tokenizer):
        raise SystemExit("this score needs an affine tokenizer")
    timing = model.card.trained_on["timing"][condition]
    design = window_design(timing["onset_s"], timing["duration_s"], info.n_frames, info.tr_s)
    weights_T = design.pinv_PT[0]  # they sum to 0: the design has a constant
    percent_XYZ = percent_per_unit(tokenizer)[mask_XYZ]
    nothing_XYZ = tokenizer.decode(torch.zeros(1, *info.latent_shape))[0, 0].numpy()
    noise = _weighted(info.noise, weights_T) if observation_noise and info.noise is not None else None
    effects = []
    seeds = [sample_seed(seed, condition, index) for index in range(n)]
    for start in range(0, n, 8):
        chosen = seeds[start : start + 8]
        latent_BCTXYZ = generate_latents(
            model,
            condition,
            seeds=chosen,
            sampler=sampler,
            n_steps=steps,
            guidance=guidance,
            group=group,
            device=pick_device(),
        )
        weighted_BCxyz = torch.einsum("t,bctxyz->bcxyz", torch.from_numpy(weights_T).float(), latent_BCTXYZ)
        for own_seed, effect_XYZ in zip(chosen, tokenizer.decode(weighted_BCxyz)[:, 0].numpy(), strict=True):
            if noise is not None:
                effect_XYZ = effect_XYZ + noise.draw(np.random.default_rng([own_seed, 1]))[..., 0]
            effects.append((effect_XYZ - nothing_XYZ)[mask_XYZ] * percent_XYZ)
    return np.stack(effects)


def percent_per_unit(tokenizer: Tokenizer) -> np.ndarray:
    """Percent signal change (X, Y, Z) that one unit of the decoded values is, on the mean reference volume; 0 outside the brain."""
    info = tokenizer.info
    unit, nothing = (
        denormalise(np.full((*info.mask_XYZ.shape, 1), v, np.float32), info.reference_XYZ, info.mask_XYZ, info.normalisation)
        for v in (1.0, 0.0)
    )  # fmt: skip
    reference_XYZ = np.where(info.reference_XYZ > 0, info.reference_XYZ, np.inf)
    return 100.0 * (unit - nothing)[..., 0] / reference_XYZ


def _weighted(noise: ObservationNoise, weights_T: np.ndarray) -> ObservationNoise:
    """The noise of a weighted sum of frames, as a field of one frame."""
    weights_F = cosines(noise.n_frames) @ weights_T
    weighted_FXYZ = weights_F[:, None, None, None] * noise.std_FXYZ
    variance_XYZ = np.einsum("fxyz,fg,gxyz->xyz", weighted_FXYZ, noise.correlation_FF, weighted_FXYZ, optimize=True)
    std_XYZ = np.sqrt(variance_XYZ.clip(min=0))
    power_F = np.square(weighted_FXYZ).mean(axis=(1, 2, 3))
    neighbour_r_3 = power_F @ noise.neighbour_r_F3 / max(float(power_F.sum()), 1e-30)
    return ObservationNoise(std_XYZ[None].astype(np.float32), np.ones((1, 1)), neighbour_r_3[None])


def score(effects: dict[str, np.ndarray], real: RealMaps) -> dict[str, Any]:
    """Corr, RSA, Top-1 of group z maps; Top-1 of single samples; effect variance against the real one."""
    z_KV = np.stack([random_effects(effects[c]).z for c in real.conditions])
    finite = np.isfinite(z_KV).all(axis=0) & np.isfinite(real.z_KV).all(axis=0)
    scores = score_maps(real.z_KV[:, finite], z_KV[:, finite])
    singles = [
        map_correlations(effects[c][:, finite], real.z_KV[:, finite]).argmax(axis=1) == k
        for k, c in enumerate(real.conditions)
    ]
    variance_K = np.array([np.median(effects[c].var(axis=0, ddof=1)) for c in real.conditions])
    return {
        "corr": float(scores.corr), "corr_K": scores.corr_K.tolist(), "rsa": float(scores.rsa_pearson),
        "top1": float(scores.top1), "top1_samples": float(np.mean(np.concatenate(singles))),
        "effect_variance_ratio": float((variance_K / real.block_variance_K).mean()),
    }  # fmt: skip
