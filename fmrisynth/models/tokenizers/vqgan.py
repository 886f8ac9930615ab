"""3D VQ-GAN: encoder, codebook with EMA updates and revival, decoder.

The layout is that of the VQ-GAN the reference paper fine-tuned (ALDM): three levels, two stride-2
convolutions with one-sided padding, one block at the bottleneck, nearest upsampling. Built from MONAI's
convolution, residual block, downsampling and EMA quantiser. Module names follow the ALDM state dict, so that
`fmrisynth.models.tokenizers.init` only has to drop MONAI's ``.conv`` infix.

Axis legend: N volumes, C latent channels, D codebook entries, M latent vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets.autoencoderkl import AEKLDownsample, AEKLResBlock
from torch import Tensor, nn
from torch.nn import functional

from fmrisynth.config.tokenize import VqganConfig
from fmrisynth.models.tokenizers.base import Tokenizer, TokenizerInfo

NORM_EPS = 1e-6
MAX_DISTANCES = 1 << 25
"""Most entries of a distance matrix that is held at a time (128 MiB in float32)."""


def conv3(in_channels: int, out_channels: int, kernel_size: int = 3) -> Convolution:
    """A plain 3D convolution that keeps the size."""
    return Convolution(3, in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, conv_only=True)


class SingleConvBlock(nn.Module):
    """GroupNorm, SiLU, convolution, and nothing else: the block of the first ALDM configuration."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=NORM_EPS)
        self.conv1 = conv3(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, ...) -> (N, out, ...)."""
        return self.conv1(functional.silu(self.norm1(x)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, x, y, z) -> (N, C, 2x, 2y, 2z)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def _block(config: VqganConfig, in_channels: int, out_channels: int) -> nn.Module:
    if config.residual:
        return AEKLResBlock(3, in_channels, config.norm_groups, NORM_EPS, out_channels)
    return SingleConvBlock(in_channels, out_channels, config.norm_groups)


class _Level(nn.Module):
    """Blocks of one resolution, and the way to the next under the name that ALDM gives it."""

    def __init__(
        self, block: Sequence[nn.Module], *, downsample: nn.Module | None = None, upsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(block)
        if downsample is not None:
            self.downsample = downsample
        if upsample is not None:
            self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """All blocks, then the change of resolution."""
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class _Middle(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block_1 = block


class Encoder(nn.Module):
    """Volumes to feature maps of a quarter of the sides."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [multiplier * config.base_ch for multiplier in config.ch_mult]
        self.conv_in = conv3(1, config.base_ch)
        self.down = nn.ModuleList()
        width = config.base_ch
        for index, out_width in enumerate(widths):
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(_block(config, width, out_width))
                width = out_width
            last = index == len(widths) - 1
            self.down.append(_Level(blocks, downsample=None if last else AEKLDownsample(3, width)))
        self.mid = _Middle(_block(config, width, width))
        self.norm_out = nn.GroupNorm(config.norm_groups, width, eps=NORM_EPS)
        self.conv_out = conv3(width, config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) -> (N, C, X/4, Y/4, Z/4)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.mid.block_1(h)
        return self.conv_out(functional.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Feature maps to volumes of four times the sides."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [multiplier * config.base_ch for multiplier in config.ch_mult]
        width = widths[-1]
        self.conv_in = conv3(config.latent_channels, width)
        self.mid = _Middle(_block(config, width, width))
        levels = []
        for index in reversed(range(len(widths))):
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(_block(config, width, widths[index]))
                width = widths[index]
            levels.append(_Level(blocks, upsample=Upsample(width) if index > 0 else None))
        self.up = nn.ModuleList(reversed(levels))  # index = level, as in the encoder
        self.norm_out = nn.GroupNorm(config.norm_groups, width, eps=NORM_EPS)
        self.conv_out = conv3(width, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, x, y, z) -> (N, 1, 4x, 4y, 4z)."""
        h = self.mid.block_1(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(functional.silu(self.norm_out(h)))


class RevivingQuantizer(EMAQuantizer):
    """MONAI's EMA quantiser without its one-hot matrix, and with revival of dead codes.

    MONAI holds an (M, D) one-hot matrix beside the distances, 100 MB per volume with 8192 codes; here the
    nearest code is found in chunks and the sums are scattered. A code whose running count falls below
    `revive_below` is set to a latent drawn from the batch. Codes are drawn from PyTorch's global generator.
    """

    def __init__(self, config: VqganConfig) -> None:
        super().__init__(
            3, config.codebook_size, config.latent_channels,
            commitment_cost=config.commitment, decay=config.codebook_decay, ddp_sync=False,
        )  # fmt: skip
        self.revive_below = config.revive_below
        self.ema_cluster_size.fill_(1.0)

    def nearest(self, inputs: Tensor) -> Tensor:
        """Index of the nearest code of every latent vector, (N, x, y, z)."""
        flat_MC = inputs.float().movedim(1, -1).reshape(-1, self.embedding_dim)
        codes_DC = self.embedding.weight
        norms_D = codes_DC.square().sum(dim=1)
        chunk = max(1, MAX_DISTANCES // self.num_embeddings)
        found = [torch.addmm(norms_D, part, codes_DC.t(), alpha=-2.0).argmin(dim=1) for part in flat_MC.split(chunk)]
        return torch.cat(found).view(inputs.shape[0], *inputs.shape[2:])

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised latents (straight-through), commitment loss, indices; updates the codebook in training."""
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.float()
            indices = self.nearest(inputs.detach())
            quantized = self.embed(indices)
            if self.training:
                self._update(inputs.detach(), indices)
            loss = self.commitment_cost * functional.mse_loss(quantized.detach(), inputs)
            return inputs + (quantized - inputs).detach(), loss, indices

    @torch.no_grad()
    def _update(self, inputs: Tensor, indices: Tensor) -> None:
        flat_MC = inputs.movedim(1, -1).reshape(-1, self.embedding_dim)
        index_M = indices.flatten()
        counts_D = torch.bincount(index_M, minlength=self.num_embeddings).to(flat_MC.dtype)
        sums_DC = torch.zeros_like(self.ema_w).index_add_(0, index_M, flat_MC)
        self.ema_cluster_size.mul_(self.decay).add_(counts_D, alpha=1 - self.decay)
        self.ema_w.mul_(self.decay).add_(sums_DC, alpha=1 - self.decay)
        dead_D = self.ema_cluster_size < self.revive_below
        n_dead = int(dead_D.sum())
        if n_dead:
            drawn = torch.randint(len(flat_MC), (n_dead,), device="cpu").to(flat_MC.device)
            self.ema_cluster_size[dead_D] = 1.0
            self.ema_w[dead_D] = flat_MC[drawn]
        self.embedding.weight.copy_(self.ema_w / self.ema_cluster_size.clamp(min=1e-5)[:, None])


class VqganTokenizer(Tokenizer):
    """The paper's kind of tokenizer: quantised latents of a 3D VQ-GAN."""

    kind = "vqgan"

    def __init__(self, config: VqganConfig, info: TokenizerInfo) -> None:
        super().__init__(config, info)
        self.config: VqganConfig = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = conv3(config.latent_channels, config.latent_channels, 1)
        self.post_quant_conv = conv3(config.latent_channels, config.latent_channels, 1)
        self.quantizer = RevivingQuantizer(config)

    def encode_masked(self, frames_NCXYZ: Tensor) -> Tensor:
        """Quantised latents (the codes themselves, as in ALDM)."""
        with torch.autocast(frames_NCXYZ.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            z = self.quant_conv(self.encoder(frames_NCXYZ))
        if not self.config.quantise:
            return z
        return self.quantizer.embed(self.quantizer.nearest(z))

    def decode_unmasked(self, latents_NCxyz: Tensor) -> Tensor:
        """Decode latents as they are: a generator's latents are not forced on the codebook."""
        with torch.autocast(latents_NCxyz.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.decoder(self.post_quant_conv(latents_NCxyz.contiguous()))

    def forward(self, frames_NCXYZ: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reconstruct with gradients.

        Parameters
        ----------
        frames_NCXYZ : tensor of shape (N, 1, X, Y, Z)
            Normalised volumes, 0 outside the brain.

        Returns
        -------
        reconstruction : tensor of shape (N, 1, X, Y, Z)
            0 outside the brain.
        codebook_loss : scalar tensor
            Commitment; 0 without quantisation.
        indices : tensor of shape (N, x, y, z) or None
            Codes used.
        """
        z = self.quant_conv(self.encoder(frames_NCXYZ))
        if self.config.quantise:
            z, loss, indices = self.quantizer(z)
        else:
            loss, indices = z.new_zeros(()), None
        return self.decoder(self.post_quant_conv(z)) * self.brain_XYZ, loss, indices

    @torch.no_grad()
    def codes(self, frames_NCXYZ: Tensor) -> Tensor | None:
        """Codes of volumes, (N, x, y, z); None without a codebook."""
        if not self.config.quantise:
            return None
        frames = frames_NCXYZ.to(self.brain_XYZ.device) * self.brain_XYZ
        return self.quantizer.nearest(self.quant_conv(self.encoder(frames))).cpu()

    def n_network_parameters(self) -> int:
        """Parameters of encoder, decoder and the two 1 x 1 x 1 convolutions, without the codebook."""
        parts = (self.encoder, self.decoder, self.quant_conv, self.post_quant_conv)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())
