"""Seconds per finished sample, and the hybrid against the U-Net inside MONAI's own inferer; one run, one thread.

    python benchmarks/sampling_speed.py [--checkpoint MODEL] [--n 2] [--steps 3] [--device cuda]

First table: denoising, decoding and writing of one sample of the given (default: bundled) model with the default sampler and
with ancestral sampling over all 1000 steps, through the code of `fmrisynth sample`. Second table: an untrained hybrid-38m and
unet-41m (speed does not depend on the weights) denoise latents of 36 x 12 x 16 x 16 at batch 1 through MONAI's
`DiffusionInferer` with its `DDIMScheduler`, at equal steps, in turn. Processor seconds stand beside wall seconds, because wall
time says little on a shared machine. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fmrisynth.config.load import load_config
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.models.build import build_denoiser
from fmrisynth.sample.drawer import Drawer, load_model
from fmrisynth.sample.plan import make_requests
from fmrisynth.sample.run import SampleMaker
from fmrisynth.stage import Stage

CHANNELS, GRID = 36, (12, 16, 16)


@dataclass
class Clock:
    """Wall and processor seconds of the blocks that run under it."""

    wall_s: float = 0.0
    processor_s: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall_s += time.perf_counter() - wall
            self.processor_s += time.process_time() - processor

    def __sub__(self, other: Clock) -> Clock:
        return Clock(self.wall_s - other.wall_s, self.processor_s - other.processor_s)

    def __add__(self, other: Clock) -> Clock:
        return Clock(self.wall_s + other.wall_s, self.processor_s + other.processor_s)

    def each(self, n: int) -> str:
        return f"{self.processor_s / n:.2f} ({self.wall_s / n:.2f})"


def time_samples(
    checkpoint: Path | None, sampler: str, steps: int | None, n: int, device: torch.device
) -> tuple[int, Clock, Clock, Clock]:
    """Steps, and clocks of denoising, decoding and writing `n` samples, after one that does not count."""
    model, tokenizer = load_model(checkpoint)
    denoise, decode, decode_and_write = Clock(), Clock(), Clock()
    decode_blocks = tokenizer.decode_blocks

    def timed_decode(*arguments, **keywords):
        with decode.running():
            block = next(decode_blocks(*arguments, **keywords))
        yield block

    tokenizer.decode_blocks = timed_decode
    warm = SampleConfig(conditions=model.conditions[:1], n=1, sampler=sampler, steps=2, seed=1)
    asked = SampleConfig(conditions=model.conditions[:1], n=n, sampler=sampler, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        for config in (warm, asked):
            for clock in (denoise, decode, decode_and_write):
                clock.wall_s = clock.processor_s = 0.0
            stage = Stage("sample", Path(folder) / str(config.seed))
            make = SampleMaker(stage, Drawer(config, model, tokenizer))
            requests = make_requests(config, model.conditions)
            with denoise.running():
                latents_BCTXYZ = make.drawer.latents(requests, device)
            for request, latent_CTXYZ in zip(requests, latents_BCTXYZ, strict=True):
                with decode_and_write.running():
                    make._write([request], [latent_CTXYZ], [])
    return make.drawer.settings["SamplerSteps"], denoise, decode, decode_and_write - decode


class Monai(nn.Module):
    """Our denoiser interface as MONAI's inferer calls it."""

    def __init__(self, network: nn.Module, condition: int) -> None:
        super().__init__()
        self.network = network
        self.labels_BA = torch.tensor([[condition]], device=next(network.parameters()).device)

    def forward(self, x, timesteps, context=None):
        return self.network(x, timesteps, self.labels_BA)


def time_inferer(network: nn.Module, steps: int) -> Clock:
    """Clock of one sample through MONAI's inferer."""
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=1000, schedule="linear_beta", beta_start=0.0015, beta_end=0.0195, clip_sample=False
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(network.parameters()).device)
    clock = Clock()
    with torch.inference_mode(), clock.running():
        DiffusionInferer(scheduler).sample(
            input_noise=noise, diffusion_model=Monai(network, 2), scheduler=scheduler, verbose=False
        ).cpu()
    return clock


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=2, help="samples per sampler")
    parser.add_argument("--full-steps", type=int, default=1000, help="steps of ancestral sampling")
    parser.add_argument("--steps", type=int, default=3, help="DDIM steps of the second table")
    parser.add_argument("--rounds", type=int, default=3, help="of the second table; the best one counts")
    parser.add_argument("--device", default="cpu", help="processor seconds say nothing of a GPU: read the wall seconds")
    parser.add_argument("--presets", nargs=2, default=["hybrid-38m", "unet-41m"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print("Processor seconds per sample (wall seconds in brackets), one thread\n")
    print("| sampler | steps | denoise | decode | anatomy, write | together |\n|---|---|---|---|---|---|")
    denoising = []
    for sampler, steps in (("ab2", None), ("ddpm", arguments.full_steps)):
        n_steps, denoise, decode, write = time_samples(
            arguments.checkpoint, sampler, steps, arguments.n, torch.device(arguments.device)
        )
        whole = denoise + decode + write
        cells = " | ".join(clock.each(arguments.n) for clock in (denoise, decode, write, whole))
        print(f"| {sampler} | {n_steps} | {cells} |", flush=True)
        denoising.append(denoise)
    ratio = denoising[1].processor_s / denoising[0].processor_s
    print(
        f"\nThe default denoises {ratio:.1f} times faster than ancestral sampling with {arguments.full_steps} steps.\n"
    )

    networks = {}
    for preset in arguments.presets:
        config = load_config(TrainConfig, "train", preset=preset)
        torch.manual_seed(0)
        networks[preset] = build_denoiser(config.model, CHANNELS, [7]).eval().to(arguments.device)
        time_inferer(networks[preset], 1)
    best: dict[str, Clock] = {}
    for _ in range(arguments.rounds):
        for preset, network in networks.items():
            clock = time_inferer(network, arguments.steps)
            if preset not in best or clock.processor_s < best[preset].processor_s:
                best[preset] = clock
    print(
        f"MONAI's DiffusionInferer and DDIMScheduler, {arguments.steps} steps, batch 1, one thread, best of {arguments.rounds}\n"
    )
    print("| model | processor s per sample | wall s | processor s per step |\n|---|---|---|---|")
    for preset, clock in best.items():
        print(
            f"| {preset} | {clock.processor_s:.2f} | {clock.wall_s:.2f} | {clock.processor_s / arguments.steps:.3f} |"
        )
    first, last = (best[preset].processor_s for preset in arguments.presets)
    print(f"\n{arguments.presets[0]} samples {last / first:.2f} times as fast as {arguments.presets[1]}.")


if __name__ == "__main__":
    main()
