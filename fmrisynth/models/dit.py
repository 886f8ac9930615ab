"""A plain diffusion transformer (Peebles & Xie 2023): one token per latent cell, modulated by what is asked for.

Axis legend: B batch, F = C*T channels, X Y Z latent grid, A attributes, D width, E conditioning width, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmrisynth.config.train import DiTConfig
from fmrisynth.models.blocks import TransformerBlock, sincos_positions, zero_init
from fmrisynth.models.conditions import ConditionEmbedding


class DiT(nn.Module):
    """Conditional denoiser without levels; diffusion time and attributes enter through AdaLN-Zero alone.

    Parameters
    ----------
    config : DiTConfig
    channels : int
        F = C*T, in and out.
    n_labels : sequence of int
        As in `ConditionEmbedding`.
    brain_XYZ : Tensor of shape (X, Y, Z), bool, optional
        Latent cells that hold brain; default all. Others get no token and the answer 0.
    """

    brain_XYZ: Tensor | None
    kept_N: Tensor | None

    def __init__(
        self, config: DiTConfig, channels: int, n_labels: Sequence[int], brain_XYZ: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        kept_N = None if brain_XYZ is None else brain_XYZ.flatten().nonzero()[:, 0]
        self.register_buffer("brain_XYZ", None if brain_XYZ is None else brain_XYZ.to(torch.bool))
        self.register_buffer("kept_N", kept_N, persistent=False)
        width = config.width
        self.condition = ConditionEmbedding(width, width, n_labels, None)
        self.embed = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, width, config.heads, cross_attention=False, mlp_ratio=config.mlp_ratio)
            for _ in range(config.depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.out = zero_init(nn.Linear(width, channels))

    def forward(self, stack_BFXYZ: Tensor, time_B: Tensor, labels_BA: Tensor) -> Tensor:
        """Predict the objective's target; see `HybridDiT.forward`."""
        cond_BE, _ = self.condition(time_B, labels_BA)
        grid = stack_BFXYZ.shape[2:]
        x_BND = self.embed(stack_BFXYZ.flatten(2).transpose(1, 2))
        x_BND = x_BND + sincos_positions(tuple(grid), x_BND.shape[2], x_BND.device).to(x_BND.dtype)
        if self.kept_N is not None:
            x_BND = x_BND[:, self.kept_N]
        for block in self.blocks:
            if self.config.checkpoint_activations and self.training:
                x_BND = checkpoint(block, x_BND, cond_BE, None, use_reentrant=False)
            else:
                x_BND = block(x_BND, cond_BE, None)
        shift_B1D, scale_B1D = self.modulation(nn.functional.silu(cond_BE))[:, None].chunk(2, dim=-1)
        answer_BNF = self.out(self.norm_out(x_BND) * (1 + scale_B1D) + shift_B1D)
        if self.kept_N is not None:
            whole_BNF = answer_BNF.new_zeros(len(answer_BNF), stack_BFXYZ[0, 0].numel(), answer_BNF.shape[2])
            answer_BNF = whole_BNF.index_copy(1, self.kept_N, answer_BNF)
        return answer_BNF.transpose(1, 2).unflatten(2, grid)
