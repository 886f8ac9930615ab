"""Whether long runs drift: the standard deviation of whitened latents, window by window.

    python benchmarks/rollout_drift.py MODEL LATENTS EVENTS [--people 4] [--windows 14]

LATENTS are of real people who did EVENTS, encoded with the model's tokenizer. Beside them stand runs of the model as `fmrisynth sample`
makes them, windows that are drawn alone (nothing shown of the past), and windows that are shown the end of the real one before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmrisynth.bids.events import read_events
from fmrisynth.data.latents import LatentDataset
from fmrisynth.data.occupancy import occupancy, window_occupancy
from fmrisynth.diffusion.generate import Drawing, encode_labels
from fmrisynth.diffusion.rollout import past_channels, window_seed
from fmrisynth.models.checkpoint import load_denoiser


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("events", type=Path)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--windows", type=int, default=14)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, dataset = load_denoiser(arguments.model), LatentDataset.open(arguments.latents)
    telling, whitening, n_people = model.event_telling, model.whitening, arguments.people
    if telling is None or whitening is None:
        raise SystemExit(f"{arguments.model}: expected a model of whole runs with whitened latents, found another.")
    length, n_past = telling.window_frames, telling.past_frames
    n_frames = length * arguments.windows
    labels_A = encode_labels(model.labels, model.conditions[0], None, model.always)
    labels_A[0] = 0
    drawing = Drawing(
        model,
        labels_A,
        sampler="ab2",
        n_steps=20,
        guidance=1.0,
        guidance_interval=None,
        eta=0.0,
        device=torch.device("cpu"),
    )
    brain_XYZ, tr_s = drawing.brain_XYZ, dataset.rows[0].tr_s
    on_TK = occupancy(read_events(arguments.events).events, model.conditions, dataset.rows[0].n_frames, tr_s)
    mean_C1111, std_C1111 = (part.reshape(-1, 1, 1, 1, 1) for part in (model.latent_mean_C, model.latent_std_C))
    raw = torch.stack([dataset.load_frames(person, 0, n_frames) for person in range(n_people)])
    real = (raw - mean_C1111) / std_C1111

    def run(person: int, past_of: Callable[[int, Tensor | None], Tensor | None]) -> Tensor:
        parts: list[Tensor] = []
        for first in range(0, n_frames, length):
            events = torch.from_numpy(window_occupancy(on_TK, first, length, telling.history_frames))
            past = past_of(first, parts[-1][:, -n_past:] if parts else None)
            noise = torch.Generator().manual_seed(window_seed(person, first, "past"))
            shown = past_channels(past, telling, brain_XYZ, whitening.scale_CXYZ, noise)
            stack_BFXYZ = drawing.draw([window_seed(person, first)], [events[None], shown[None]], fill=1)
            parts.append(drawing.standardised(stack_BFXYZ)[0])
        return torch.cat(parts, dim=1)

    ways: dict[str, Callable[[int], Tensor]] = {
        "real": lambda person: real[person],
        "as sampled": lambda person: run(person, lambda _, own: own),
        "each window alone": lambda person: run(person, lambda _, own: None),
        "shown the real past": lambda person: run(
            person, lambda first, _: real[person, :, first - n_past : first] if first else None
        ),
    }
    chosen = sorted({0, *range(2, arguments.windows, 3), arguments.windows - 1})
    print(
        "| window | " + " | ".join(str(window + 1) for window in chosen) + " |\n|" + " --- |" * (len(chosen) + 1),
        flush=True,
    )
    with torch.inference_mode():
        for name, way in ways.items():
            runs = torch.stack([way(person) for person in range(n_people)])
            white = (runs / whitening.scale_CXYZ[None, :, None])[..., brain_XYZ].numpy()
            spread = [float(np.std(white[:, :, window * length : (window + 1) * length])) for window in chosen]
            print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in spread) + " |", flush=True)


if __name__ == "__main__":
    main()
