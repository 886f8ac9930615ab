"""Compare a block dataset with what a model and its tokenizer know of their training data.

A model says nothing about data that were preprocessed differently, and no command would fail: the maps would only be wrong. Everything here
is read from the model directory, so that a model can be checked without the data it was trained on.

Axis legend: C latent channels, T frames, F = C*T, X Y Z latent grid, V cells or voxels in the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmrisynth.data.blocks import Block, read_blocks
from fmrisynth.data.cosines import cosines
from fmrisynth.data.grid import Grid
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.checkpoint import LoadedDenoiser
from fmrisynth.models.tokenizers import Tokenizer
from fmrisynth.models.tokenizers.noise import NoiseMoments
from fmrisynth.models.whitening import Whitening
from fmrisynth.progress import track
from fmrisynth.sample.drawer import load_model
from fmrisynth.tokenize.source import load_on_grid, to_frames

FACTOR = 2.0
"""A variance that differs by more than this factor matters: maps and their uncertainty then differ by 1.4."""

LEAST_DICE = 0.85
"""Overlap of two people's brain masks in MNI space is above it; a wrong space or crop is not."""

SLOW_HZ = 0.1
"""Task responses lie below it, and so does what high-pass and band-pass filters take."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what : str
        What is compared.
    model, data : str
        As the model knows it, and as it is in the dataset.
    differs : bool
        Whether the difference matters for what the model says.
    advice : str
        What to do about a difference, or what it comes from.
    """

    what: str
    model: str
    data: str
    differs: bool = False
    advice: str = ""


def check_dataset(data: Path, *, checkpoint: Path | None = None, n_blocks: int = 40) -> list[Row]:
    """Compare a dataset with a model's training data.

    Parameters
    ----------
    data : Path
        Block dataset.
    checkpoint : Path, optional
        A model directory or a training output; default: the bundled model.
    n_blocks : int, default 40
        Blocks that are read, evenly spread over the dataset.

    Returns
    -------
    list of Row
        Grid, timing, conditions, brain; and, where the grid and the timing are the model's, size and speed of the fluctuations that
        latents keep and of those they leave.

    Raises
    ------
    FmrisynthError
        The dataset or the model cannot be read.
    UsageError
        The model makes anatomies.
    """
    model, tokenizer = load_model(checkpoint)
    if tokenizer.info.normalisation == "relative":
        raise UsageError(
            f"{model.path}: this model makes anatomies, `check` is about what people do; use `fmrisynth evaluate --unit anatomy`."
        )
    blocks = read_blocks(data)
    if not blocks:
        raise FmrisynthError(
            f"{data}: expected a dataset with blocks, found none; see the report of `fmrisynth prepare`."
        )
    chosen = [blocks[i] for i in np.unique(np.linspace(0, len(blocks) - 1, n_blocks).astype(int))]
    rows = [*_shape(chosen, tokenizer), _conditions(blocks, model)]
    if any(row.differs for row in rows[:3]):
        return rows  # nothing further can be compared
    return rows + _values(chosen, model, tokenizer)


def _shape(blocks: Sequence[Block], tokenizer: Tokenizer) -> list[Row]:
    info = tokenizer.info
    grids = [block.load_grid() for block in blocks]
    odd = next((grid for grid in grids if not grid.same_as(info.grid)), None)
    times = sorted({block.tr_s for block in blocks})
    lengths = sorted({block.n_frames for block in blocks})
    return [
        Row(
            "grid", _grid_text(info.grid), _grid_text(odd or grids[0]), odd is not None,
            "latents of one grid mean nothing on another: prepare it on the model's grid, or train a model on yours",
        ),
        Row(
            "time between frames", f"{info.tr_s:g} s", ", ".join(f"{t:g}" for t in times) + " s",
            any(abs(t - info.tr_s) > 1e-3 for t in times), f"prepare it with --set tr_s={info.tr_s:g}",
        ),
        Row(
            "frames of a block", str(info.n_frames), ", ".join(map(str, lengths)), lengths != [info.n_frames],
            f"prepare it with --set window.n_frames={info.n_frames}",
        ),
    ]  # fmt: skip


def _grid_text(grid: Grid) -> str:
    return f"{' x '.join(map(str, grid.shape))}, {grid.voxel_mm[0]:g} mm, {grid.space}"


def _conditions(blocks: Sequence[Block], model: LoadedDenoiser) -> Row:
    mine = sorted({block.condition for block in blocks})
    unknown = [condition for condition in mine if condition not in model.conditions]
    return Row(
        "conditions", ", ".join(model.conditions), ", ".join(mine), len(unknown) == len(mine),
        f"the model cannot be asked for {', '.join(unknown)}: train one on your data" if unknown else "",
    )  # fmt: skip


def _values(blocks: Sequence[Block], model: LoadedDenoiser, tokenizer: Tokenizer) -> list[Row]:
    """Rows about the brain and about what fluctuates in it."""
    info = tokenizer.info
    brain_XYZ, cosines_TT = info.latent_mask_xyz, torch.from_numpy(cosines(info.n_frames)).float()
    noise = NoiseMoments(info.mask_XYZ)
    count_XYZ = np.zeros(info.grid.shape)
    reference_XYZ = np.zeros(info.grid.shape)
    power_CTV = torch.zeros(info.latent_channels, info.n_frames, int(brain_XYZ.sum()))
    for block in track(blocks, "Reading blocks"):
        data = load_on_grid(block, info.grid, info.n_frames)
        frames = to_frames(data, info.normalisation)
        latents_TCXYZ = tokenizer.encode(frames)
        decoded = tokenizer.decode(latents_TCXYZ)
        noise.add((frames * tokenizer.brain_XYZ)[:, 0].numpy(), decoded[:, 0].numpy())
        standard_TCV = latents_TCXYZ[:, :, brain_XYZ] - model.latent_mean_C[:, None]
        standard_TCV = standard_TCV / model.latent_std_C[:, None]
        power_CTV += torch.einsum("ft,tcv->cfv", cosines_TT, standard_TCV).square() / len(blocks)
        count_XYZ += data.mask_XYZ
        reference_XYZ += np.where(data.mask_XYZ, data.reference_XYZ, 0)
    mask_XYZ = count_XYZ * 2 >= len(blocks)
    reference_XYZ /= np.maximum(count_XYZ, 1)
    fast_T = np.arange(info.n_frames) / (2 * info.n_frames * info.tr_s) > SLOW_HZ

    rows = _brain(mask_XYZ, reference_XYZ, tokenizer)
    expected_CTV = _expected_power(model.whitening, power_CTV.shape, brain_XYZ, cosines_TT)
    for name, chosen_T in (("slow", ~fast_T & (np.arange(info.n_frames) > 0)), ("fast", fast_T)):
        if model.whitening is None:
            break  # only the variance over all frequencies is known
        rows.append(
            _variance_row(
                f"{name} fluctuations that latents keep", expected_CTV[:, chosen_T], power_CTV[:, chosen_T], name
            )
        )
    if model.whitening is None:
        rows.append(_variance_row("fluctuations that latents keep", expected_CTV, power_CTV, "all"))
    found = noise.finish()
    if info.noise is not None and found is not None:
        for name, chosen_T in (("slow", ~fast_T), ("fast", fast_T)):
            expected, own = (
                torch.from_numpy(np.square(n.std_FXYZ[chosen_T][:, info.mask_XYZ])) for n in (info.noise, found)
            )
            rows.append(_variance_row(f"{name} fluctuations that latents leave", expected, own, name))
        model_r, data_r = (float(n.neighbour_r_F3[fast_T].mean()) for n in (info.noise, found))
        rows.append(
            Row(
                "correlation of neighbouring voxels in what they leave", f"{model_r:.2f}", f"{data_r:.2f}", abs(model_r - data_r) > 0.25,
                "another smoothing, here or in the model's data; leave smoothing to the GLM" if abs(model_r - data_r) > 0.25 else "",
            )
        )  # fmt: skip
    return rows


def _expected_power(whitening: Whitening | None, shape: torch.Size, brain_XYZ: Tensor, cosines_TT: Tensor) -> Tensor:
    """Second moments of standardised latents per channel, temporal frequency and cell, as the model knows them."""
    if whitening is None:
        return torch.ones(shape)
    n_channels, n_frames, _ = shape
    unmix_CTF = whitening.unmix_FF.unflatten(0, (n_channels, n_frames))
    along_CTF = torch.einsum("ft,ctg->cfg", cosines_TT, unmix_CTF)
    return along_CTF.square().sum(2)[:, :, None] * whitening.scale_CXYZ[:, None, brain_XYZ].square()


def _variance_row(what: str, expected: Tensor, found: Tensor, kind: str) -> Row:
    """Compare two mean variances; the dataset's is given in units of the model's."""
    ratio = float(found.mean() / expected.mean())
    differs = not 1 / FACTOR <= ratio <= FACTOR
    cause = {
        "slow": "another high-pass filter, denoising (ICA-FIX, regressed confounds), field strength or scaling",
        "fast": "another smoothing, low-pass filter, voxel size or field strength",
        "all": "another preprocessing or scaling",
    }[kind]
    return Row(
        what,
        "1",
        f"{ratio:.2f}",
        differs,
        f"their variance is {ratio:.2g} times the model's: {cause}" if differs else "",
    )


def _brain(mask_XYZ: np.ndarray, reference_XYZ: np.ndarray, tokenizer: Tokenizer) -> list[Row]:
    info = tokenizer.info
    dice = 2 * float((mask_XYZ & info.mask_XYZ).sum()) / float(mask_XYZ.sum() + info.mask_XYZ.sum())
    both_XYZ = mask_XYZ & info.mask_XYZ
    rows = [
        Row(
            "brain mask",
            "1",
            f"{dice:.2f} (Dice)",
            dice < LEAST_DICE,
            "another space, crop or template" if dice < LEAST_DICE else "",
        )
    ]
    if info.grid.is_native:
        return rows  # its box is not centred on the midline
    mirrored_XYZ = reference_XYZ[::-1]
    both_XYZ = both_XYZ & both_XYZ[::-1]
    if both_XYZ.sum() < 3:
        return rows
    r, mirrored_r = (
        float(np.corrcoef(v[both_XYZ], info.reference_XYZ[both_XYZ])[0, 1]) for v in (reference_XYZ, mirrored_XYZ)
    )
    flipped = mirrored_r > r
    rows.append(
        Row(
            "mean image", "r = 1", f"r = {r:.3f}; mirrored {mirrored_r:.3f}", flipped,
            "its mirror image is more like the model's: left and right may be exchanged; check the affines" if flipped else "",
        )
    )  # fmt: skip
    return rows
