"""The hybrid CNN-Transformer denoiser of the paper (Fig. 4a), read top to bottom.

Convolutional residual blocks with FiLM at the finest grid, transformer blocks with AdaLN-Zero and
cross-attention below, joined in a U-shaped hierarchy with concatenated skips. It
reproduces the paper's published parameter counts: 2300 w^2 + 2951 w + 36 at base_ch w, 36 channels and
seven conditions.

Axis legend: B batch, F = C*T channels (latent channels times frames), X Y Z latent grid, A attributes,
D width of a level, E conditioning width (4 w by default), M context tokens, N tokens; for models of runs: S frames before and in a window,
K conditions, G channels of the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmrisynth.config.train import EventTelling, HybridConfig
from fmrisynth.models.blocks import (
    Conv1x1,
    Conv3x3,
    FilmConvBlock,
    LinearSkip,
    TransformerBlock,
    group_norm,
    sincos_positions,
    zero_init,
)
from fmrisynth.models.conditions import ConditionEmbedding, EventEmbedding
from fmrisynth.models.response import EventResponse
from fmrisynth.models.whitening import Whitening


class Stage(nn.Module):
    """A run of blocks of one kind at one level; transformer stages work on position-coded tokens."""

    kept_N: Tensor | None

    def __init__(
        self, kind: str, n_blocks: int, width: int, config: HybridConfig, brain_XYZ: Tensor | None = None
    ) -> None:
        super().__init__()
        cond_width = config.conditioning_width
        kept_N = None if brain_XYZ is None else brain_XYZ.flatten().nonzero()[:, 0]
        self.register_buffer("kept_N", kept_N, persistent=False)
        self.is_transformer = kind == "transformer"
        self.checkpoint = config.checkpoint_activations
        if self.is_transformer:
            self.blocks = nn.ModuleList(
                TransformerBlock(
                    width,
                    cond_width,
                    config.heads,
                    adaln=config.adaln,
                    cross_attention=config.cross_attention,
                    mlp_ratio=config.mlp_ratio,
                )
                for _ in range(n_blocks)
            )
        else:
            self.blocks = nn.ModuleList(FilmConvBlock(width, cond_width) for _ in range(n_blocks))

    def forward(self, x_BDXYZ: Tensor, cond_BE: Tensor, context_BME: Tensor | None) -> Tensor:
        if not self.is_transformer:
            for block in self.blocks:
                x_BDXYZ = self._run(block, x_BDXYZ, cond_BE)
            return x_BDXYZ
        grid = x_BDXYZ.shape[2:]
        x_BND = x_BDXYZ.flatten(2).transpose(1, 2)
        x_BND = x_BND + sincos_positions(tuple(grid), x_BND.shape[2], x_BND.device).to(x_BND.dtype)
        if self.kept_N is None:
            for block in self.blocks:
                x_BND = self._run(block, x_BND, cond_BE, context_BME)
        else:
            kept_BND = x_BND[:, self.kept_N]
            for block in self.blocks:
                kept_BND = self._run(block, kept_BND, cond_BE, context_BME)
            x_BND = kept_BND.new_zeros(x_BND.shape).index_copy(1, self.kept_N, kept_BND)
        return x_BND.transpose(1, 2).unflatten(2, grid)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpoint and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class HybridDiT(nn.Module):
    """Conditional denoiser of stacked 4D latents.

    Parameters
    ----------
    config : HybridConfig
        Widths, depths and kinds of the levels.
    channels : int
        F = C*T, in and out.
    n_labels : sequence of int
        As in `ConditionEmbedding`.
    brain_XYZ : Tensor of shape (X, Y, Z), bool, optional
        Latent cells that hold brain; default all. The answer is 0 elsewhere, and transformer stages work on the tokens that
        hold brain alone.
    events : EventTelling, optional
        For models of runs: what `forward` is told of a window beside labels.
    whitening : Whitening, optional
        For models of runs, whose latents are whitened.
    """

    brain_XYZ: Tensor | None

    def __init__(
        self,
        config: HybridConfig,
        channels: int,
        n_labels: Sequence[int],
        brain_XYZ: Tensor | None = None,
        events: EventTelling | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("brain_XYZ", None if brain_XYZ is None else brain_XYZ.to(torch.bool))
        brain_of = [None if brain_XYZ is None else _coarser(brain_XYZ, level) for level in range(len(config.stages))]
        widths = [multiplier * config.base_ch for multiplier in config.width_multipliers]
        has_cross = config.cross_attention and "transformer" in config.stages
        self.condition: ConditionEmbedding | EventEmbedding
        self.response: EventResponse | None = None
        cond_width = config.conditioning_width
        if events is None:
            n_tokens = config.context_tokens if has_cross else None
            self.condition = ConditionEmbedding(config.base_ch, cond_width, n_labels, n_tokens)
        else:
            self.condition = EventEmbedding(config.base_ch, cond_width, n_labels, events, has_cross)
            n_features, frame_channels = self.condition.n_features, channels // events.window_frames
            self.response = EventResponse(widths[0], cond_width, frame_channels, n_features, events, whitening)

        self.conv_in = Conv3x3(channels, widths[0])
        self.past_in = Conv3x3(events.past_channels, widths[0]) if events is not None and events.past_channels else None
        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        self.up, self.merge, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (width, deeper) in enumerate(pairwise(widths)):
            kind = config.stages[level]
            self.encoder.append(Stage(kind, config.encoder_blocks[level], width, config, brain_of[level]))
            self.down.append(Conv1x1(width, deeper))
            self.up.append(Conv1x1(deeper, width))
            self.merge.append(Conv1x1(2 * width, width))
            self.decoder.append(Stage(kind, config.decoder_blocks[level], width, config, brain_of[level]))
        self.bottleneck = Stage(config.stages[-1], config.bottleneck_blocks, widths[-1], config, brain_of[-1])
        self.skip: LinearSkip | None = None
        if config.skip:
            self.skip = LinearSkip(channels, cond_width)
            self.mean_skip = LinearSkip(channels, cond_width)
        self.norm_out = group_norm(widths[0])
        self.conv_out = zero_init(Conv3x3(widths[0], channels))

    def forward(
        self,
        stack_BFXYZ: Tensor,
        time_B: Tensor,
        labels_BA: Tensor,
        events_BSK: Tensor | None = None,
        past_BGXYZ: Tensor | None = None,
    ) -> Tensor:
        """Predict the objective's target.

        Parameters
        ----------
        stack_BFXYZ : Tensor of shape (B, F, X, Y, Z), float32
            Noisy latents; each side divides by ``config.downsampling``.
        time_B : Tensor of shape (B,)
            Diffusion time, 0 (clean) to about 1000 (noise).
        labels_BA : Tensor of shape (B, A), int64, or float32 if there are numbers among the attributes
            Label index per attribute, ``n_labels[a]`` is "null"; standardised numbers, NaN is "null".
        events_BSK : Tensor of shape (B, S, K), float32, optional
            Models of runs: share of each frame, before and in the window, during which a condition is on.
        past_BGXYZ : Tensor of shape (B, G, X, Y, Z), float32, optional
            Models of runs: latents of the frames before the window and a channel of ones, or zeros where they are withheld.

        Returns
        -------
        Tensor of shape (B, F, X, Y, Z)
        """
        features_BSD = None
        if isinstance(self.condition, EventEmbedding):
            assert events_BSK is not None
            features_BSD = self.condition.features(labels_BA, events_BSK)
            shown_B = None if past_BGXYZ is None else past_BGXYZ[:, -1].amax(dim=(1, 2, 3))
            cond_BE, context_BME = self.condition(time_B, labels_BA, features_BSD, shown_B)
        else:
            cond_BE, context_BME = self.condition(time_B, labels_BA)
        x_BDXYZ = self.conv_in(stack_BFXYZ)  # (B, w, X, Y, Z)
        if self.past_in is not None:
            x_BDXYZ = x_BDXYZ + self.past_in(past_BGXYZ)

        skips = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            x_BDXYZ = stage(x_BDXYZ, cond_BE, context_BME)
            skips.append(x_BDXYZ)
            x_BDXYZ = down(F.avg_pool3d(x_BDXYZ, 2))  # half the grid, next width

        x_BDXYZ = self.bottleneck(x_BDXYZ, cond_BE, context_BME)

        for level in reversed(range(len(self.decoder))):
            # A 1x1x1 convolution commutes with nearest-neighbour upsampling; done first it costs an eighth.
            x_BDXYZ = F.interpolate(self.up[level](x_BDXYZ), scale_factor=2, mode="nearest")
            x_BDXYZ = self.merge[level](torch.cat([x_BDXYZ, skips.pop()], dim=1))
            x_BDXYZ = self.decoder[level](x_BDXYZ, cond_BE, context_BME)

        x_BDXYZ = F.silu(self.norm_out(x_BDXYZ))
        answer_BFXYZ = self.conv_out(x_BDXYZ)
        if self.skip is not None:
            # Normalisation over the grid takes most of the brain's mean away from the network.
            mean_BF111 = stack_BFXYZ.mean(dim=(2, 3, 4), keepdim=True)
            answer_BFXYZ = answer_BFXYZ + self.skip(stack_BFXYZ, cond_BE) + self.mean_skip(mean_BF111, cond_BE)
        if self.response is not None:
            answer_BFXYZ = answer_BFXYZ + self.response(x_BDXYZ, cond_BE, features_BSD)
        return answer_BFXYZ if self.brain_XYZ is None else answer_BFXYZ * self.brain_XYZ


def _coarser(brain_XYZ: Tensor, level: int) -> Tensor:
    """Cells of a level that hold brain; a level halves the sides of the one before."""
    return F.max_pool3d(brain_XYZ[None].float(), 2**level)[0] > 0
