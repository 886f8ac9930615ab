"""Building blocks of the hybrid denoiser (paper, Fig. 4b and 4c).

Axis legend: B batch, D width of a level, X Y Z latent grid, N = X*Y*Z tokens, E conditioning width,
M context tokens. Every block returns its input unchanged at initialisation (zero-initialised last layer
or gates), so a deep stack starts as the identity.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmrisynth.models import winograd


def sinusoidal_embedding(time_B: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Embed diffusion time as cosines and sines of geometrically spaced frequencies.

    Parameters
    ----------
    time_B : Tensor of shape (B,)
        Diffusion time on the scale 0 to about 1000.
    width : int
        Even width of the embedding.

    Returns
    -------
    Tensor of shape (B, width), float32
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=time_B.device) / half)
    angles = time_B.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@lru_cache(maxsize=64)
def sincos_positions(grid: tuple[int, int, int], width: int, device: torch.device) -> Tensor:
    """Fixed sine-cosine positions of a 3D grid, a third of the width for each axis.

    Returns
    -------
    Tensor of shape (N, width), float32
        Columns left over when ``width`` does not divide by six are zero.
    """
    per_axis = width // 6
    with torch.inference_mode(False):  # the cached tensor serves sampling and training alike
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(per_axis) / max(per_axis, 1))
        axes = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
        parts = []
        for coordinate in axes:
            angles = coordinate.reshape(-1, 1) * frequencies[None]
            parts += [angles.sin(), angles.cos()]
        positions = torch.cat(parts, dim=1)
        return F.pad(positions, (0, width - positions.shape[1])).to(device)


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the largest number that divides a narrow width."""
    return nn.GroupNorm(math.gcd(32, width), width)


def _library_is_slow(x_BDXYZ: Tensor, weight: Tensor) -> bool:
    """Whether `conv3d` would miss the fast code: for one small volume PyTorch does not ask oneDNN, which is twice as fast or more."""
    return (
        len(x_BDXYZ) == 1
        and x_BDXYZ.device.type == "cpu"
        and x_BDXYZ.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


class Conv3x3(nn.Conv3d):
    """3x3x3 convolution that keeps the grid; on a CPU in fewer multiplications where that pays."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x_BDXYZ: Tensor) -> Tensor:
        if self.bias is not None and winograd.pays(x_BDXYZ, self.weight):
            return winograd.conv3d(x_BDXYZ, self.weight, self.bias)
        if _library_is_slow(x_BDXYZ, self.weight):
            ones = (1, 1, 1)
            return torch.mkldnn_convolution(x_BDXYZ, self.weight, self.bias, ones, ones, ones, 1)
        return super().forward(x_BDXYZ)


class Conv1x1(nn.Conv3d):
    """1x1x1 convolution; on a CPU as the matrix product it is, which the convolution library does not see."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 1)

    def forward(self, x_BDXYZ: Tensor) -> Tensor:
        if x_BDXYZ.device.type != "cpu":
            return super().forward(x_BDXYZ)
        return F.linear(x_BDXYZ.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def zero_init(layer: nn.Linear | nn.Conv3d) -> nn.Linear | nn.Conv3d:
    """Set weight and bias to zero, so that the branch the layer ends contributes nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class LinearSkip(nn.Module):
    """A linear path beside a network that is narrower than its input: a cell's numbers in some directions, each times a gain.

    For Gaussian data the best answer is of this form: a gain for each direction of their covariance, set by the diffusion time. The
    first directions are at first the channels of the answer, and all gains are 0.

    Parameters
    ----------
    channels : int
        Numbers of a cell (F).
    cond_width : int
        Width of the conditioning vector (E).
    """

    def __init__(self, channels: int, cond_width: int) -> None:
        super().__init__()
        n_directions = 2 * channels
        self.inward, self.outward = Conv1x1(channels, n_directions), Conv1x1(n_directions, channels)
        self.gain = zero_init(nn.Linear(cond_width, n_directions))
        with torch.no_grad():
            self.inward.weight[:channels, :, 0, 0, 0] = torch.eye(channels)
            self.outward.weight[:, :channels, 0, 0, 0] = torch.eye(channels)
        for layer in (self.inward, self.outward):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x_BFXYZ: Tensor, cond_BE: Tensor) -> Tensor:
        return self.outward(self.gain(cond_BE)[:, :, None, None, None] * self.inward(x_BFXYZ))


class FilmConvBlock(nn.Module):
    """Convolutional residual block with FiLM conditioning (paper, Fig. 4b).

    Parameters
    ----------
    width : int
        Channels in and out (D).
    cond_width : int
        Width of the conditioning vector (E).
    """

    def __init__(self, width: int, cond_width: int) -> None:
        super().__init__()
        self.norm_in = group_norm(width)
        self.conv_in = Conv3x3(width, width)
        self.norm_out = group_norm(width)
        self.film = zero_init(nn.Linear(cond_width, 2 * width))
        self.conv_out = zero_init(Conv3x3(width, width))

    def forward(self, x_BDXYZ: Tensor, cond_BE: Tensor) -> Tensor:
        h_BDXYZ = self.conv_in(F.silu(self.norm_in(x_BDXYZ)))
        scale_BD111, shift_BD111 = self.film(F.silu(cond_BE))[:, :, None, None, None].chunk(2, dim=1)
        h_BDXYZ = self.norm_out(h_BDXYZ) * (1 + scale_BD111) + shift_BD111
        return x_BDXYZ + self.conv_out(F.silu(h_BDXYZ))


class Attention(nn.Module):
    """Multi-head attention of tokens to themselves, or to a context of another width."""

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, context_BME: Tensor | None = None) -> Tensor:
        source_BME = x_BND if context_BME is None else context_BME
        key_BMD, value_BMD = self.key_value(source_BME).chunk(2, dim=-1)
        parts = self._split(self.query(x_BND)), self._split(key_BMD), self._split(value_BMD)
        if torch.is_autocast_enabled("cpu"):
            # The gradient takes seven times as long in bfloat16 as in float32 (PyTorch 2.13).
            with torch.autocast("cpu", enabled=False):
                mixed_BHNd = F.scaled_dot_product_attention(parts[0].float(), parts[1].float(), parts[2].float())
        else:
            mixed_BHNd = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.out(mixed_BHNd.transpose(1, 2).flatten(2))

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)


def _modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    return x_BND * (1 + scale_B1D) + shift_B1D


class FixedModulation(nn.Module):
    """Learned modulations that ignore the conditioning vector: what is left of AdaLN-Zero in its ablation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(1, width))

    def forward(self, cond_BE: Tensor) -> Tensor:
        return self.values


class TransformerBlock(nn.Module):
    """Transformer block with AdaLN-Zero and cross-attention to the condition (paper, Fig. 4c).

    Self-attention, cross-attention and MLP each have a shift, a scale and a gate computed from the
    conditioning vector: nine modulations, or six without cross-attention. Without ``adaln`` they are
    learned constants.
    """

    def __init__(
        self,
        width: int,
        cond_width: int,
        num_heads: int,
        *,
        adaln: bool = True,
        cross_attention: bool = True,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads)
        self.cross_attention: Attention | None = None
        if cross_attention:
            self.norm_cross = nn.LayerNorm(width)
            self.cross_attention = Attention(width, num_heads, context_width=cond_width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(mlp_ratio * width, width),
        )
        modulations = (9 if cross_attention else 6) * width
        self.modulation = zero_init(nn.Linear(cond_width, modulations)) if adaln else FixedModulation(modulations)

    def forward(self, x_BND: Tensor, cond_BE: Tensor, context_BME: Tensor | None) -> Tensor:
        parts = self.modulation(F.silu(cond_BE))[:, None].chunk(6 if self.cross_attention is None else 9, dim=-1)

        shift, scale, gate = parts[0:3]
        x_BND = x_BND + gate * self.self_attention(_modulate(self.norm_self(x_BND), shift, scale))
        if self.cross_attention is not None:
            shift, scale, gate = parts[6:9]
            x_BND = x_BND + gate * self.cross_attention(_modulate(self.norm_cross(x_BND), shift, scale), context_BME)
        shift, scale, gate = parts[3:6]
        return x_BND + gate * self.mlp(_modulate(self.norm_mlp(x_BND), shift, scale))
