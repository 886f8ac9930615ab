"""A masked autoencoder (He et al. 2022; Feichtenhofer et al. 2022): the encoder sees few patches, the decoder tells the others.

Axis legend: B batch, S the sides of an array (for flat maps T H W), N patches of the grid, M those with a valid element, K seen ones,
P elements of a patch, Q those that are predicted, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from fmrisynth.config.embed import MaeConfig
from fmrisynth.models.vit import Patches, ViT, draw_seen, gather, initialise


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder of arrays, for flat maps with time as the first axis.

    Parameters
    ----------
    config : MaeConfig
    shape : tuple of int
        Sides of the array; patches must divide them.
    valid : Tensor of the array's shape, or without its first axis where that is time, bool
        Elements that hold data; patches without any are left out everywhere.
    groups : sequence of sequence of int, optional
        Axes that share a table of positions, see `Positions`; default: time has one, place has one.

    Attributes
    ----------
    used_M : Tensor, int64
        Numbers of the patches with a valid element.
    weight_MQ : Tensor, float32
        1 for valid elements that are predicted, 0 for others.
    """

    valid: Tensor
    used_M: Tensor
    weight_MQ: Tensor

    def __init__(
        self, config: MaeConfig, shape: tuple[int, ...], valid: Tensor, groups: Sequence[Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        self.config, self.patches = config, Patches(shape, config.patch)
        self.register_buffer("valid", valid.bool())
        groups = ([0], list(range(1, len(shape)))) if groups is None else groups
        grid, n_frames, n_values = self.patches.grid, config.patch[0], prod(config.patch)
        n_predicted = len(range(0, n_frames, config.predict_every)) * n_values // n_frames
        self.encoder = ViT(grid, groups, n_values, config.width, config.depth, config.heads, config.mlp_ratio)
        width = config.decoder_width
        self.decoder = ViT(
            grid, groups, config.width, width, config.decoder_depth, config.decoder_heads, config.mlp_ratio
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.head = nn.Linear(width, n_predicted)
        initialise(self)
        nn.init.zeros_(self.head.weight)  # the first answer is the mean of a standardised frame
        weight_NP = self.patches.cut(valid.float().expand(self.patches.shape)[None])[0]
        # Without a device there is no data to look at; parameters do not depend on it.
        used_M = torch.arange(len(weight_NP)) if valid.is_meta else (weight_NP > 0).any(dim=1).nonzero()[:, 0]
        self.register_buffer("used_M", used_M, persistent=False)
        self.register_buffer("weight_MQ", self._predicted(weight_NP[used_M]), persistent=False)

    def _predicted(self, x_XP: Tensor) -> Tensor:
        """Those elements of patches that are predicted."""
        every, n_frames = self.config.predict_every, self.patches.patch[0]
        return x_XP.unflatten(-1, (n_frames, -1))[..., ::every, :].flatten(-2)

    @property
    def used(self) -> Tensor:
        """Patches with a valid element, bool, of the grid's shape."""
        flat = torch.zeros(torch.Size(self.patches.grid).numel(), dtype=torch.bool)
        flat[self.used_M.cpu()] = True
        return flat.reshape(self.patches.grid)

    def draw_seen(self, generator: torch.Generator) -> Tensor:
        """Numbers of the patches that are seen, by the settings, int64 (K,)."""
        return draw_seen(self.used, self.config.mask_ratio, generator, tube=self.config.masking == "tube")

    def forward(self, x_BS: Tensor, seen_BK: Tensor) -> Tensor:
        """Predict all used patches from the seen ones, (B, M, Q)."""
        patches_BNP = self.patches.cut(x_BS)
        tokens_BKD = self.encoder(gather(patches_BNP, seen_BK), seen_BK)[:, 1:]
        full_BND = self.mask_token.to(tokens_BKD.dtype).expand(len(x_BS), patches_BNP.shape[1], -1)
        full_BND = full_BND.scatter(1, seen_BK[..., None].expand(-1, -1, tokens_BKD.shape[-1]), tokens_BKD)
        all_BM = self.used_M.expand(len(x_BS), -1)
        return self.head(self.decoder(full_BND[:, self.used_M], all_BM)[:, 1:])

    def target(self, x_BS: Tensor) -> Tensor:
        """What `forward` should answer, (B, M, Q)."""
        return self._predicted(self.patches.cut(x_BS)[:, self.used_M])

    def loss(self, answer_BMQ: Tensor, x_BS: Tensor, seen_BK: Tensor) -> Tensor:
        """Mean squared error of each instance over the valid elements of hidden patches, (B,)."""
        hidden_BN = torch.ones(len(x_BS), torch.Size(self.patches.grid).numel(), device=x_BS.device)
        hidden_BN.scatter_(1, seen_BK, 0)
        weight_BMQ = hidden_BN[:, self.used_M, None] * self.weight_MQ
        squared_BMQ = (answer_BMQ.float() - self.target(x_BS)).square()
        return (squared_BMQ * weight_BMQ).sum((1, 2)) / weight_BMQ.sum((1, 2)).clamp_min(1)

    def tokens(self, x_BS: Tensor) -> Tensor:
        """Tokens of all used patches, nothing hidden, (B, 1 + M, D); the class token first."""
        index_BM = self.used_M.expand(len(x_BS), -1)
        return self.encoder(self.patches.cut(x_BS)[:, self.used_M], index_BM)
