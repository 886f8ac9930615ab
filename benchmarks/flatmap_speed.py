"""Speed of the volume-to-surface matrix against nilearn's `vol_to_surf`, on a block of 12 frames.

python benchmarks/flatmap_speed.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import time

import nibabel as nib
import numpy as np
from nilearn.datasets import fetch_surf_fsaverage
from nilearn.surface import vol_to_surf

from fmrisynth.data.grid import MNI_3MM
from fmrisynth.embed.surface import SIDES, load_surface, sampling_matrix


def main() -> None:
    """Print processor times, ratio and largest difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    volumes = np.random.default_rng(0).normal(size=(*MNI_3MM.shape, 12)).astype(np.float32)
    image, files = nib.Nifti1Image(volumes, MNI_3MM.affine), fetch_surf_fsaverage("fsaverage5")
    load_surface("pial")
    load_surface("white")
    started = time.process_time()
    sample = sampling_matrix(MNI_3MM)
    build_s = time.process_time() - started
    ours_s, theirs_s = [], []
    for _ in range(arguments.repeats):
        started = time.process_time()
        ours = sample(volumes)
        ours_s.append(time.process_time() - started)
        started = time.process_time()
        sides = [vol_to_surf(image, files[f"pial_{s}"], inner_mesh=files[f"white_{s}"]) for s in SIDES]
        theirs_s.append(time.process_time() - started)
    difference = np.abs(ours - np.concatenate(sides)).max()
    print(
        f"matrix, once per grid: {build_s:.2f} s; product: {min(ours_s):.4f} s; nilearn: {min(theirs_s):.2f} s of processor time"
    )
    print(f"{min(theirs_s) / min(ours_s):.0f} times as fast; largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
