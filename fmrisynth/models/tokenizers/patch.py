"""Linear patch transform: a local Karhunen-Loeve transform with overlapping synthesis.

Every 4 x 4 x 4 patch of a volume becomes its C leading components. Two things set it apart from plain PCA
of the patches:

*What is kept.* Thermal noise is most of the variance of a frame of percent signal change, and it is
independent between frames. The covariance between *different frames of a block* (neighbours, or the means of the even
and of the odd frames) therefore holds what lasts, which a task response does, and not the noise. Each position has its
own covariance, shrunk towards the one shared by all positions (weight `prior_blocks`), so the components follow the
cortex.

*How it is decoded.* A voxel is estimated from the latents of its own cell and of the 26 around it: the
transpose of the analysis plus a ridge regression of what it leaves. This softens block edges. The regression
is one for all positions (`synthesis: overlap`, 81 x 64 numbers) or one for each (`local`).

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
from fmrisynth.models.tokenizers.base import Tokenizer, TokenizerInfo

SIDE = 4
"""Of a patch, voxels."""

N_PATCH = SIDE**3

ROWS_AT_A_TIME = 64
"""Rows whose products are summed in one matrix product."""

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
        if config.synthesis != "patch":
            self.register_buffer("neighbours_KM", _neighbours(info.latent_grid, cells_K), persistent=False)
            lead = () if config.synthesis == "overlap" else (n_cells,)
            shape = (*lead, 27 * config.channels, N_PATCH)
            self.register_buffer("correction_JP", torch.zeros(shape, dtype=dtype))
            self.neighbours_KM: Tensor
            self.correction_JP: Tensor

    def encode_masked(self, frames_NCXYZ: Tensor) -> Tensor:
        """Project every patch on its basis."""
        return self._spread(self._analyse(self._patches(frames_NCXYZ)))

    def decode_unmasked(self, latents_NCxyz: Tensor) -> Tensor:
        """Patches from latents, by the overlapping synthesis or by the transpose of the analysis."""
        latents_NKC = rearrange(latents_NCxyz, "n c x y z -> n (x y z) c")[:, self.cells_K].float()
        patches_NKP = self._transpose(latents_NKC) + self.centre_KP.float()
        if self.config.synthesis != "patch":
            kernel = "jp" if self.config.synthesis == "overlap" else "kjp"
            around_NKJ = self._around(latents_NKC)
            patches_NKP = patches_NKP + torch.einsum(f"nkj,{kernel}->nkp", around_NKJ, self.correction_JP.float())
        x, y, z = self.info.latent_grid
        whole = patches_NKP.new_zeros(len(patches_NKP), x * y * z, N_PATCH)
        whole[:, self.cells_K] = patches_NKP
        return rearrange(
            whole, "n (x y z) (a b c) -> n 1 (x a) (y b) (z c)",
            x=x, y=y, z=z, a=SIDE, b=SIDE, c=SIDE,
        )  # fmt: skip

    def fit_blocks(self, blocks: BlockFrames) -> None:
        """Fit basis and synthesis to blocks of consecutive frames, in two or three passes.

        Parameters
        ----------
        blocks : callable
            Returns an iterator over the fitting blocks, tensors (T, 1, X, Y, Z); called once per pass.
        """
        if self.info.normalisation != "dynamics":
            self.centre_KP.copy_(_mean(self._patches(b * self.brain_XYZ) for b in blocks()))
        inside_KP = self._patches(self.brain_XYZ[None, None])[0].double()
        covariance_KPP, n_blocks = self._moments(blocks, lambda rows: (rows, rows))
        self.basis_KPC.copy_(local_basis(covariance_KPP, inside_KP, n_blocks, self.config))
        if self.config.synthesis == "patch":
            return

        def around_and_residual(rows_RKP: Tensor) -> tuple[Tensor, Tensor]:
            latents_RKC = torch.einsum("rkp,kpc->rkc", rows_RKP, self.basis_KPC.float())
            around_RKJ = self._around(latents_RKC)
            residual_RKP = rows_RKP - self._transpose(latents_RKC)
            return around_RKJ, torch.cat([around_RKJ, residual_RKP], dim=2)

        if self.config.synthesis == "local":
            moments, n_blocks = self._moments(blocks, around_and_residual)
            self.correction_JP.copy_(local_correction(moments, inside_KP, n_blocks, self.config))
            return
        whole_K = inside_KP.mean(dim=1) == 1
        whole_K = whole_K if bool(whole_K.any()) else torch.ones_like(whole_K)

        def pooled(rows_RKP: Tensor) -> tuple[Tensor, Tensor]:
            around_RKJ, both_RKI = (part[:, whole_K] for part in around_and_residual(rows_RKP))
            return around_RKJ.reshape(-1, 1, around_RKJ.shape[2]), both_RKI.reshape(-1, 1, both_RKI.shape[2])

        moments, _ = self._moments(blocks, pooled)
        self.correction_JP.copy_(ridge_correction(moments, self.config)[0])

    def _moments(self, blocks: BlockFrames, vectors: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
        """Second moments per cell, (K, I, J), of two vectors made from the rows of `frame_pairs`."""
        total: Tensor | None = None
        waiting: list[tuple[Tensor, Tensor]] = []
        n_waiting = n_frames = n_blocks = 0

        def flush() -> None:
            nonlocal total, n_waiting
            first = torch.cat([pair[0] for pair in waiting])
            second = torch.cat([pair[1] for pair in waiting])
            left, right = vectors(first)[0], vectors(second)[1]
            part = left.permute(1, 2, 0) @ right.permute(1, 0, 2)
            total = part.double() if total is None else total.add_(part)
            waiting.clear()
            n_waiting = 0

        for frames in blocks():
            patches_TKP = self._patches(frames * self.brain_XYZ) - self.centre_KP.float()
            waiting.append(frame_pairs(patches_TKP, self.config.covariance))
            n_waiting += len(waiting[-1][0])
            n_frames += len(frames)
            n_blocks += 1
            if n_waiting >= ROWS_AT_A_TIME:
                flush()
        if waiting:
            flush()
        if total is None:
            raise FmrisynthError("no block could be read to fit the tokenizer to; prepare the dataset again.")
        return total / n_frames, n_blocks

    def _patches(self, frames_NCXYZ: Tensor) -> Tensor:
        """Patches of the cells that hold brain, (N, K, P)."""
        patches = rearrange(frames_NCXYZ, "n 1 (x a) (y b) (z c) -> n (x y z) (a b c)", a=SIDE, b=SIDE, c=SIDE)
        return patches[:, self.cells_K]

    def _analyse(self, patches_NKP: Tensor) -> Tensor:
        centred = patches_NKP - self.centre_KP.float()
        return torch.einsum("nkp,kpc->nkc", centred, self.basis_KPC.float())

    def _transpose(self, latents_NKC: Tensor) -> Tensor:
        """Patches from latents by the transpose of the analysis."""
        return torch.einsum("nkc,kpc->nkp", latents_NKC, self.basis_KPC.float())

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


def frame_pairs(patches_TKP: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Rows of two stacks whose products, summed, are a second moment of one block's frames.

    Parameters
    ----------
    patches_TKP : tensor of shape (T, K, P)
        One block.
    kind : {"frame", "lagged", "halves"}
        Each frame with itself; each frame with its neighbours; the mean of the even frames with the mean of
        the odd ones, both ways round.

    Returns
    -------
    first, second : tensors of shape (R, K, P)
        Scaled so that ``sum(first * second)`` is T times the moment of one frame, if all frames were equal.
    """
    n_frames = len(patches_TKP)
    if kind == "frame" or n_frames < 2:
        return patches_TKP, patches_TKP
    if kind == "lagged":
        scale = n_frames / (2 * (n_frames - 1))
        first, second = patches_TKP[1:], patches_TKP[:-1]
    else:
        scale = n_frames / 2
        first, second = patches_TKP[::2].mean(dim=0)[None], patches_TKP[1::2].mean(dim=0)[None]
    return torch.cat([first, second]) * scale, torch.cat([second, first])


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


def ridge_correction(moments: Tensor, config: PatchConfig) -> Tensor:
    """Ridge regression of what the transposed analysis leaves on the latents of the 27 cells around.

    Parameters
    ----------
    moments : tensor of shape (K, J, J + P), float64
        Second moments of the latents around a cell with themselves and with the cell's residual.
    config : PatchConfig
        Its `ridge`, in units of the mean variance of a cell's own latents.

    Returns
    -------
    tensor of shape (K, J, P), float64
    """
    n_latents = moments.shape[1]
    latent_KJJ, cross_KJP = moments[..., :n_latents], moments[..., n_latents:]
    values, vectors = torch.linalg.eigh(0.5 * (latent_KJJ + latent_KJJ.transpose(1, 2)))
    # a covariance between different frames can have negative eigenvalues by chance
    values = values.clamp(min=0)
    own = slice(13 * config.channels, 14 * config.channels)
    own_power_K = (vectors[:, own].square() * values[:, None]).sum((1, 2)) / config.channels
    scale_KJ = values + (config.ridge * own_power_K + 1e-9)[:, None]
    return vectors @ (vectors.transpose(1, 2) @ cross_KJP / scale_KJ[..., None])


def local_correction(moments: Tensor, inside_KP: Tensor, n_blocks: int, config: PatchConfig) -> Tensor:
    """`ridge_correction` per position, its moments shrunk to those shared by all cells that are whole."""
    whole_K = (inside_KP.mean(dim=1) == 1).to(moments)
    shared = torch.einsum("k,kij->ij", whole_K, moments) / whole_K.sum().clamp(min=1)
    weight = 1.0 if config.prior_blocks is None else config.prior_blocks / (config.prior_blocks + n_blocks)
    own = slice(13 * config.channels, 14 * config.channels)
    scale_K = _trace(moments[:, own, own]).clamp(min=0) / _trace(shared[own, own]).clamp(min=1e-12)
    mixed = (1 - weight) * moments + weight * scale_K[:, None, None] * shared
    return ridge_correction(mixed, config) * inside_KP[:, None]


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
