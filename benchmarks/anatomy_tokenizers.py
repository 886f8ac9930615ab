"""What tokenizers of anatomies keep: voxels of people they were not fitted to, and whether sex and age can be told from their latents.

    fmrisynth tokenize PEOPLE LATENTS --preset mae-small     # and other presets, each into a folder of its own
    python benchmarks/anatomy_tokenizers.py PEOPLE LATENTS...

Reconstruction: mean absolute error in units of the brain's mean, PSNR and SSIM within each person's mask, of people outside the
training split. Probes: those of `evaluate --unit anatomy` (standardised features, ridge regression for age, a ridge classifier for
sex, five folds over people, 95 % bootstrap intervals) of the mean over the cells that hold brain, of all those cells, and, as the row
"volumes", of the volumes themselves averaged over cells of 4 voxels a side. People who are in all latents folders are looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from fmrisynth.data.blocks import Block, anatomies_of, common_grid, iterate_subjects
from fmrisynth.data.latents import LatentDataset
from fmrisynth.evaluate.anatomies import People, control, read_people
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.tokenize.heldout import quality_of
from fmrisynth.tokenize.source import to_frames


def reconstruction(latents: Path, blocks: list[Block]) -> tuple[float, float, float]:
    """Mean absolute error (units of the brain's mean), PSNR (dB) and SSIM, mean over people."""
    tokenizer = load_tokenizer(latents / "tokenizer")
    scores = []
    for block in blocks:
        data = block.load()
        frames = to_frames(data, tokenizer.info.normalisation)
        back = tokenizer.decode(tokenizer.encode(frames))
        error = (frames - back)[0, 0].abs()[torch.from_numpy(data.mask_XYZ)].mean()
        scores.append((float(error), *quality_of(frames[0], back[0], data.mask_XYZ)))
    l1, psnr, ssim = np.mean(scores, axis=0)
    return float(l1), float(psnr), float(ssim)


def probes(features_ND: np.ndarray, people: People, seed: int) -> list[str]:
    """Sex (balanced accuracy) and age (r) as they are told from features, in words."""
    own = People(people.blocks, features_ND, people.volume_N, people.mean_XYZ, people.std_XYZ)
    nobody = People([], features_ND[:0], people.volume_N[:0], people.mean_XYZ, people.std_XYZ)
    told = []
    for name in ("sex", "age"):
        found = control(name, own, nobody, np.random.default_rng(seed))
        told.append("-" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found.real))
    return told


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("latents", type=Path, nargs="+")
    parser.add_argument("--max-people", type=int, default=40, help="that are reconstructed, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    datasets = [LatentDataset.open(folder) for folder in arguments.latents]
    everybody = sorted(set.intersection(*(set(dataset.subjects) for dataset in datasets)))
    blocks = [anatomies_of(own)[0] for _, own in iterate_subjects(arguments.people, everybody)]
    people = read_people(blocks, common_grid(blocks))
    held_out = [block for block in blocks if block.split != "train"][: arguments.max_people]
    print(f"{len(blocks)} people, of whom {len(held_out)} outside the training split are reconstructed", flush=True)
    print("| tokenizer | latents | l1 | PSNR, dB | SSIM | sex, mean | sex, all | age, mean | age, all |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    sex, age = probes(people.features_ND, people, arguments.seed)
    print(f"| volumes | {people.features_ND.shape[1]:,} | | | | | {sex} | | {age} |", flush=True)
    for folder, dataset in zip(arguments.latents, datasets, strict=True):
        inside_xyz = load_tokenizer(dataset.tokenizer_dir).info.latent_mask_xyz
        first = {row.subject: index for index, row in reversed(list(enumerate(dataset.rows)))}
        values_NCM = torch.stack([dataset.load(first[block.subject])[:, 0, inside_xyz] for block in blocks]).numpy()
        by_mean, by_all = (
            probes(x, people, arguments.seed)
            for x in (values_NCM.mean(axis=2), values_NCM.reshape(len(values_NCM), -1))
        )
        l1, psnr, ssim = reconstruction(folder, held_out)
        shape = " x ".join(map(str, (dataset.shape[0], *dataset.shape[2:])))
        print(
            f"| {folder.name} | {shape} | {l1:.4f} | {psnr:.1f} | {ssim:.3f} | {by_mean[0]} | {by_all[0]} | {by_mean[1]} | "
            f"{by_all[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
