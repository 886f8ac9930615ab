"""Time the batched window GLM against looping nilearn's ``FirstLevelModel`` over blocks.

One hundred samples of each of seven conditions on a small grid; both sides start from arrays in memory and end with
effect, variance and z of every block. Run: ``python benchmarks/glm_speed.py [--side 24] [--samples 100]``.
"""

from __future__ import annotations

import argparse
import time
import warnings

import nibabel as nib
import numpy as np
import pandas as pd

from fmrisynth.glm.design import window_design
from fmrisynth.glm.statistics import fit_windows

TR_S, N_FRAMES = 1.44, 12
DURATIONS_S = {"wm": 27.5, "fear": 18.0, "loss": 28.0, "story": 25.0, "relation": 16.0, "rh": 12.0, "mental": 23.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=24, help="voxels per side of the cube")
    parser.add_argument("--samples", type=int, default=100, help="blocks per condition")
    options = parser.parse_args()
    from nilearn.glm.first_level import FirstLevelModel

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    shape = (options.side,) * 3
    n_voxels = options.side**3
    blocks = {c: rng.standard_normal((options.samples, N_FRAMES, n_voxels), dtype=np.float32) for c in DURATIONS_S}
    mask = nib.Nifti1Image(np.ones(shape, np.int8), np.eye(4) * [3, 3, 3, 1])

    window_design.cache_clear()
    start = time.perf_counter()
    ours = {}
    for condition, windows in blocks.items():
        estimate = fit_windows(windows, window_design(0.0, DURATIONS_S[condition], N_FRAMES, TR_S))
        ours[condition] = (estimate.effect, estimate.variance, estimate.z)
    batched_s = time.perf_counter() - start

    start = time.perf_counter()
    worst = 0.0
    for condition, windows in blocks.items():
        events = pd.DataFrame({"onset": [0.0], "duration": [DURATIONS_S[condition]], "trial_type": ["block"]})
        for index, window_TV in enumerate(windows):
            model = FirstLevelModel(
                t_r=TR_S, hrf_model="spm", drift_model=None, mask_img=mask, signal_scaling=False, noise_model="ols"
            )
            model.fit(nib.Nifti1Image(window_TV.T.reshape(*shape, -1), mask.affine), events=events)
            maps = model.compute_contrast("block", output_type="all")
            z = maps["z_score"].get_fdata().reshape(-1)
            maps["effect_size"].get_fdata()
            maps["effect_variance"].get_fdata()
            worst = max(worst, float(np.abs(z - ours[condition][2][index]).max()))
    loop_s = time.perf_counter() - start

    n = options.samples * len(DURATIONS_S)
    print(f"{n} blocks of {N_FRAMES} frames, {n_voxels} voxels")
    print(f"nilearn in a loop  {loop_s:8.2f} s  ({1000 * loop_s / n:.1f} ms per block)")
    print(f"batched            {batched_s:8.2f} s  ({1000 * batched_s / n:.1f} ms per block)")
    print(f"ratio              {loop_s / batched_s:8.1f}")
    print(f"largest |z - z|    {worst:8.1e}")


if __name__ == "__main__":
    main()
