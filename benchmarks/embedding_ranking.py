"""Does the distance in an encoder's features rank planted faults?

    python benchmarks/embedding_ranking.py EMBEDDED REAL SAMPLES [--n 20] [--fwhm-mm 8]

REAL is a block dataset of people that the encoder has not seen; half of its people are the reference. Compared with them, as many
blocks of each condition: the other half, samples, the other half smoothed in space, the other half under each other's labels, and white
noise of each voxel's own variance on the other half's reference volumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from fmrisynth.data.blocks import Block, BlockData, read_blocks
from fmrisynth.embed.distance import Rows, Scale, measure
from fmrisynth.embed.encoder import Encoder, load_encoder
from fmrisynth.embed.maps import map_series
from fmrisynth.progress import track

Fault = Callable[[BlockData, np.random.Generator], BlockData]


def smoothed(sigma_voxels: float) -> Fault:
    """Frames blurred in space."""

    def spoil(data: BlockData, rng: np.random.Generator) -> BlockData:
        return BlockData(gaussian_filter(data.bold_XYZT, (sigma_voxels,) * 3 + (0,)), data.reference_XYZ, data.mask_XYZ)

    return spoil


def noise(data: BlockData, rng: np.random.Generator) -> BlockData:
    """White noise around the reference volume, as strong in each voxel as the series."""
    spread = data.bold_XYZT.std(axis=3, keepdims=True)
    series = data.reference_XYZ[..., None] + spread * rng.standard_normal(data.bold_XYZT.shape).astype(np.float32)
    return BlockData(series * data.mask_XYZ[..., None], data.reference_XYZ, data.mask_XYZ)


def encode(blocks: list[Block], encoder: Encoder, fault: Fault | None, seed: int) -> Rows:
    """Tokens of all places of blocks, spoilt on the way."""

    def series():
        for i, block in enumerate(track(blocks, "Encoding", len(blocks))):
            data = block.load()
            if fault is not None:
                data = fault(data, np.random.default_rng([seed, i]))
            yield map_series(data, block.load_grid(), block.tr_s, encoder.maps)

    features = np.stack([tokens_MD.ravel() for tokens_MD in encoder.places(series())])
    return Rows(features, np.array([b.condition for b in blocks]), np.array([b.subject for b in blocks]))


def some(blocks: list[Block], conditions: list[str], n: int, rng: np.random.Generator) -> list[Block]:
    """So many blocks of each condition, drawn by seed."""
    chosen = []
    for condition in conditions:
        own = [b for b in blocks if b.condition == condition]
        chosen += [own[i] for i in np.sort(rng.permutation(len(own))[:n])]
    return chosen


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedded", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--n", type=int, default=20, help="blocks per condition")
    parser.add_argument("--fwhm-mm", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng, encoder = np.random.default_rng(arguments.seed), load_encoder(arguments.embedded)
    blocks, samples = read_blocks(arguments.real), read_blocks(arguments.samples)
    conditions = sorted({b.condition for b in blocks} & {b.condition for b in samples})
    people = rng.permutation(sorted({b.subject for b in blocks}))
    halves = [{*people[: len(people) // 2]}, {*people[len(people) // 2 :]}]
    reference, others = (
        some([b for b in blocks if b.subject in half], conditions, arguments.n, rng) for half in halves
    )
    drawn = some(samples, conditions, arguments.n, rng)
    sigma = arguments.fwhm_mm / 2.3548 / blocks[0].load_grid().voxel_mm[0]
    real = encode(reference, encoder, None, arguments.seed)
    own = encode(others, encoder, None, arguments.seed)
    turned = dict(zip(conditions, np.roll(conditions, 1), strict=True))
    found = {
        "other real people": own,
        "samples": encode(drawn, encoder, None, arguments.seed),
        f"real, smoothed by {arguments.fwhm_mm:g} mm": encode(others, encoder, smoothed(sigma), arguments.seed),
        "real, wrong condition": Rows(own.features_ND, np.array([turned[c] for c in own.conditions_N]), own.people_N),
        "white noise": encode(others, encoder, noise, arguments.seed),
    }
    scale = Scale(real.features_ND)
    print("| blocks | Fréchet | kernel | n |\n| --- | --- | --- | --- |")
    for name, rows in found.items():
        d = measure(real, rows, conditions, scale, seed=arguments.seed)
        gaussian = f"{d.frechet:.2f} [{d.frechet_low:.2f}, {d.frechet_high:.2f}]"
        print(f"| {name} | {gaussian} | {d.kernel:.3f} [{d.kernel_low:.3f}, {d.kernel_high:.3f}] | {d.n} |")


if __name__ == "__main__":
    main()
