"""Peak memory of an evaluation by the number of people, at the size of a whole brain, without any image.

    python benchmarks/evaluate_memory.py --test 54 --training 975 [--blocks 1]

Windows of smooth noise go through everything that `fmrisynth evaluate` does with the windows that it reads: training
people into the reference, test people and samples into summaries, and these into all checks. Prints the peak of the
resident set, which holds mapped files too.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block
from fmrisynth.data.grid import MNI_3MM, mni_brain_mask
from fmrisynth.evaluate.analysis import Judge
from fmrisynth.evaluate.checks import Context
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.response import Timing
from fmrisynth.evaluate.rois import read_spheres
from fmrisynth.evaluate.summary import Reference, Summariser, WindowStore, patterns_of
from fmrisynth.glm.windows import Window

CONDITIONS = (
    "emotion_fear", "gambling_loss", "language_story", "motor_rh", "relational_relation", "social_mental", "wm_2bk_places",
)  # fmt: skip
TR_S, N_FRAMES = 1.44, 12


class People:
    """People whose windows are mixtures of a few maps of noise."""

    def __init__(self, n_voxels: int) -> None:
        self.rng = np.random.default_rng(0)
        self.noise_KTV = self.rng.standard_normal((4, N_FRAMES, n_voxels), np.float32)
        self.reference_V = (10_000 * np.exp(0.2 * self.rng.standard_normal(n_voxels))).astype(np.float32)

    def windows(self, name: str, n_people: int, n_blocks: int) -> Iterator[Window]:
        """One at a time, person by person."""
        for person in range(n_people):
            own = self.rng.standard_normal(2).astype(np.float32)
            for index, condition in enumerate(np.repeat(CONDITIONS, n_blocks)):
                a, b = self.rng.standard_normal(2).astype(np.float32)
                percent_TV = a * self.noise_KTV[index % 4] + b * self.noise_KTV[(index + 1) % 4] + own[0]
                block = Block(
                    Path(), f"{name}{person:04d}", str(condition), Path("x_bold.nii.gz"), 0.0, 18.0, TR_S, N_FRAMES
                )
                yield Window(block, percent_TV, self.reference_V * (1 + 0.1 * own[1] * (a > 0)))


def main() -> None:
    """Print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=int, default=54)
    parser.add_argument("--training", type=int, default=975)
    parser.add_argument("--samples", type=int, default=50, help="per condition")
    parser.add_argument("--blocks", type=int, default=1, help="of each person and condition")
    arguments = parser.parse_args()
    config, mask_XYZ = EvaluateConfig(), mni_brain_mask(MNI_3MM)
    probes = Probes(MNI_3MM, mask_XYZ, read_spheres(mask_XYZ, MNI_3MM))
    people = People(int(mask_XYZ.sum()))
    voxels = np.sort(np.random.default_rng(0).permutation(int(mask_XYZ.sum()))[: config.resampling_voxels])

    store, reference = WindowStore(), Reference(config.glm)
    for window in reference.watch(people.windows("t", arguments.training, arguments.blocks)):
        store.add(window.block.subject, window.block.condition, *probes.on_cells(window))
    arrays = reference.arrays(probes)
    patterns = patterns_of(arrays, probes)

    def summary(name: str, n_people: int, n_blocks: int, **options: bool):
        keep = Summariser(probes, config.glm, voxels, patterns, **options)
        return keep.take(people.windows(name, n_people, n_blocks))

    real = summary("r", arguments.test, arguments.blocks, keep_effects=False)
    peer, synthetic = (summary(name, arguments.samples, 1, as_samples=True) for name in ("p", "s"))
    timing = {c: Timing(course, TR_S) for c, course in zip(patterns, arrays["course"], strict=True)}
    energy = {c: pattern.odd_energy for c, pattern in patterns.items()}
    context = Context(list(CONDITIONS), list(CONDITIONS), probes.rois, timing, energy)
    Judge(real, peer, context, store.blocks(), config)(synthetic)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{arguments.test} + {arguments.training} people, {arguments.blocks} block(s) of each condition, {int(mask_XYZ.sum())} voxels: "
        f"{peak:.2f} GB at the peak, {time.process_time():.0f} s"
    )


if __name__ == "__main__":
    main()
