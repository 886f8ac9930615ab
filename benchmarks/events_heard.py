"""How much of the response to an experiment a model of runs knows: a minute's check of a training.

    python benchmarks/events_heard.py MODEL... --latents LATENTS --events EVENTS... [--leave-out sub-X]

Asked of pure noise, with nothing shown of the past, a network answers with the mean of what may come. Its answers along each experiment
stand beside the response in the latents of the training people, by least squares on the events of the last 35 s (a finite impulse
response model). That is fitted to two halves of the people: the products of the two are free of its noise. Amplitude is the slope of the
answers on the response, r the correlation over frames, cells and channels, about the mean over the experiment. The last row is the
response that was fitted to a half of the people, against that of the other half: what least squares makes of as much data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmrisynth.bids.events import read_events
from fmrisynth.config.train import ConditioningConfig
from fmrisynth.data.occupancy import occupancy, window_occupancy
from fmrisynth.diffusion.generate import encode_labels
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.models.checkpoint import LoadedDenoiser, load_denoiser
from fmrisynth.train.windows import TrainingWindows

N_LAGS, N_FRAMES, STEP = 24, 240, 5


def lagged(on_TK: Tensor) -> Tensor:
    """Events of each frame and of the frames before it, (T, N_LAGS * K)."""
    rows = [torch.cat([torch.zeros_like(on_TK[:lag]), on_TK[: len(on_TK) - lag]]) for lag in range(N_LAGS)]
    return torch.cat(rows, dim=1).double()


def responses(windows: TrainingWindows) -> list[Tensor]:
    """Responses per lag and condition, fitted to each half of the training people; (N_LAGS * K, cells)."""
    sums: list[list[Tensor]] = [[], []]
    products: list[list[Tensor]] = [[], []]
    people = sorted({row.subject for row in windows.dataset.rows if row.split == "train"})
    for number, row in enumerate(windows.dataset.rows):
        if row.split != "train":
            continue
        frames = windows.dataset.standardise(windows.dataset.load_frames(number, 0, row.n_frames))
        y_TV = frames[:, :, windows.brain_XYZ].permute(1, 0, 2).flatten(1).double()
        x_TP = lagged(windows.occupancy_of(number))
        x_TP, y_TV = x_TP - x_TP.mean(dim=0), y_TV - y_TV.mean(dim=0)
        half, weight = people.index(row.subject) % 2, 1 / y_TV.square().mean()
        sums[half].append(weight * x_TP.T @ x_TP)
        products[half].append(weight * x_TP.T @ y_TV)
    return [
        torch.linalg.lstsq(torch.stack(xx).sum(dim=0), torch.stack(xy).sum(dim=0)).solution
        for xx, xy in zip(sums, products, strict=True)
    ]


def answer(model: LoadedDenoiser, noise_1FXYZ: Tensor, on_SK: Tensor) -> Tensor:
    """The network's mean of what may come in a window, (T, cells) standardised latents."""
    telling, objective, whitening = model.event_telling, Objective(**model.objective), model.whitening
    assert telling is not None
    assert whitening is not None
    past = torch.zeros(1, telling.past_channels, *noise_1FXYZ.shape[2:])
    time_B = torch.ones(1, dtype=torch.float64)
    labels_A = encode_labels(model.labels, model.conditions[0], None, model.always)
    labels_A[0] = 0  # events are told
    told = (labels_A[None], on_SK[None], *([past] if telling.past_frames else []))
    with torch.inference_mode():
        output = model.network(noise_1FXYZ, objective.path.network_time(time_B).float(), *told)
        clean, _ = objective.clean_and_noise(objective.answer(output, noise_1FXYZ, time_B), noise_1FXYZ, time_B)
        latent_CTXYZ = whitening.undo(clean[0]).unflatten(0, model.latent_shape[:2])
    return latent_CTXYZ[:, :, model.network.brain_XYZ].permute(1, 0, 2).flatten(1).double()


def along(on_TK: np.ndarray, fits: list[Tensor], firsts: range, n: int) -> list[Tensor]:
    """Each fitted response in windows of an experiment, about its mean, (windows, n, cells)."""
    courses = [lagged(torch.from_numpy(on_TK)) @ fit for fit in fits]
    windows = [torch.stack([course[first : first + n] for first in firsts]) for course in courses]
    return [part - part.mean(dim=(0, 1)) for part in windows]


def halves(on_TK: np.ndarray, fits: list[Tensor]) -> str:
    """The r of the two fits, along one experiment."""
    one, other = along(on_TK, fits, range(1), len(on_TK))
    true = float((one * other).sum())
    return f"({true / float(one.square().sum() * other.square().sum()) ** 0.5:.2f})"


def compare(model: LoadedDenoiser, on_TK: np.ndarray, noise_1FXYZ: Tensor, fits: list[Tensor]) -> str:
    """Amplitude and r along one experiment."""
    telling = model.event_telling
    if telling is None or telling.descriptors is not None or model.whitening is None:
        raise SystemExit(
            f"{model.path}: expected a model of whole runs that knows conditions by name, with whitened latents."
        )
    n = telling.window_frames
    firsts = range(telling.history_frames, len(on_TK) - n, STEP)
    told = [torch.from_numpy(window_occupancy(on_TK, first, n, telling.history_frames)) for first in firsts]
    own = torch.stack([answer(model, noise_1FXYZ, on_SK) for on_SK in told])
    own = own - own.mean(dim=(0, 1))
    one, other = along(on_TK, fits, firsts, n)
    true, between = float((one * other).sum()), float((own * (one + other)).sum() / 2)
    return f"{between / true:.2f} ({between / np.sqrt(true * float(own.square().sum())):.2f})"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--latents", type=Path, required=True, help="that the models were trained on")
    parser.add_argument("--events", type=Path, required=True, nargs="+", help="experiments")
    parser.add_argument("--leave-out", nargs="*", default=[], help="people, as in their training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    windows = TrainingWindows(arguments.latents, ConditioningConfig(kind="events"), arguments.leave_out)
    fits = responses(windows)
    shape = (1, windows.channels, *windows.latent_shape[2:])
    noise_1FXYZ = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * windows.brain_XYZ
    on = [occupancy(read_events(path).events, windows.conditions, N_FRAMES, windows.tr_s) for path in arguments.events]
    print("| amplitude (r) | " + " | ".join(path.stem.removesuffix("_events") for path in arguments.events) + " |")
    print("| --- |" + " --- |" * len(on))
    for path in arguments.models:
        model = load_denoiser(path)
        cells = [compare(model, on_TK, noise_1FXYZ, fits) for on_TK in on]
        print(f"| {path.name} | " + " | ".join(cells) + " |", flush=True)
    print("| half of the people | " + " | ".join(halves(on_TK, fits) for on_TK in on) + " |")


if __name__ == "__main__":
    main()
