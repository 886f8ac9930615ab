"""The picture of the documentation's first page: group maps of people and of samples, one above the other.

    python benchmarks/front_page.py REAL SAMPLES docs/figures/front_page.png [--conditions motor_rh gambling_loss language_story]

REAL and SAMPLES are block datasets; z of the window GLM over subjects and over samples; a map has its own colour scale,
because z grows with the number.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "study"))
from score import block_effects

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, common_grid, read_blocks
from fmrisynth.glm.statistics import random_effects
from fmrisynth.glm.windows import common_mask
from fmrisynth.report.brain import display_range, mosaic


def group_map(blocks: list[Block], condition: str, mask_XYZ: np.ndarray) -> tuple[np.ndarray, int]:
    """Random-effects z over subjects, and their number."""
    subjects: dict[str, list[np.ndarray]] = {}
    for subject, effect_V in block_effects([b for b in blocks if b.condition == condition], mask_XYZ)[condition]:
        subjects.setdefault(subject, []).append(effect_V)
    z_XYZ = np.zeros(mask_XYZ.shape)
    z_XYZ[mask_XYZ] = random_effects(np.stack([np.mean(effects, axis=0) for effects in subjects.values()])).z
    return z_XYZ, len(subjects)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--conditions", nargs="+", default=["motor_rh", "gambling_loss", "language_story"])
    arguments = parser.parse_args()
    real, samples = (
        [b for b in read_blocks(root) if b.condition in arguments.conditions]
        for root in (arguments.real, arguments.samples)
    )
    mask_XYZ = common_mask([*real, *samples], common_grid(real), GlmConfig().min_reference_fraction)
    rows, limits = [], []
    for condition in arguments.conditions:
        pair = [group_map(blocks, condition, mask_XYZ) for blocks in (real, samples)]
        names = (f"{pair[0][1]} phantom people", f"{pair[1][1]} samples")
        rows += [(f"{condition}: {name}", z_XYZ) for name, (z_XYZ, _) in zip(names, pair, strict=True)]
        # The more samples, the larger z: each map has its own scale, and the pattern is compared.
        limits += [display_range([z_XYZ]) for z_XYZ, _ in pair]
    background_XYZ = real[0].load().reference_XYZ
    figure = mosaic(
        rows, background_XYZ, mask_XYZ, common_grid(real), threshold=0.3, limits=limits, relative_threshold=True
    )
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.figure, dpi=110, bbox_inches="tight", pad_inches=0.2, metadata={"Software": None})


if __name__ == "__main__":
    main()
