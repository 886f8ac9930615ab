"""An activation table and atlas that have nothing to do with the packaged ones: does the recipe generalise?

    python benchmarks/other_activations.py FOLDER [--seed 5] [--networks 5]
    fmrisynth simulate OUT --activations FOLDER/table.tsv --atlas FOLDER/atlas.nii.gz ...

Grey matter is cut into parcels (k-means of coordinates). Each condition activates parcels drawn at random and deactivates
fewer; some parcels are shared by most conditions, as the visual cortex is. Beside these, conditions have nothing in common, so that
all pairs of them are about equally similar. With ``--networks`` they have: sets of parcels drawn at random, each of which takes part in
about half of the conditions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.cluster.vq import kmeans2

from fmrisynth.conditions import load_table
from fmrisynth.data.grid import MNI_3MM
from fmrisynth.simulate.space import load_templates, make_space, sample_template

N_PARCELS = 160


def main(out: Path, seed: int, n_networks: int) -> None:
    """Write ``atlas.nii.gz`` and ``table.tsv``."""
    rng = np.random.default_rng(seed)
    space = make_space(MNI_3MM)
    points = space.coordinates_V3
    grey = sample_template(load_templates()["gm"], points) > 0.4
    _, parcel = kmeans2(points[grey].astype(np.float64), N_PARCELS, seed=seed, minit="++")
    labels = np.zeros(len(points), np.int16)
    labels[grey] = parcel + 1
    out.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(space.to_grid(labels), MNI_3MM.affine), out / "atlas.nii.gz")

    conditions = load_table().default_labels
    effects_PK = np.zeros((N_PARCELS, len(conditions)))
    shared = rng.choice(N_PARCELS, 8, replace=False)
    for k in range(len(conditions)):
        own = rng.choice(N_PARCELS, 18, replace=False)
        effects_PK[own[:13], k] = rng.uniform(0.8, 2.5, 13)
        effects_PK[own[13:], k] = -rng.uniform(0.5, 1.2, 5)
        if rng.random() < 0.7:
            effects_PK[shared, k] = rng.uniform(1.0, 2.5, len(shared))
    for _ in range(n_networks):
        members = rng.choice(N_PARCELS, 14, replace=False)
        takes_part_K = rng.random(len(conditions)) < 0.5
        effects_PK[members] += np.outer(
            rng.uniform(0.8, 2.5, 14), takes_part_K * rng.uniform(0.4, 1.2, len(conditions))
        )
    rows = ["\t".join(["parcel", *conditions])]
    rows += ["\t".join([str(p + 1), *(f"{v:.3f}" for v in row)]) for p, row in enumerate(effects_PK)]
    (out / "table.tsv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--networks", type=int, default=0, help="Sets of parcels that conditions share.")
    arguments = parser.parse_args()
    main(arguments.out, arguments.seed, arguments.networks)
