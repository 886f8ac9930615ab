"""How far each sampler is from the solution of its equation, by the number of steps; each asks the network once.

    python benchmarks/sampler_error.py [--checkpoint MODEL] [--n 4] [--steps 5 10 20 40] [--shifts 1 2.83 8]

Samples of standardised latents from the same noise. Prints the root-mean-square difference from `ab2` with 200 steps, and the share by
which the variance differs from that solution's, in cells that hold brain. With `--shifts` a flow's sampling times are also moved by other
numbers than the square root of the training shift, for `ab2` alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fmrisynth.diffusion.generate import encode_labels
from fmrisynth.diffusion.guidance import guided
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.samplers import sample
from fmrisynth.sample.drawer import load_model

REFERENCE_STEPS = 200


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10, 20, 40])
    parser.add_argument("--samplers", nargs="*", default=["ab2", "euler", "ddim"])
    parser.add_argument("--shifts", type=float, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.checkpoint)
    objective = Objective(**model.objective)
    n_channels, n_frames, *grid = model.latent_shape
    conditions, nobody_A = model.labels["condition"], torch.tensor([len(labels) for labels in model.labels.values()])

    def solve(sampler: str, n_steps: int, number: int, objective: Objective = objective) -> torch.Tensor:
        labels_BA = encode_labels(model.labels, conditions[number % len(conditions)])[None]
        predict = guided(model.network, labels_BA, nobody_A, [1.0] * len(nobody_A))
        noise = torch.randn(1, n_channels * n_frames, *grid, generator=torch.Generator().manual_seed(number))

        def denoise(x: torch.Tensor, time_B: torch.Tensor) -> torch.Tensor:
            return objective.answer(predict(x, objective.path.network_time(time_B).float()), x, time_B)

        brain_XYZ = model.network.brain_XYZ
        return sample(sampler, denoise, noise * brain_XYZ, objective, n_steps)[..., brain_XYZ]

    print("| sampler | steps | difference | variance |\n" + "|" + " --- |" * 4, flush=True)
    with torch.inference_mode():
        exact = [solve("ab2", REFERENCE_STEPS, number) for number in range(arguments.n)]
        rows = [(name, name, objective) for name in arguments.samplers]
        # Sampling times are moved by the square root of the setting.
        rows += [
            (f"ab2, times moved by {s:g}", "ab2", Objective(**model.objective | {"noise_shift": s**2}))
            for s in arguments.shifts
        ]
        for title, sampler, chosen in rows:
            for n_steps in arguments.steps:
                found = [solve(sampler, n_steps, number, chosen) for number in range(arguments.n)]
                pairs = list(zip(found, exact, strict=True))
                difference = sum(float((x - y).square().mean()) for x, y in pairs) / len(pairs)
                variance = sum(float(x.square().mean() / y.square().mean()) - 1 for x, y in pairs) / len(pairs)
                print(f"| {title} | {n_steps} | {difference**0.5:.4f} | {variance:+.2%} |", flush=True)


if __name__ == "__main__":
    main()
