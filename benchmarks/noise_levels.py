"""At which noise levels does the label matter, and how often does each objective train there?

    python benchmarks/noise_levels.py LATENTS [docs/figures/noise_levels.png] [--plain]

Along log(alpha^2 / sigma^2): how often the noisy latent alone names its condition (ridge regression on training
subjects, tried on validation subjects; a lower bound on what it tells), each objective's training draws and its
sampler's times. Prints the share of draws at more noise than where the latent tells 9 tenths of what it tells without
any, and the steps of the default sampler there. Latents are whitened, as the bundled model's are;
`--plain` leaves them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmrisynth.diffusion.objectives import Objective
from fmrisynth.models.distributed import World
from fmrisynth.sample.drawer import DEFAULT_STEPS
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.moments import fit_whitening

OBJECTIVES = {
    "epsilon or v, linear (paper)": Objective("v"),
    "epsilon or v, scaled linear": Objective("v", "scaled_linear"),
    "flow": Objective("flow"),
    "flow, shift 3": Objective("flow", noise_shift=3),
    "flow, shift 8": Objective("flow", noise_shift=8),
    "flow, shift 20": Objective("flow", noise_shift=20),
}
LEVELS = np.arange(-14.0, 6.1, 1.0)
ENOUGH = 0.9
MAX_INSTANCES = 600
LEAST_NOISE = 0.1
"""Latents are never taken to be without noise, in units of their standard deviation: a ridge for the clean end."""


def log_snr(objective: Objective, time_B: torch.Tensor) -> np.ndarray:
    """log(alpha^2 / sigma^2) of times."""
    alpha_B, sigma_B = objective.path.alpha_sigma(time_B)
    return 2 * (torch.log(alpha_B.clamp_min(1e-12)) - torch.log(sigma_B.clamp_min(1e-12))).numpy()


def told_by_latent(
    train_NP: torch.Tensor, label_N: torch.Tensor, test_BP: torch.Tensor, right_B: torch.Tensor, level: float
) -> float:
    """Share of noisy held-out latents that ridge regression on the training latents names rightly.

    Training on many noisy copies of each latent is ridge regression on the clean ones with a penalty of the noise's variance.
    """
    ratio = float(np.exp(-level / 2))  # sigma / alpha
    centre_P = train_NP.mean(0)
    centred_NP = train_NP - centre_P
    kernel_NN = (centred_NP @ centred_NP.T).double()
    penalty = (ratio**2 + LEAST_NOISE**2) * len(train_NP)
    targets_NK = torch.nn.functional.one_hot(label_N).double()
    targets_NK = targets_NK / targets_NK.sum(0) - 1 / len(label_N)
    weights_NK = torch.linalg.solve(kernel_NN + penalty * torch.eye(len(kernel_NN), dtype=torch.float64), targets_NK)
    noisy_BP = test_BP + ratio * torch.randn(test_BP.shape, generator=torch.Generator().manual_seed(0))
    scores_BK = (noisy_BP - centre_P).double() @ (centred_NP.double().T @ weights_NK)
    return float((scores_BK.argmax(1) == right_B).double().mean())


def main(root: Path, figure_path: Path | None, whiten: bool) -> None:
    """Print a Markdown table and draw."""
    latents = TrainingLatents(root)
    vocabulary = latents.vocabulary(latents.select("train"), ["condition"])
    if whiten:
        latents.whitening = fit_whitening(latents, latents.select("train"), World(0, 1, torch.device("cpu")))
    train, held_out = (latents.select(split)[:MAX_INSTANCES] for split in ("train", "val"))
    train_NP, test_BP = (
        torch.stack([latents.read(i)[:, latents.brain_XYZ].flatten() for i in part]) for part in (train, held_out)
    )
    label_N, right_B = (torch.tensor([latents.labels(i, vocabulary)[0] for i in part]) for part in (train, held_out))
    accuracy = np.array([told_by_latent(train_NP, label_N, test_BP, right_B, level) for level in LEVELS])
    decisive = float(np.interp(ENOUGH * accuracy.max(), np.maximum.accumulate(accuracy), LEVELS))
    even = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    print(
        f"Without noise a latent names its condition in {accuracy.max():.0%} of cases (chance {1 / len(vocabulary['condition']):.0%}); "
        f"{ENOUGH:.0%} of that are reached at a log-SNR of {decisive:.1f}.\n"
    )
    print("| objective | draws below | sampling steps below, of " + f"{DEFAULT_STEPS} |\n| --- | --- | --- |")
    draws, grids = {}, {}
    for name, objective in OBJECTIVES.items():
        draws[name] = log_snr(objective, objective.draw_time(even))
        grids[name] = log_snr(objective, objective.path.times(DEFAULT_STEPS)[:-1])
        print(f"| {name} | {(draws[name] < decisive).mean():.1%} | {(grids[name] < decisive).sum()} |")
    if figure_path is not None:
        draw(figure_path, accuracy, decisive, draws, grids)


def draw(
    path: Path, accuracy: np.ndarray, decisive: float, draws: dict[str, np.ndarray], grids: dict[str, np.ndarray]
) -> None:
    """Two panels above each other, one axis of noise."""
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.6])
    top.plot(LEVELS, accuracy, color="black")
    top.set_ylabel("$x_t$ alone\nnames its condition")
    top.set_ylim(0, 1.02)
    for row, (name, values) in enumerate(draws.items()):
        (line,) = bottom.plot([], [], label=name)
        share, edges = np.histogram(values, bins=60, range=(LEVELS[0], LEVELS[-1]))
        bottom.plot((edges[1:] + edges[:-1]) / 2, share / len(values) / np.diff(edges), color=line.get_color())
        bottom.plot(
            np.clip(grids[name], *LEVELS[[0, -1]]),
            np.full(len(grids[name]), -0.02 - 0.018 * row),
            "|",
            color=line.get_color(),
        )
    bottom.set_ylabel("density of training draws;\nticks: sampling steps")
    bottom.set_yticks([0, 0.05, 0.1])
    bottom.set_xlabel(r"$\log(\alpha^2 / \sigma^2)$, from noise to data")
    bottom.legend(frameon=False, fontsize=8)
    for axes in (top, bottom):
        axes.axvspan(LEVELS[0], decisive, color="tab:orange", alpha=0.12, linewidth=0)
        axes.spines[["top", "right"]].set_visible(False)
    top.text(LEVELS[0] + 0.2, 0.9, "here the label matters", fontsize=9, va="top")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:] if argument != "--plain"]
    main(paths[0], paths[1] if len(paths) > 1 else None, "--plain" not in sys.argv)
