"""Estimating what the modes of a `Prior` leave: how much of it each element has at each frequency, and links between neighbours.

Axis legend: K folds of subjects, B batch, H temporal frequencies (`data.cosines`), C D channels, X Y Z latent grid, P the elements of a
frame that vary, R modes, A offsets, Q cells with a varying channel, J = A*D the channels of a cell and of those before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fmrisynth.diffusion.neighbours import OFFSETS, blend, blend_transposed, local_products, regress, separate

LINK_SHRINKAGES = tuple(itertools.product((16.0, 128.0, 1024.0, 8192.0, 1e6), (0.0, 128.0, 1024.0, 8192.0)))
"""Weights to choose from, for links: of all cells against one, and of all frequencies against one."""
LEAST_NEW = 0.01  # standard deviation of what is new in an element
BATCH = 16  # maps in one call


@dataclass(frozen=True)
class Rest:
    """What the modes leave, as a map from white noise: what is new in each element, then links between neighbours.

    Attributes
    ----------
    varying_CXYZ : bool Tensor
        Where the elements lie.
    new_HP : Tensor
        Standard deviations.
    link_HACDXYZ : Tensor
    """

    varying_CXYZ: Tensor
    new_HP: Tensor
    link_HACDXYZ: Tensor

    @classmethod
    def white(cls, varying_CXYZ: Tensor, n_frequencies: int) -> Rest:
        """Noise as large everywhere."""
        n_channels, *grid = varying_CXYZ.shape
        link_HACDXYZ = torch.zeros(n_frequencies, len(OFFSETS), n_channels, n_channels, *grid)
        return cls(varying_CXYZ, torch.ones(n_frequencies, int(varying_CXYZ.sum())), link_HACDXYZ)

    def separate(self, values_BHP: Tensor) -> Tensor:
        """What is new in values."""
        return separate(self.on_grid(values_BHP), self.link_HACDXYZ)[:, :, self.varying_CXYZ]

    def blend(self, white_BHP: Tensor) -> Tensor:
        """Values of white noise."""
        parts = (blend(self.on_grid(self.new_HP * part), self.link_HACDXYZ) for part in white_BHP.split(BATCH))
        return torch.cat([part[:, :, self.varying_CXYZ] for part in parts])

    def before(self, basis_PR: Tensor) -> Tensor:
        """Of which sums (R, H, P) of white noise the values along a basis are."""
        modes_RHP = basis_PR.T[:, None].expand(-1, len(self.new_HP), -1)
        parts = (blend_transposed(self.on_grid(part), self.link_HACDXYZ) for part in modes_RHP.split(BATCH))
        return self.new_HP * torch.cat([part[:, :, self.varying_CXYZ] for part in parts])

    def on_grid(self, values_BHP: Tensor) -> Tensor:
        """Values of the varying elements with zeros for the others, (B, H, C, X, Y, Z)."""
        grid_BHCXYZ = values_BHP.new_zeros(*values_BHP.shape[:2], *self.varying_CXYZ.shape)
        grid_BHCXYZ[:, :, self.varying_CXYZ] = values_BHP
        return grid_BHCXYZ


class RestMoments:
    """Second moments of what the modes leave of subjects who had no part in finding them, and the `Rest` that follows.

    Parameters
    ----------
    white : Rest
        Where there are elements.
    n_folds : int
        Groups of subjects.
    """

    def __init__(self, white: Rest, n_folds: int) -> None:
        self._white = white
        self._held_XYZ = white.varying_CXYZ.any(0)
        n_around = len(OFFSETS) * len(white.varying_CXYZ)
        self._count_K = torch.zeros(n_folds, dtype=torch.float64)
        self._products_KHQJJ = torch.zeros(n_folds, len(white.new_HP), int(self._held_XYZ.sum()), n_around, n_around)

    def add(self, beside_BHP: Tensor, fold: int) -> None:
        """Add a batch of values without their modes."""
        self._count_K[fold] += len(beside_BHP)
        self._products_KHQJJ[fold] += local_products(self._white.on_grid(beside_BHP), self._held_XYZ)

    def add_up(self, add_up: Callable[[Tensor], object]) -> None:
        """Sum over ranks."""
        add_up(self._count_K)
        add_up(self._products_KHQJJ)

    def rest(self, taken_RHP: Tensor, without: int | None = None) -> Rest:
        """Fit links, and what is new beside them, to all folds or all but one.

        Values beside modes lack what the modes have taken. That is put back, as in factor analysis: ``taken_RHP`` has the covariance, sum
        over R, that the rest has along the modes.
        """
        folds = [k for k in range(len(self._count_K)) if self._count_K[k] > 0 and k != without]
        taken_HQJJ = local_products(self._white.on_grid(taken_RHP), self._held_XYZ)
        both_HQJJ = self._products_KHQJJ[folds].sum(0) / self._count_K[folds].sum().clamp_min(1) + taken_HQJJ
        std_HQJ = both_HQJJ.diagonal(dim1=2, dim2=3).sqrt()
        unit_HQJ = torch.where(std_HQJ > 0, std_HQJ, 1.0)
        n_channels = len(self._white.varying_CXYZ)

        def local(folds: Sequence[int]) -> _Local:
            count = float(self._count_K[folds].sum())
            products_HQJJ = self._products_KHQJJ[folds].sum(0) / max(1.0, count) + taken_HQJJ
            correlation_HQJJ = products_HQJJ / unit_HQJ[..., None] / unit_HQJ[..., None, :]
            return _Local(correlation_HQJJ.double(), count, n_channels)

        link_HQACD, left_HQC = _links(local(folds), [local(folds[::2]), local(folds[1::2])])
        unit_HQAD = unit_HQJ.unflatten(-1, (-1, n_channels))
        link_HACDXYZ = torch.zeros_like(self._white.link_HACDXYZ)
        link_HQACD = link_HQACD.float() * unit_HQAD[:, :, -1:, :, None] / unit_HQAD[:, :, :, None]
        link_HACDXYZ[..., self._held_XYZ] = link_HQACD.movedim(1, -1)
        new_HCXYZ = torch.zeros(len(unit_HQAD), *self._white.varying_CXYZ.shape)
        new_HQC = (left_HQC.sqrt().float() * unit_HQAD[:, :, -1]).clamp_min(LEAST_NEW)
        new_HCXYZ[..., self._held_XYZ] = new_HQC.transpose(1, 2)
        return replace(self._white, new_HP=new_HCXYZ[:, self._white.varying_CXYZ], link_HACDXYZ=link_HACDXYZ)


@dataclass(frozen=True)
class _Local:
    """Local products per instance, of so many instances."""

    products_HQJJ: Tensor
    n_instances: float
    n_channels: int

    def links(self, of_cells: float, of_frequencies: float) -> Tensor:
        """Links (H, Q, A, C, D), after shrinkage towards all cells that have the elements, and all frequencies but the constant."""
        exists_QJ = (self.products_HQJJ.diagonal(dim1=2, dim2=3).sum(0) > 0).to(self.products_HQJJ)
        exist_QJJ = exists_QJ[:, :, None] * exists_QJ[:, None]
        cells_H1JJ = self.products_HQJJ.sum(1, keepdim=True) / exist_QJJ.sum(0).clamp_min(1)
        changing_QJJ = self.products_HQJJ[min(1, len(self.products_HQJJ) - 1) :].mean(0)
        total_HQJJ = self.n_instances * self.products_HQJJ
        total_HQJJ += of_cells * exist_QJJ * cells_H1JJ + of_frequencies * changing_QJJ
        return regress(total_HQJJ / (self.n_instances + of_cells + of_frequencies), self.n_channels)

    def left_over(self, link_HQACD: Tensor) -> Tensor:
        """Variance of what is new in every element, (H, Q, C)."""
        link_HQCJ = link_HQACD.transpose(2, 3).flatten(3)
        new_HQCJ = torch.eye(link_HQCJ.shape[-1])[-self.n_channels :].to(link_HQCJ) - link_HQCJ
        return torch.einsum("hqcj,hqjk,hqck->hqc", new_HQCJ, self.products_HQJJ, new_HQCJ)


def _links(both: _Local, halves: Sequence[_Local]) -> tuple[Tensor, Tensor]:
    """Links (H, Q, A, C, D), shrunk at each frequency as is best for predicting each half of the subjects from the other, and what is left."""
    n_frequencies, n_cells = both.products_HQJJ.shape[:2]
    link_HQACD = torch.zeros(
        n_frequencies, n_cells, len(OFFSETS), both.n_channels, both.n_channels, dtype=torch.float64
    )
    crossed_HQC = both.left_over(link_HQACD)
    if min(half.n_instances for half in halves) == 0:
        return link_HQACD, crossed_HQC
    share_S = torch.tensor([half.n_instances / both.n_instances for half in halves], dtype=torch.float64)
    for weights in LINK_SHRINKAGES:
        left_SHQC = torch.stack([one.left_over(other.links(*weights)) for one, other in itertools.permutations(halves)])
        left_HQC = torch.einsum("s,shqc->hqc", share_S, left_SHQC)
        better_H = left_HQC.sum((1, 2)) < crossed_HQC.sum((1, 2))
        if better_H.any():
            link_HQACD[better_H] = both.links(*weights)[better_H]
            crossed_HQC[better_H] = left_HQC[better_H]
    return link_HQACD, crossed_HQC
