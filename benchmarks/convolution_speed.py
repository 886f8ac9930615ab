"""One 3x3x3 convolution, the library's against ours (`fmrisynth.models.winograd`): processor time per call on one thread.

    python benchmarks/convolution_speed.py [--batch-size 2] [--widths 32 64 128 256]

Forward, and forward with backward, on the grid of the finest level (12 x 16 x 16), best of a few calls, both in turn. The library
gets its faster memory format. The last columns are what the network's own layer (`models.blocks.Conv3x3`) makes of it. Prints a Markdown
table with the largest error of the forward pass in units of the largest value.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fmrisynth.models import winograd
from fmrisynth.models.blocks import Conv3x3

GRID = (12, 16, 16)
FORMATS = (torch.contiguous_format, torch.channels_last_3d)
Convolve = Callable[[Tensor, Tensor, Tensor], Tensor]


def library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's convolution (oneDNN)."""
    return F.conv3d(x, weight, bias, padding=1)


def network(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer of the network, which chooses."""
    with torch.device("meta"):
        layer = Conv3x3(weight.shape[1], weight.shape[0])
    return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))


def measure(convolve: Convolve, width: int, batch_size: int, memory_format: torch.memory_format) -> list[float]:
    """Milliseconds of processor time: forward, forward and backward; and the forward error."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = draw(batch_size, width, *GRID).contiguous(memory_format=memory_format).requires_grad_()
    weight = (0.02 * draw(width, width, 3, 3, 3)).contiguous(memory_format=memory_format).requires_grad_()
    bias, gradient = draw(width).requires_grad_(), torch.ones_like(x)

    def forward() -> None:
        with torch.no_grad():
            convolve(x, weight, bias)

    def both() -> None:
        torch.autograd.grad(convolve(x, weight, bias), (x, weight, bias), gradient)

    with torch.no_grad():
        exact = library(x[:1].double(), weight.double(), bias.double())
        error = float((convolve(x[:1], weight, bias) - exact).abs().max() / exact.abs().max())
    return [best_ms(forward), best_ms(both), error]


def best_ms(work: Callable[[], None], calls: int = 6) -> float:
    """Least processor time of a few calls."""
    work()
    times = []
    for _ in range(calls):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return 1e3 * min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| width | library, forward (with backward) ms | Winograd | times as fast | error of library, Winograd "
        "| network's layer | times as fast |"
    )
    print("|---|---|---|---|---|---|---|")
    for width in arguments.widths:
        ours = measure(winograd.conv3d, width, arguments.batch_size, torch.channels_last_3d)
        layer = measure(network, width, arguments.batch_size, torch.contiguous_format)
        theirs = min((measure(library, width, arguments.batch_size, f) for f in FORMATS), key=lambda m: m[1])
        print(
            f"| {width} | {theirs[0]:.1f} ({theirs[1]:.1f}) | {ours[0]:.1f} ({ours[1]:.1f}) | {theirs[0] / ours[0]:.2f} "
            f"({theirs[1] / ours[1]:.2f}) | {theirs[2]:.0e}, {ours[2]:.0e} | {layer[0]:.1f} ({layer[1]:.1f}) "
            f"| {theirs[0] / layer[0]:.2f} ({theirs[1] / layer[1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
