"""At which level is the brain of a decoded anatomy found best? Sets `LEAST_BRAIN` of fmrisynth/data/normalisation.py.

    python benchmarks/brain_threshold.py PEOPLE LATENTS

Anatomies of training people are encoded and decoded with the tokenizer of LATENTS, observation noise is added, and the brain that is found
at each level is compared with the true mask.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fmrisynth.data import normalisation
from fmrisynth.data.blocks import anatomies_of, iterate_subjects
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.tokenize.source import to_frames


def main() -> None:
    """Print overlap and volume for each level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--n", type=int, default=24)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.latents / "tokenizer")
    train = [own[0] for _, own in iterate_subjects(arguments.people) if own[0].split == "train"][: arguments.n]
    pairs = []
    for number, block in enumerate(anatomies_of([one])[0] for one in train):
        data = block.load()
        decoded = tokenizer.decode(tokenizer.encode(to_frames(data, "relative")))[0, 0].numpy()
        if tokenizer.info.noise is not None:
            decoded = decoded + tokenizer.info.noise.draw(np.random.default_rng(number))[..., 0]
        pairs.append((decoded, data.mask_XYZ))
    print("| level | Dice | volume, found / true |\n| --- | --- | --- |")
    for level in np.arange(0.15, 0.6, 0.05):
        normalisation.LEAST_BRAIN = float(level)
        found = [(normalisation.brain_of(values_XYZ), mask_XYZ) for values_XYZ, mask_XYZ in pairs]
        dice = np.mean([2 * (one & other).sum() / (one.sum() + other.sum()) for one, other in found])
        print(f"| {level:.2f} | {dice:.4f} | {np.mean([one.sum() / other.sum() for one, other in found]):.3f} |")


if __name__ == "__main__":
    main()
