"""How much of the response to an event a model of runs knows, by how long it lasts and when it began: a minute's check of a training.

    python benchmarks/events_heard.py MODEL... --latents LATENTS [--drawn]

Asked of pure noise, with nothing shown of the past, a network answers with the mean of what may come. The difference between its answers to
an event and to none stands beside the response in the latents of the training people, by least squares on the events of the last 35 s (a
finite impulse response model). That is fitted to two halves of the people: the products of the two are free of its noise.
With `--drawn` also of windows that are drawn, an event and none from the same noise: with nothing shown of the past, and with the
past of real people, who did something else.

Amplitude is the slope of the answer on the response, r the correlation over cells, channels and frames; all conditions together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmrisynth.bids.events import Event
from fmrisynth.config.train import ConditioningConfig
from fmrisynth.data.occupancy import occupancy
from fmrisynth.diffusion.generate import Drawing
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.models.checkpoint import LoadedDenoiser, load_denoiser
from fmrisynth.train.windows import TrainingWindows

N_LAGS = 24
EVENTS_S = ((2.0, 2.0), (8.0, 2.0), (8.0, 8.0), (8.0, 14.0), (40.0, 20.0))
"""How long an event lasts, and how long before the window it begins."""
N_DRAWN = 3


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
        x_TP = lagged(windows.events_of(number))
        x_TP, y_TV = x_TP - x_TP.mean(dim=0), y_TV - y_TV.mean(dim=0)
        half, weight = people.index(row.subject) % 2, 1 / y_TV.square().mean()
        sums[half].append(weight * x_TP.T @ x_TP)
        products[half].append(weight * x_TP.T @ y_TV)
    return [torch.linalg.lstsq(sum(xx), sum(xy)).solution for xx, xy in zip(sums, products, strict=True)]  # type: ignore[call-overload]


def answer(model: LoadedDenoiser, noises: Tensor, on_SK: Tensor) -> Tensor:
    """The network's mean of what may come, (T, cells) standardised latents."""
    telling, objective, whitening = model.event_telling, Objective(**model.objective), model.whitening
    assert telling is not None
    assert whitening is not None
    n = len(noises)
    past = torch.zeros(n, telling.past_channels, *noises.shape[2:])
    time_B = torch.ones(n, dtype=torch.float64)
    labels_BA = torch.zeros(n, len(model.labels), dtype=torch.long)
    told = (labels_BA, on_SK.expand(n, -1, -1), *([past] if telling.past_frames else []))
    with torch.inference_mode():
        output = model.network(noises, objective.path.network_time(time_B).float(), *told)
        clean, _ = objective.clean_and_noise(objective.answer(output, noises, time_B), noises, time_B)
        stack_FXYZ = whitening.undo(clean.mean(dim=0))
    return frames_of(stack_FXYZ.unflatten(0, model.latent_shape[:2]), model)


def drawn(model: LoadedDenoiser, pasts: Sequence[Tensor], on_SK: Tensor) -> Tensor:
    """Mean of windows drawn from noise of their own, one after each past, (T, cells) standardised latents."""
    labels_A = torch.zeros(len(model.labels), dtype=torch.long)
    drawing = Drawing(
        model, labels_A, sampler="ab2", n_steps=20, guidance=1.0, guidance_interval=None, eta=0.0, device=torch.device("cpu")
    )  # fmt: skip
    stacks = [drawing.draw([seed], [on_SK[None], past[None]], fill=1) for seed, past in enumerate(pasts)]
    return frames_of(drawing.standardised(torch.cat(stacks)).mean(dim=0), model)


def frames_of(latent_CTXYZ: Tensor, model: LoadedDenoiser) -> Tensor:
    """The cells that hold brain, (T, cells)."""
    return latent_CTXYZ[:, :, model.network.brain_XYZ].permute(1, 0, 2).flatten(1).double()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--latents", type=Path, required=True, help="that the models were trained on")
    parser.add_argument("--leave-out", nargs="*", default=[], help="people, as in their training")
    parser.add_argument("--drawn", action="store_true", help="also draw windows, for another minute or two")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    windows = TrainingWindows(arguments.latents, ConditioningConfig(kind="events", past_dropout=0), arguments.leave_out)
    one_PV, other_PV = responses(windows)
    shape = (3, windows.channels, *windows.latent_shape[2:])
    noises = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * windows.brain_XYZ
    print("| amplitude (r) | " + " | ".join(f"{lasts:g} s, {before:g} s before" for lasts, before in EVENTS_S) + " |")
    print("| --- |" + " --- |" * len(EVENTS_S))
    for path in arguments.models:
        model = load_denoiser(path)
        telling = model.event_telling
        if telling is None or telling.descriptors is not None or model.whitening is None:
            raise SystemExit(f"{path}: expected a model of whole runs that knows conditions by name, found another.")
        ways: dict[str, Callable[[Tensor], Tensor]] = {"": partial(answer, model, noises)}
        if arguments.drawn:
            held_out, windows.whitening = windows.select("test"), model.whitening
            held_out = [place for place in held_out if windows.place(place)[1] >= telling.past_frames]
            places = [held_out[i] for i in np.random.default_rng(0).permutation(len(held_out))[:N_DRAWN]]
            pasts = [windows.told(place, torch.Generator().manual_seed(place))[1] for place in places]
            ways[", drawn, no past"] = partial(drawn, model, [torch.zeros_like(past) for past in pasts])
            ways[", drawn, real past"] = partial(drawn, model, pasts)
        for way, window in ways.items():
            cells = [compare(model, *event, window, (one_PV, other_PV), windows.tr_s) for event in EVENTS_S]
            print(f"| {path.name}{way} | " + " | ".join(cells) + " |", flush=True)


def compare(
    model: LoadedDenoiser,
    duration_s: float,
    before_s: float,
    window: Callable[[Tensor], Tensor],
    fits: tuple[Tensor, Tensor],
    tr_s: float,
) -> str:
    """Amplitude and r for one event."""
    telling = model.event_telling
    assert telling is not None
    n_told = telling.history_frames + telling.window_frames
    onset_s = max(0.0, telling.history_frames * tr_s - before_s)
    rest = window(torch.zeros(n_told, len(model.conditions)))
    sums = torch.zeros(3, dtype=torch.float64)
    for condition in model.conditions:
        on_SK = torch.from_numpy(occupancy([Event(onset_s, duration_s, condition)], model.conditions, n_told, tr_s))
        own = window(on_SK) - rest
        one, other = ((lagged(on_SK) @ fit)[-telling.window_frames :] for fit in fits)
        sums += torch.stack([(own * (one + other) / 2).sum(), (one * other).sum(), own.square().sum()])
    between, true, power = sums.tolist()
    return f"{between / true:.2f} ({between / np.sqrt(true * power):.2f})"


if __name__ == "__main__":
    main()
