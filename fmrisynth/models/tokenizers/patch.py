"""Linear patch transform: a local Karhunen-Loeve transform with overlapping synthesis.

Every 4 x 4 x 4 patch of a volume becomes its C leading components. Two things set it apart from plain PCA
of the patches:

*What is kept.* Thermal noise is most of the variance of a frame of percent signal change, and it is
independent between frames. The covariance between *different frames of a block* therefore holds what lasts,
which a task response does, and not the noise. Each position has its own covariance, shrunk towards the one
shared by all positions (weight `prior_blocks`), so the components follow the cortex.

*How it is decoded.* A voxel is estimated from the latents of its own cell and of the 26 around it by ridge
regression that shrinks towards the transpose of the analysis. This removes block edges.

The components of a position are only fixed up to a rotation; the one nearest to the shared basis is taken
(orthogonal Procrustes), so a channel means the same everywhere and latents are smooth in space, which the
convolutions of a generator need.

Axis legend: N volumes, K cells that hold brain, P = 64 voxels of a patch, C channels, J = 27 C neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from torch import Tensor

from fmrisynth.config.tokenize import PatchConfig
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers.base import DOWNSAMPLING, Tokenizer, TokenizerInfo

N_PATCH = DOWNSAMPLING**3

BlockFrames = Callable[[], Iterable[Tensor]]
"""Gives, each time it is called, the fitting blocks as tensors (T, 1, X, Y, Z) of normalised volumes."""


class PatchTokenizer(Tokenizer):
    """Position-wise linear transform of patches; see the module's text."""

    kind = "patch"

    def __init__(self, config: PatchConfig, info: TokenizerInfo) -> None:
        super().__init__(config, info)
        self.config: PatchConfig = config
        cells_K = torch.nonzero(info.latent_mask_xyz.flatten(), as_tuple=True)[0]
        n_cells, dtype = len(cells_K), getattr(torch, config.storage)
        self.register_buffer("cells_K", cells_K, persistent=False)
        self.register_buffer("basis_KPC", torch.zeros(n_cells, N_PATCH, config.channels, dtype=dtype))
        self.register_buffer("centre_KP", torch.zeros(n_cells, N_PATCH, dtype=dtype))
        self.cells_K: Tensor
        self.basis_KPC: Tensor
        self.centre_KP: Tensor
        if config.synthesis == "overlap":
            self.register_buffer("neighbours_KM", _neighbours(info.latent_grid, cells_K), persistent=False)
            self.register_buffer("synthesis_KJP", torch.zeros(n_cells, 27 * config.channels, N_PATCH, dtype=dtype))
            self.neighbours_KM: Tensor
            self.synthesis_KJP: Tensor

    def encode_masked(self, frames_NCXYZ: Tensor) -> Tensor:
        """Project every patch on its basis."""
        return self._spread(self._analyse(self._patches(frames_NCXYZ)))

    def decode_unmasked(self, latents_NCxyz: Tensor) -> Tensor:
        """Patches from latents, by the overlapping synthesis or by the transpose of the analysis."""
        latents_NKC = rearrange(latents_NCxyz, "n c x y z -> n (x y z) c")[:, self.cells_K].float()
        if self.config.synthesis == "overlap":
            around_NKJ = self._around(latents_NKC)
            patches_NKP = torch.einsum("nkj,kjp->nkp", around_NKJ, self.synthesis_KJP.float())
        else:
            patches_NKP = torch.einsum("nkc,kpc->nkp", latents_NKC, self.basis_KPC.float())
        patches_NKP = patches_NKP + self.centre_KP.float()
        x, y, z = self.info.latent_grid
        whole = patches_NKP.new_zeros(len(patches_NKP), x * y * z, N_PATCH)
        whole[:, self.cells_K] = patches_NKP
        return rearrange(
            whole, "n (x y z) (a b c) -> n 1 (x a) (y b) (z c)",
            x=x, y=y, z=z, a=DOWNSAMPLING, b=DOWNSAMPLING, c=DOWNSAMPLING,
        )  # fmt: skip

    def fit_blocks(self, blocks: BlockFrames) -> None:
        """Fit basis and synthesis to blocks of consecutive frames, in two or three passes.

        Parameters
        ----------
        blocks : callable
            Returns an iterator over the fitting blocks, tensors (T, 1, X, Y, Z); called once per pass.
        """
        if self.info.normalisation == "global":
            self.centre_KP.copy_(_mean(self._patches(b * self.brain_XYZ) for b in blocks()))
        covariance_KPP, n_blocks = self._covariance(blocks, lambda patches_TKP: (patches_TKP, patches_TKP))
        inside_KP = self._patches(self.brain_XYZ[None, None])[0].double()
        self.basis_KPC.copy_(local_basis(covariance_KPP, inside_KP, n_blocks, self.config))
        if self.config.synthesis == "overlap":
            self._fit_synthesis(blocks)

    def _fit_synthesis(self, blocks: BlockFrames) -> None:
        """Ridge regression of a cell's voxels on the latents around it."""

        def pair(patches_TKP: Tensor) -> tuple[Tensor, Tensor]:
            around_TKJ = self._around(torch.einsum("tkp,kpc->tkc", patches_TKP, self.basis_KPC.float()))
            return around_TKJ, torch.cat([around_TKJ, patches_TKP], dim=2)

        moments, n_blocks = self._covariance(blocks, pair)
        inside_KP = self._patches(self.brain_XYZ[None, None])[0].double()
        self.synthesis_KJP.copy_(
            overlapping_synthesis(moments, self.basis_KPC.double(), inside_KP, n_blocks, self.config)
        )

    def _covariance(
        self, blocks: BlockFrames, pair: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, int]:
        """Second moments of two vectors per cell, over the pairs of frames that the configuration names."""
        total: Tensor | None = None
        n_frames = n_blocks = 0
        for frames in blocks():
            left, right = pair(self._patches(frames * self.brain_XYZ) - self.centre_KP.float())
            moments = frame_moments(left, right, self.config.covariance).double()
            total = moments if total is None else total.add_(moments)
            n_frames += len(frames)
            n_blocks += 1
        if total is None:
            raise FmrisynthError("no block could be read to fit the tokenizer to; prepare the dataset again.")
        return total / n_frames, n_blocks

    def _patches(self, frames_NCXYZ: Tensor) -> Tensor:
        """Patches of the cells that hold brain, (N, K, P)."""
        patches = rearrange(
            frames_NCXYZ, "n 1 (x a) (y b) (z c) -> n (x y z) (a b c)", a=DOWNSAMPLING, b=DOWNSAMPLING, c=DOWNSAMPLING
        )
        return patches[:, self.cells_K]

    def _analyse(self, patches_NKP: Tensor) -> Tensor:
        centred = patches_NKP - self.centre_KP.float()
        return torch.einsum("nkp,kpc->nkc", centred, self.basis_KPC.float())

    def _spread(self, latents_NKC: Tensor) -> Tensor:
        """Latents of the brain's cells as a volume with zeros elsewhere."""
        x, y, z = self.info.latent_grid
        whole = latents_NKC.new_zeros(len(latents_NKC), x * y * z, latents_NKC.shape[2])
        whole[:, self.cells_K] = latents_NKC
        return rearrange(whole, "n (x y z) c -> n c x y z", x=x, y=y, z=z)

    def _around(self, latents_NKC: Tensor) -> Tensor:
        """Latents of the 3 x 3 x 3 cells around each cell, zeros where there is no brain, (N, K, J)."""
        padded = torch.cat([latents_NKC, latents_NKC.new_zeros(len(latents_NKC), 1, latents_NKC.shape[2])], dim=1)
        return padded[:, self.neighbours_KM].flatten(2)


def frame_moments(left_TKI: Tensor, right_TKJ: Tensor, kind: str) -> Tensor:
    """Sum of products over frames of one block, per cell, on the scale of one product per frame.

    Parameters
    ----------
    left_TKI, right_TKJ : tensor of shape (T, K, I) and (T, K, J)
        Vectors per frame and cell.
    kind : {"frame", "lagged", "block"}
        Equal frames; successive frames, both ways round; all pairs of different frames.

    Returns
    -------
    tensor of shape (K, I, J)
    """
    left, right = left_TKI.permute(1, 2, 0), right_TKJ.permute(1, 0, 2)
    n_frames = left.shape[2]
    if kind == "frame" or n_frames < 2:
        return left @ right
    if kind == "lagged":
        both = left[:, :, 1:] @ right[:, :-1] + left[:, :, :-1] @ right[:, 1:]
        return both * (n_frames / (2 * (n_frames - 1)))
    pairs = left.sum(dim=2, keepdim=True) @ right.sum(dim=1, keepdim=True) - left @ right
    return pairs / (n_frames - 1)


def local_basis(covariance_KPP: Tensor, inside_KP: Tensor, n_blocks: int, config: PatchConfig) -> Tensor:
    """Leading components per position, turned to the shared basis.

    Parameters
    ----------
    covariance_KPP : tensor of shape (K, P, P), float64
        Second moments per position.
    inside_KP : tensor of shape (K, P), float64
        1 for brain voxels.
    n_blocks : int
        Blocks behind each covariance.
    config : PatchConfig
        Number of components, weight of the shared covariance.

    Returns
    -------
    tensor of shape (K, P, C), float64
        Orthonormal columns that are 0 outside the brain.
    """
    covariance_KPP = 0.5 * (covariance_KPP + covariance_KPP.transpose(1, 2))
    pairs_PP = inside_KP.T @ inside_KP
    shared_PP = covariance_KPP.sum(dim=0) / pairs_PP.clamp(min=1)
    shared_PC = _leading(shared_PP[None], config.channels)[0]
    shared_KPC = shared_PC * inside_KP[..., None]
    if config.prior_blocks is None:
        return shared_KPC
    both_KPP = shared_PP * inside_KP[:, :, None] * inside_KP[:, None, :]
    scale_K = _trace(covariance_KPP).clamp(min=0) / _trace(both_KPP).clamp(min=1e-12)
    weight = config.prior_blocks / (config.prior_blocks + n_blocks)
    mixed_KPP = (1 - weight) * covariance_KPP + weight * scale_K[:, None, None] * both_KPP
    basis_KPC = _leading(mixed_KPP, config.channels) * inside_KP[..., None]
    u, _, vh = torch.linalg.svd(basis_KPC.transpose(1, 2) @ shared_KPC)
    return basis_KPC @ (u @ vh)


def overlapping_synthesis(
    moments: Tensor, basis_KPC: Tensor, inside_KP: Tensor, n_blocks: int, config: PatchConfig
) -> Tensor:
    """Ridge regression of a cell's voxels on the latents of its 27 cells, shrunk to the transposed analysis.

    Parameters
    ----------
    moments : tensor of shape (K, J, J + P), float64
        Second moments of the latents around a cell with themselves and with the cell's voxels.
    basis_KPC : tensor of shape (K, P, C), float64
        The analysis.
    inside_KP : tensor of shape (K, P), float64
        1 for brain voxels.
    n_blocks : int
        Blocks behind each moment.
    config : PatchConfig
        Ridge and weight of the moments shared by all positions.

    Returns
    -------
    tensor of shape (K, J, P), float64
    """
    n_latents = moments.shape[1]
    latent_KJJ, cross_KJP = moments[..., :n_latents], moments[..., n_latents:]
    latent_KJJ = 0.5 * (latent_KJJ + latent_KJJ.transpose(1, 2))
    own = slice(13 * config.channels, 14 * config.channels)
    start_KJP = torch.zeros_like(cross_KJP)
    start_KJP[:, own] = basis_KPC.transpose(1, 2)
    if config.prior_blocks is None:
        weight = 1.0
    else:
        weight = config.prior_blocks / (config.prior_blocks + n_blocks)
    whole_K = (inside_KP.mean(dim=1) == 1).double()
    shared_JJ = torch.einsum("k,kij->ij", whole_K, latent_KJJ) / whole_K.sum().clamp(min=1)
    shared_JP = torch.einsum("k,kjp->jp", whole_K, cross_KJP) / whole_K.sum().clamp(min=1)
    own_K = _trace(latent_KJJ[:, own, own]).clamp(min=0)
    scale_K = (own_K / _trace(shared_JJ[own, own]).clamp(min=1e-12))[:, None, None]
    mixed_KJJ = (1 - weight) * latent_KJJ + weight * scale_K * shared_JJ
    mixed_KJP = (1 - weight) * cross_KJP + weight * scale_K * shared_JP
    values, vectors = torch.linalg.eigh(mixed_KJJ)
    # a covariance between different frames can have negative eigenvalues by chance
    mixed_KJJ = (vectors * values.clamp(min=0)[:, None]) @ vectors.transpose(1, 2)
    ridge_K = config.ridge * own_K / config.channels
    system = mixed_KJJ + (ridge_K + 1e-9)[:, None, None] * torch.eye(n_latents, dtype=torch.float64)
    change_KJP = torch.linalg.solve(system, mixed_KJP - mixed_KJJ @ start_KJP)
    return (start_KJP + change_KJP) * inside_KP[:, None]


def _leading(covariance_KPP: Tensor, n: int) -> Tensor:
    """Eigenvectors of the n largest eigenvalues, largest first, with the sign that makes their sum positive."""
    vectors = torch.linalg.eigh(covariance_KPP).eigenvectors[..., -n:].flip(-1)
    total = vectors.sum(dim=-2, keepdim=True)
    return vectors * torch.where(total < 0, -1.0, 1.0)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _mean(parts: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    n = 0
    for part in parts:
        added = part.double().sum(dim=0)
        total = added if total is None else total + added
        n += len(part)
    if total is None:
        raise FmrisynthError("no block could be read to fit the tokenizer to; prepare the dataset again.")
    return total / n


def _neighbours(latent_grid: tuple[int, int, int], cells_K: Tensor) -> Tensor:
    """Index among the brain's cells of each cell's 3 x 3 x 3 surroundings; K where there is none."""
    n_cells = len(cells_K)
    index = torch.full([side + 2 for side in latent_grid], n_cells, dtype=torch.long)
    inner = torch.full((latent_grid[0] * latent_grid[1] * latent_grid[2],), n_cells, dtype=torch.long)
    inner[cells_K] = torch.arange(n_cells)
    index[1:-1, 1:-1, 1:-1] = inner.view(latent_grid)
    around = index.unfold(0, 3, 1).unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).flatten(0, 2)
    return around[cells_K]
