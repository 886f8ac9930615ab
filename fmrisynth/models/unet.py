"""The paper's baseline: MONAI's 3D diffusion U-Net behind the denoiser interface."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmrisynth.config.train import UNetConfig


class MonaiUNet(nn.Module):
    """``DiffusionModelUNet`` with the settings that give the five sizes of Table 4.

    Parameters
    ----------
    config : UNetConfig
        Widths, heads and attention levels.
    channels : int
        F = C*T, in and out.
    n_conditions : int
        Number of task conditions; one more class embedding stands for "null".
    brain_XYZ : Tensor of shape (X, Y, Z), bool, optional
        Latent cells that hold brain; the answer is 0 elsewhere.
    """

    brain_XYZ: Tensor | None

    def __init__(self, config: UNetConfig, channels: int, n_conditions: int, brain_XYZ: Tensor | None = None) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        self.config = config
        self.register_buffer("brain_XYZ", None if brain_XYZ is None else brain_XYZ.to(torch.bool))
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=channels,
            out_channels=channels,
            channels=config.num_channels,
            num_res_blocks=config.num_res_blocks,
            attention_levels=config.attention_levels,
            num_head_channels=config.num_head_channels,
            norm_num_groups=config.norm_num_groups,
            resblock_updown=True,
            with_conditioning=False,
            num_class_embeds=n_conditions + 1,
        )

    def forward(self, stack_BFXYZ: Tensor, time_B: Tensor, labels_BA: Tensor) -> Tensor:
        """Predict the objective's target; see ``HybridDiT.forward``."""
        answer_BFXYZ = self.unet(stack_BFXYZ, timesteps=time_B, class_labels=labels_BA[:, 0].long())
        return answer_BFXYZ if self.brain_XYZ is None else answer_BFXYZ * self.brain_XYZ
