"""Whether long runs run away: the standard deviation of whitened latents, window by window.

    python benchmarks/rollout_drift.py MODEL LATENTS EVENTS [--people 8] [--windows 14] [--seed 1000]

LATENTS are of real people who did EVENTS, encoded with the model's tokenizer; beside them stand runs of the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmrisynth.bids.events import read_events
from fmrisynth.data.latents import LatentDataset
from fmrisynth.data.occupancy import occupancy
from fmrisynth.diffusion.generate import Drawing, encode_labels
from fmrisynth.diffusion.rollout import roll_out
from fmrisynth.models.checkpoint import load_denoiser


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("latents", type=Path)
    parser.add_argument("events", type=Path)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--windows", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1000, help="of the first run; the others have those that follow")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, dataset = load_denoiser(arguments.model), LatentDataset.open(arguments.latents)
    telling, whitening, people = model.event_telling, model.whitening, range(arguments.people)
    if telling is None or whitening is None:
        raise SystemExit(f"{arguments.model}: expected a model of whole runs with whitened latents, found another.")
    length = telling.window_frames
    n_frames, row = length * arguments.windows, dataset.rows[0]
    labels_A = encode_labels(model.labels, model.conditions[0], None, model.always)
    labels_A[0] = 0
    drawing = Drawing(
        model, labels_A, sampler="ab2", n_steps=20, guidance=1.0, guidance_interval=None, eta=0.0, device=torch.device("cpu")
    )  # fmt: skip
    on_TK = occupancy(read_events(arguments.events).events, model.conditions, row.n_frames, row.tr_s)[:n_frames]

    def spread(raw_CTXYZ: Tensor) -> list[float]:
        return [float(drawing.strength(window_CTXYZ[None])) for window_CTXYZ in raw_CTXYZ.split(length, dim=1)]

    with torch.inference_mode():
        found = {
            "real": [spread(dataset.load_frames(person, 0, n_frames)) for person in people],
            "as sampled": [
                spread(
                    torch.cat([w[0] for w in roll_out(drawing, telling, on_TK[None], [arguments.seed + person])], dim=1)
                )
                for person in people
            ],
        }
    print(
        "| standard deviation in the | first window | last window | last window, each run |\n| --- | --- | --- | --- |"
    )
    for name, by_run in found.items():
        power_RW = np.square(by_run)
        first, last = np.sqrt(power_RW.mean(axis=0))[[0, -1]]
        print(f"| {name} | {first:.2f} | {last:.2f} | {', '.join(f'{run[-1]:.2f}' for run in by_run)} |", flush=True)


if __name__ == "__main__":
    main()
