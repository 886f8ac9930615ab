"""The trivial tokenizer: mean pooling and trilinear upsampling."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fmrisynth.config.tokenize import PoolingConfig
from fmrisynth.models.tokenizers.base import Tokenizer, TokenizerInfo


class PoolingTokenizer(Tokenizer):
    """Mean of the brain voxels of each 4 x 4 x 4 patch; trilinear interpolation back. One channel."""

    kind = "pooling"

    def __init__(self, config: PoolingConfig, info: TokenizerInfo) -> None:
        super().__init__(config, info)
        weight = functional.avg_pool3d(self.brain_XYZ[None, None], info.downsampling)
        self.register_buffer("weight_xyz", weight, persistent=False)
        self.weight_xyz: Tensor

    def encode_masked(self, frames_NCXYZ: Tensor) -> Tensor:
        """Mean over the brain voxels of each patch."""
        total = functional.avg_pool3d(frames_NCXYZ, self.info.downsampling)
        return total / self.weight_xyz.clamp(min=1e-6)

    def decode_unmasked(self, latents_NCxyz: Tensor) -> Tensor:
        """Trilinear interpolation between cell centres; cells without brain take no part."""
        present = (self.weight_xyz > 0).to(latents_NCxyz)
        size = [side * self.info.downsampling for side in latents_NCxyz.shape[2:]]
        values = functional.interpolate(latents_NCxyz * present, size=size, mode="trilinear", align_corners=False)
        weight = functional.interpolate(present, size=size, mode="trilinear", align_corners=False)
        return values / weight.clamp(min=1e-6)
