"""Which patterns a model of runs hears: its error in the main spatial patterns of noisy windows, over that of the best linear estimate.

    python benchmarks/modes_denoised.py MODEL LATENTS [--leave-out sub-X] [--windows 96] [--seed 0]

LATENTS are those that the model was trained on. The patterns are principal components over cells of whitened training windows; the
windows are of the validation split. The linear estimate knows the variance of each of a window's numbers in the pattern and
nothing else. The network is told the events and shown no past. Above 1: it hears a pattern worse than the best estimate from that
number alone.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch

from fmrisynth.config.train import ConditioningConfig
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.train.windows import TrainingWindows

EDGES = (0, 3, 10, 30, 100, 200)
TIMES = (0.9, 0.8, 0.65, 0.5)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--leave-out", nargs="*", default=[])
    parser.add_argument("--fit-windows", type=int, default=320)
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    model = load_denoiser(arguments.model)
    telling, objective = model.event_telling, Objective(**model.objective)
    if telling is None or model.whitening is None:
        raise SystemExit(f"{arguments.model}: expected a model of whole runs with whitened latents, found another.")
    windows = TrainingWindows(arguments.latents, ConditioningConfig(kind="events"), arguments.leave_out)
    windows.whitening, brain_XYZ = model.whitening, windows.brain_XYZ
    drawn = {split: windows.select(split) for split in ("train", "val")}
    some = {split: [all_[int(i)] for i in torch.randint(len(all_), (n,))] for (split, all_), n in
            zip(drawn.items(), (arguments.fit_windows, arguments.windows), strict=True)}  # fmt: skip
    fitted_BFV = torch.stack([windows.read(instance)[:, brain_XYZ] for instance in some["train"]])
    patterns_VK = torch.svd_lowrank(fitted_BFV.flatten(0, 1), q=EDGES[-1], niter=3)[2]
    mean_V1 = torch.full((len(patterns_VK), 1), len(patterns_VK) ** -0.5)
    pattern_VK = torch.cat([mean_V1, patterns_VK], dim=1)
    variance_FK = (fitted_BFV @ pattern_VK).square().mean(dim=0)
    clean = torch.stack([windows.read(instance) for instance in some["val"]])
    events = torch.stack([windows.told(instance, None)[0] for instance in some["val"]])
    past = torch.zeros(len(clean), telling.past_channels, *brain_XYZ.shape)
    told = (torch.zeros(len(clean), 1, dtype=torch.long), events, past)
    true_BFK = clean[:, :, brain_XYZ] @ pattern_VK
    groups = ["brain's mean", *(f"{a + 1} to {b}" for a, b in pairwise(EDGES))]
    print(f"| noise / signal | {' | '.join(groups)} |\n|{' --- |' * (len(groups) + 1)}")
    for time in TIMES:
        time_B = torch.full((len(clean),), time, dtype=torch.float64)
        with torch.inference_mode():
            noise = torch.randn(clean.shape) * brain_XYZ
            noisy = objective.add_noise(clean, noise, time_B)
            parts = zip(noisy.split(8), time_B.split(8), *(part.split(8) for part in told), strict=True)
            output = torch.cat(
                [model.network(x, objective.path.network_time(t).float(), *known) for x, t, *known in parts]
            )
            estimate, _ = objective.clean_and_noise(objective.answer(output, noisy, time_B), noisy, time_B)
        one, none = torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
        alpha, sigma = (
            float(objective.add_noise(*pair, time_B[:1])) for pair in ((one, none), (none, one))
        )  # fmt: skip
        ratio = sigma / alpha
        errors_BFK = [
            true_BFK - estimate[:, :, brain_XYZ] @ pattern_VK,
            true_BFK - (noisy[:, :, brain_XYZ] @ pattern_VK) / alpha * variance_FK / (variance_FK + ratio**2),
        ]
        error_K, linear_K = (errors.square().mean(dim=(0, 1)) for errors in errors_BFK)
        shares = [
            float(error_K[a:b].sum() / linear_K[a:b].sum())
            for a, b in ((0, 1), *((a + 1, b + 1) for a, b in pairwise(EDGES)))
        ]
        print(f"| {ratio:.1f} | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
