"""Training speed: the hybrid denoiser against the U-Net baseline of like size.

One run, the same latents (36 x 12 x 16 x 16 by default) and the same batch for every model, models in turn
so that a change of load on the machine meets all of them. A step is forward, backward, gradient clipping and AdamW. On a CPU
shared with other work compare the processor time (user and system, all threads), not the steps per second. Prints a Markdown
table; with ``--json FILE`` also writes the numbers. Operations are those of the plain mathematics, whatever the execution saves.

    python benchmarks/train_speed.py hybrid-38m unet-41m --batch-size 2 --steps 5
    python benchmarks/train_speed.py hybrid-38m ... hybrid-463m unet-41m --device cuda --batch-size 16 --steps 30
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

GRID = (12, 16, 16)
CHANNELS = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["hybrid-38m", "unet-41m"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", nargs="*", default=[], metavar="PRESET", help="presets to run channels-last")
    parser.add_argument("--optimiser", choices=("fused", "foreach"), default="fused", help="AdamW's implementation")
    parser.add_argument("--direct", action="store_true", help="hybrid without its own CPU convolutions")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        measure(options.worker, options)
        return
    rates: dict[str, list[float]] = {preset: [] for preset in options.presets}
    facts: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for preset in options.presets:  # a process each, so that peak memory is the model's own
            answer = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--worker", preset], capture_output=True, text=True
            )
            if answer.returncode:
                sys.exit(answer.stderr)
            fact = json.loads(answer.stdout.splitlines()[-1])
            rates[preset].append(fact["steps_per_s"])
            if fact["processor_s_per_step"] <= facts.get(preset, fact)["processor_s_per_step"]:
                facts[preset] = fact
    rows = []
    for preset in options.presets:
        best, fact = max(rates[preset]), facts[preset]
        share = f"{100 * best * fact['gmac_per_step'] * 2e9 / fact['matmul_flops']:.0f} %"
        rows.append(
            f"| {preset} | {fact['parameters'] / 1e6:.1f} | {fact['gmac_per_forward']:.1f} | {best:.3f} "
            f"({min(rates[preset]):.3f}) | {fact['processor_s_per_step']:.2f} | {fact['peak_memory_gib']:.2f} | {share} |"
        )
    first, last = options.presets[0], options.presets[-1]
    print(
        f"{platform.processor() or platform.machine()}, device {options.device}, batch {options.batch_size}, "
        f"latents {CHANNELS} x {' x '.join(map(str, GRID))}, best (worst) of {options.rounds} rounds of "
        f"{options.steps} steps, {fact['threads']} threads"
    )
    print(
        "| model | M parameters | GMAC per forward | steps/s | processor s per step | peak memory, GiB | share of the matrix rate |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    ratio = facts[last]["processor_s_per_step"] / facts[first]["processor_s_per_step"]
    print(f"\nA step of {last} takes {ratio:.2f} times the processor time of {first}.")
    print(f"{first} makes {max(rates[first]) / max(rates[last]):.2f} times the steps per second of {last}.")
    if options.json:
        options.json.write_text(json.dumps({"rates": rates, "facts": facts}, indent=2) + "\n")


def measure(preset: str, options: argparse.Namespace) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fmrisynth.config.load import load_config
    from fmrisynth.config.train import TrainConfig
    from fmrisynth.diffusion.objectives import Objective
    from fmrisynth.models import winograd
    from fmrisynth.models.build import build_denoiser, count_parameters

    if options.direct:
        winograd.MIN_WIDTH = 1 << 30
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = load_config(TrainConfig, "train", preset=preset)
    torch.manual_seed(0)
    network = build_denoiser(config.model, CHANNELS, [7]).to(device).train()
    channels_last = preset in options.channels_last
    if channels_last:
        network.to(memory_format=torch.channels_last_3d)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=options.optimiser == "fused")
    objective = Objective()
    n = options.batch_size
    clean, noise = (torch.randn(n, CHANNELS, *GRID, device=device) for _ in range(2))
    time_B = objective.draw_time(torch.rand(n))
    labels_BA = torch.randint(0, 8, (n, 1), device=device)
    noisy, told_B = objective.add_noise(clean, noise, time_B), time_B.float().to(device)
    if channels_last:
        noisy = noisy.contiguous(memory_format=torch.channels_last_3d)

    # Operations of the plain mathematics: on the meta device no convolution takes a short cut.
    with torch.device("meta"):
        plain = build_denoiser(config.model, CHANNELS, [7])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(*(t[:1].to("meta") for t in (noisy, told_B, labels_BA)))
    gmac = counter.get_total_flops() / 2e9
    forward = torch.compile(network) if options.compile else network

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            prediction = forward(noisy, told_B, labels_BA)
        objective.loss(prediction, clean, noise, time_B).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2 if device.type == "cpu" else 5):
        step()
    synchronise()
    started, processor_started = time.perf_counter(), time.process_time()
    for _ in range(options.steps):
        step()
    synchronise()
    rate = options.steps / (time.perf_counter() - started)
    processor_s = (time.process_time() - processor_started) / options.steps
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({
        "steps_per_s": rate, "processor_s_per_step": processor_s, "peak_memory_gib": peak, "parameters": count_parameters(network),
        "gmac_per_forward": gmac, "gmac_per_step": 3 * n * gmac, "matmul_flops": matmul_rate(device),
        "threads": torch.get_num_threads(),
    }))  # fmt: skip


def matmul_rate(device) -> float:
    """Operations per second of one large matrix product in the precision of training."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
