"""Fit a tokenizer to a source of frames.

The linear kinds are fitted in a few passes over the blocks; a network by stochastic gradients
(`fmrisynth.tokenize.gradient`), resumable from `folder`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmrisynth.config.tokenize import NETWORKS, LevelsConfig, TokenizeConfig
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers import Tokenizer, TokenizerInfo, build_tokenizer
from fmrisynth.models.tokenizers.noise import NoiseMoments
from fmrisynth.models.tokenizers.patch import PatchTokenizer
from fmrisynth.progress import track
from fmrisynth.tokenize.source import FrameSource, iterate_frames


def fit_tokenizer(
    source: FrameSource,
    config: TokenizeConfig,
    *,
    folder: Path | None = None,
    provenance: dict[str, Any] | None = None,
) -> Tokenizer:
    """Fit a tokenizer.

    Parameters
    ----------
    source : FrameSource
        The fitting blocks.
    config : TokenizeConfig
        Kind, normalisation, fit.
    folder : Path, optional
        Where a network's fit keeps its checkpoint and log; an interrupted fit continues from there.
    provenance : dict, optional
        Recorded in the tokenizer.

    Returns
    -------
    Tokenizer
        In evaluation mode, with latent statistics, not yet saved.
    """
    # Where anatomies are what is made, a voxel that is brain in anybody has to be kept.
    share = 0.0 if config.normalisation == "relative" else 0.5
    mask_XYZ, reference_XYZ = mean_anatomy(source, share)
    info = TokenizerInfo(
        kind=config.model.kind, normalisation=config.normalisation, grid=source.grid, tr_s=source.tr_s,
        n_frames=source.n_frames, latent_channels=config.model.latent_channels, mask_XYZ=mask_XYZ,
        reference_XYZ=reference_XYZ, downsampling=config.model.downsampling, provenance=provenance or {},
    )  # fmt: skip
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(config.model, info)
    if isinstance(tokenizer, PatchTokenizer):
        tokenizer.fit_blocks(
            lambda: track(iterate_frames(source, config.normalisation), "Fitting the tokenizer", total=len(source))
        )
    elif config.model.kind in NETWORKS:
        from fmrisynth.tokenize.gradient import fit_network

        if isinstance(config.model, LevelsConfig) and config.model.centre:
            from fmrisynth.models.tokenizers.network import NetworkTokenizer

            assert isinstance(tokenizer, NetworkTokenizer)
            frames = iterate_frames(source, config.normalisation)
            tokenizer.fit_centre(track(frames, "Mean volume", total=len(source)))
        if config.init is not None:
            from fmrisynth.models.tokenizers.init import initialise
            from fmrisynth.models.tokenizers.vqgan import VqganTokenizer

            assert isinstance(tokenizer, VqganTokenizer)
            initialise(tokenizer, config.init)
        fit_network(tokenizer, source, config, folder)
    tokenizer.eval()
    measure_latents(tokenizer, source, config)
    return tokenizer


def mean_anatomy(source: FrameSource, least_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Brain mask (voxels in at least one, and this share, of the sources' masks) and mean reference volume within it."""
    count = np.zeros(source.grid.shape, dtype=np.float64)
    total = np.zeros(source.grid.shape, dtype=np.float64)
    n_sources = 0
    for mask_XYZ, reference_XYZ in source.anatomy():
        count += mask_XYZ
        total += np.where(mask_XYZ, reference_XYZ, 0.0)
        n_sources += 1
    mask = count >= max(1, least_share * n_sources)
    if n_sources == 0 or not mask.any():
        raise FmrisynthError("no block of the fitting split has a readable brain mask; prepare the dataset again.")
    reference = np.where(mask, total / np.maximum(count, 1), 0.0)
    return mask, reference.astype(np.float32)


def measure_latents(tokenizer: Tokenizer, source: FrameSource, config: TokenizeConfig) -> None:
    """Compute and store the statistics of the latents over the brain's cells, and the observation noise."""
    generator = np.random.default_rng([config.seed, 1])
    chosen = np.sort(generator.permutation(len(source))[: config.statistics_blocks])
    inside_xyz = tokenizer.info.latent_mask_xyz
    total = torch.zeros(tokenizer.info.latent_channels, dtype=torch.float64)
    squares, n = torch.zeros_like(total), 0
    noise = NoiseMoments(tokenizer.info.mask_XYZ)
    for frames in iterate_frames(source, config.normalisation, [int(i) for i in chosen]):
        latents = tokenizer.encode(frames, batch_size=config.batch_size)
        decoded = tokenizer.decode(latents, batch_size=config.batch_size)
        noise.add((frames * tokenizer.brain_XYZ.cpu())[:, 0].numpy(), decoded[:, 0].numpy())
        values_CM = latents.movedim(1, 0)[:, :, inside_xyz].flatten(1).double()
        total += values_CM.sum(dim=1)
        squares += values_CM.square().sum(dim=1)
        n += values_CM.shape[1]
    if n == 0:
        raise FmrisynthError("no block of the fitting split could be read; prepare the dataset again.")
    mean = total / n
    std = (squares / n - mean.square()).clamp(min=0).sqrt()
    if not bool(torch.isfinite(mean).all()) or not bool((std > 1e-8).all()):
        raise FmrisynthError(
            "a latent channel is constant or not finite over the fitting blocks, so the tokenizer keeps nothing in it; "
            "fit longer, or with fewer channels."
        )
    tokenizer.set_latent_statistics(mean, std)
    tokenizer.info = replace(tokenizer.info, noise=noise.finish())
