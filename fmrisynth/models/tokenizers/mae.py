"""A masked autoencoder as tokenizer (BrainG3N, Van Puyvelde et al. 2026): frozen encoder, linear projection, CNN decoder.

The encoder learns to tell hidden patches of a volume from seen ones, not to rebuild voxels; what it makes of a patch that holds
brain is projected to a few channels, the latent cell. A convolutional decoder learns voxels from these alone. Patches without brain
are no tokens, and their cells are 0.

Axis legend: N volumes, C latent channels, M patches that hold brain, P voxels of a patch, D width; x, y, z latent axes.
"""

from __future__ import annotations

from math import prod

import torch
from monai.networks.nets.autoencoderkl import Decoder
from torch import Tensor, nn

from fmrisynth.config.embed import MaeConfig
from fmrisynth.config.tokenize import MaeTokenizerConfig
from fmrisynth.models.masked_autoencoder import MaskedAutoencoder
from fmrisynth.models.tokenizers.base import TokenizerInfo
from fmrisynth.models.tokenizers.network import NetworkTokenizer
from fmrisynth.models.tokenizers.vqgan import NORM_EPS
from fmrisynth.models.vit import Patches, ViT

POSITIONS = ((0, 1, 2),)
"""One table of positions for the three axes of a volume together."""


class MaeTokenizer(NetworkTokenizer):
    """Projected tokens of a masked autoencoder's encoder.

    The CNN decoder is that of MONAI's AutoencoderKL: residual blocks and self-attention on the grid of the latents, then residual
    blocks and nearest doubling, level by level. Of its decoder the paper prints "ResBlocks + attn, 4 x up 2" and the total of 43.7 M
    parameters; the widths of the defaults are ours and come to 43.5 M.

    Attributes
    ----------
    encoder : ViT
        Learned in the first phase of the fit (`masked_autoencoder`), frozen in the second.
    project, decoder : nn.Module
        Learned in the second phase.
    """

    kind = "mae"

    def __init__(self, config: MaeTokenizerConfig, info: TokenizerInfo) -> None:
        super().__init__(config, info)
        self.config: MaeTokenizerConfig = config
        self.patches = Patches(info.grid.shape, (config.downsampling,) * 3)
        used_M = info.latent_mask_xyz.flatten().nonzero()[:, 0]
        self.register_buffer("used_M", used_M, persistent=False)
        self.used_M: Tensor
        self.encoder = ViT(
            self.patches.grid, POSITIONS, config.downsampling**3, config.width, config.depth, config.heads, config.mlp_ratio
        )  # fmt: skip
        self.project = nn.Linear(config.width, config.latent_channels)
        n_levels = len(config.channels)
        self.decoder = Decoder(
            3, config.channels, config.latent_channels, 1, (config.num_res_blocks,) * n_levels, config.norm_groups, NORM_EPS,
            attention_levels=(False,) * n_levels,
        )  # fmt: skip

    def tokens(self, frames_NCXYZ: Tensor) -> Tensor:
        """What the encoder makes of the patches that hold brain of volumes less the centre, nothing hidden, (N, M, D)."""
        patches_NMP = self.patches.cut(frames_NCXYZ[:, 0])[:, self.used_M]
        return self.encoder(patches_NMP, self.used_M.expand(len(patches_NMP), -1))[:, 1:]

    def latents(self, tokens_NMD: Tensor) -> Tensor:
        """Projected tokens at their places, (N, C, x, y, z); 0 in cells without brain."""
        values_NCM = self.project(tokens_NMD).transpose(1, 2)
        whole = values_NCM.new_zeros(*values_NCM.shape[:2], prod(self.info.latent_grid))
        return whole.index_copy(2, self.used_M, values_NCM).unflatten(2, self.info.latent_grid)

    def analyse(self, frames_NCXYZ: Tensor) -> Tensor:
        """See `NetworkTokenizer.analyse`."""
        return self.latents(self.tokens(frames_NCXYZ))

    def synthesise(self, latents_NCxyz: Tensor) -> Tensor:
        """See `NetworkTokenizer.synthesise`."""
        return self.decoder(latents_NCxyz)

    def forward(self, frames_NCXYZ: Tensor) -> Tensor:
        """Reconstruct with gradients of projection and decoder; the encoder is frozen.

        Parameters
        ----------
        frames_NCXYZ : tensor of shape (N, 1, X, Y, Z)
            Normalised volumes, 0 outside the brain.

        Returns
        -------
        tensor of shape (N, 1, X, Y, Z)
            0 outside the brain.
        """
        with torch.no_grad():
            tokens_NMD = self.tokens(frames_NCXYZ - self.centre_XYZ)
        return self.rebuild(self.latents(tokens_NMD)) * self.brain_XYZ


def masked_autoencoder(tokenizer: MaeTokenizer) -> MaskedAutoencoder:
    """What the first phase of a fit trains: the tokenizer's own encoder, and a decoder that tells hidden patches."""
    config = tokenizer.config
    settings = MaeConfig(
        patch=tokenizer.patches.patch, width=config.width, depth=config.depth, heads=config.heads, decoder_width=config.width,
        decoder_depth=config.masked_depth, decoder_heads=config.heads, mlp_ratio=config.mlp_ratio, masking="uniform",
        mask_ratio=config.mask_ratio, predict_every=1,
    )  # fmt: skip
    network = MaskedAutoencoder(settings, tokenizer.info.grid.shape, tokenizer.brain_XYZ.cpu(), POSITIONS)
    network.encoder = tokenizer.encoder
    return network
