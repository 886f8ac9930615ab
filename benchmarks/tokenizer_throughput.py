"""Volumes per second of encode and decode, ours beside MONAI's stock VQVAE of about the same size.

python benchmarks/tokenizer_throughput.py [--threads 2] [--seconds 10] [--device cpu]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.networks.nets import VQVAE

from fmrisynth.config.load import load_config
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.grid import MNI_3MM, mni_brain_mask
from fmrisynth.models.tokenizers import TokenizerInfo, build_tokenizer


def rate(function: Callable[[], object], n_volumes: int, seconds: float, device: torch.device) -> float:
    """Volumes per second after one warm-up call."""
    function()
    n_calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or n_calls == 0:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        n_calls += 1
    return n_calls * n_volumes / elapsed


def stock_vqvae(width: int, codebook_size: int) -> VQVAE:
    """MONAI's VQVAE with two stride-2 levels and three latent channels."""
    return VQVAE(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(width, 2 * width), num_res_channels=(width, 2 * width),
        num_res_layers=2, downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        num_embeddings=codebook_size, embedding_dim=3,
    ).eval()  # fmt: skip


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--volumes", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    mask = np.array(mni_brain_mask())
    frames = torch.randn(arguments.volumes, 1, *MNI_3MM.shape, device=device)
    print("| tokenizer | parameters | encode vol/s | decode vol/s |\n| --- | --- | --- | --- |")
    for preset in ("pooling", "patch-pca", "patch-overlap", "patch-local", "vqgan-small"):
        config = load_config(TokenizeConfig, "tokenize", preset=preset)
        channels = 1 if preset == "pooling" else 3
        info = TokenizerInfo(config.model.kind, "dynamics", MNI_3MM, 1.44, 12, channels, mask, mask.astype(np.float32))
        tokenizer = build_tokenizer(config.model, info).to(device).eval()
        size = sum(t.numel() for t in tokenizer.state_dict().values())
        latents = tokenizer.encode(frames)
        speeds = [
            rate(lambda t=tokenizer: t.encode(frames), len(frames), arguments.seconds, device),
            rate(lambda t=tokenizer, z=latents: t.decode(z), len(frames), arguments.seconds, device),
        ]  # fmt: skip
        print(f"| {preset} | {size:,} | {speeds[0]:.1f} | {speeds[1]:.1f} |", flush=True)
    stock = stock_vqvae(36, 8192).to(device)
    size = sum(p.numel() for p in stock.parameters())
    with torch.no_grad():
        codes = stock.encode_stage_2_inputs(frames[:2])

        def encode() -> list[torch.Tensor]:
            return [stock.encode_stage_2_inputs(part) for part in frames[:4].split(2)]

        speeds = [
            rate(encode, 4, arguments.seconds, device),
            rate(lambda: stock.decode_stage_2_outputs(codes), 2, arguments.seconds, device),
        ]
    print(f"| MONAI VQVAE | {size:,} | {speeds[0]:.1f} | {speeds[1]:.1f} |")


if __name__ == "__main__":
    main()
