"""MONAI's AutoencoderKL behind the tokenizer interface: the rival of `fmrisynth.models.tokenizers.mae` at equal latent size.

Axis legend: N volumes, C latent channels; x, y, z latent axes.
"""

from __future__ import annotations

from monai.networks.nets import AutoencoderKL
from torch import Tensor

from fmrisynth.config.tokenize import KlConfig
from fmrisynth.models.tokenizers.base import TokenizerInfo
from fmrisynth.models.tokenizers.network import NetworkTokenizer
from fmrisynth.models.tokenizers.vqgan import NORM_EPS


class KlTokenizer(NetworkTokenizer):
    """Posterior means of a variational autoencoder (Rombach et al. 2022; Pinaya et al. 2022)."""

    kind = "kl"

    def __init__(self, config: KlConfig, info: TokenizerInfo) -> None:
        super().__init__(config, info)
        self.config: KlConfig = config
        levels = (False,) * len(config.channels)
        self.network = AutoencoderKL(
            3, num_res_blocks=config.num_res_blocks, channels=config.channels, attention_levels=levels,
            latent_channels=config.latent_channels, norm_num_groups=config.norm_groups, norm_eps=NORM_EPS,
        )  # fmt: skip

    def analyse(self, frames_NCXYZ: Tensor) -> Tensor:
        """Means of the posterior; nothing is drawn."""
        return self.network.encode(frames_NCXYZ)[0]

    def synthesise(self, latents_NCxyz: Tensor) -> Tensor:
        """See `NetworkTokenizer.synthesise`."""
        return self.network.decode(latents_NCxyz)

    def forward(self, frames_NCXYZ: Tensor) -> tuple[Tensor, Tensor, None]:
        """Reconstruct from a draw of the posterior (of PyTorch's generator), with gradients.

        Parameters
        ----------
        frames_NCXYZ : tensor of shape (N, 1, X, Y, Z)
            Normalised volumes, 0 outside the brain.

        Returns
        -------
        reconstruction : tensor of shape (N, 1, X, Y, Z)
            0 outside the brain.
        regularisation : scalar tensor
            Divergence from the unit Gaussian, summed over latents, mean over volumes, times its weight.
        indices : None
            There is no codebook.
        """
        mean, std = self.network.encode(frames_NCXYZ - self.centre_XYZ)
        divergence = 0.5 * (mean.square() + std.square() - 2 * std.log() - 1).float().flatten(1).sum(dim=1).mean()
        output = self.rebuild(self.network.sampling(mean, std))
        return output * self.brain_XYZ, self.config.kl_weight * divergence, None
