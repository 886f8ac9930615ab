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

SHRINKAGE_INSTANCES = 32.0  # weight of what is found in all cells against what is found in one, in instances
LINK_SHRINKAGES = tuple(itertools.product((16.0, 128.0, 1024.0, 8192.0, 1e6), (0.0, 128.0, 1024.0, 8192.0)))
"""Weights to choose from, for links that predict: of all cells against one, and of all frequencies against one."""
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
    """Second moments of what the modes leave, and the `Rest` that follows.

    Of each fold of subjects what is beside the modes that it had no part in finding, and at the end of all subjects what is beside the
    modes of all.

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
        self._count_K = torch.zeros(n_folds + 1, dtype=torch.float64)
        self._products_KHQJJ = torch.zeros(
            n_folds + 1, len(white.new_HP), int(self._held_XYZ.sum()), n_around, n_around
        )

    def add(self, values_BHP: Tensor, basis_PR: Tensor, k: int) -> None:
        """Add what is beside modes in a batch of a fold, or of all subjects (-1)."""
        self._count_K[k] += len(values_BHP)
        self._products_KHQJJ[k] += self._products(values_BHP - (values_BHP @ basis_PR) @ basis_PR.T)

    def add_up(self, add_up: Callable[[Tensor], object]) -> None:
        """Sum over ranks."""
        add_up(self._count_K)
        add_up(self._products_KHQJJ)

    def taken(self, rest: Rest, basis_PR: Tensor) -> Tensor:
        """Products (H, Q, J, J) that the values of a `Rest` lose when their modes are taken away.

        With S the covariance of the values and B the basis, S - (1 - BB') S (1 - BB') = B D' + D B', where D = SB - BB'SB / 2.
        """
        before_RHP = rest.before(basis_PR)
        basis_RHP = basis_PR.T[:, None].expand_as(before_RHP)
        along_HRR = torch.einsum("rhp,shp->hrs", before_RHP, before_RHP)
        other_RHP = rest.blend(before_RHP) - torch.einsum("pr,hrs->shp", basis_PR, along_HRR) / 2
        lost_HQJJ = (self._products(basis_RHP + other_RHP) - self._products(basis_RHP - other_RHP)) / 2
        lost_HQJJ.diagonal(dim1=2, dim2=3).clamp_(min=0)
        return lost_HQJJ

    def cross_fitted(self, taken_HQJJ: Tensor | float = 0.0, *, without: int) -> Rest:
        """Links from all folds but one, shrunk as is best for predicting others, and what is new beside them in those others."""
        folds = [k for k in range(len(self._count_K) - 1) if self._count_K[k] > 0 and k != without]
        unit_HQJ = self._std(folds, taken_HQJJ)
        halves = [self._local(half, taken_HQJJ, unit_HQJ) for half in (folds[::2], folds[1::2])]
        return self._rest(*_links(self._local(folds, taken_HQJJ, unit_HQJ), halves), unit_HQJ)

    def sample(self, taken_HQJJ: Tensor | float = 0.0) -> Rest:
        """Links, and what is new beside them, as they are in all subjects."""
        unit_HQJ = self._std([-1], taken_HQJJ)
        local = self._local([-1], taken_HQJJ, unit_HQJ)
        link_HQACD = local.links(SHRINKAGE_INSTANCES, 0.0)
        return self._rest(link_HQACD, local.left_over(link_HQACD), unit_HQJ)

    def _products(self, values_BHP: Tensor) -> Tensor:
        return local_products(self._white.on_grid(values_BHP), self._held_XYZ)

    def _mean(self, folds: Sequence[int], taken_HQJJ: Tensor | float) -> Tensor:
        """What is beside the modes, with what they have taken put back, as in factor analysis."""
        return self._products_KHQJJ[folds].sum(0) / self._count_K[folds].sum().clamp_min(1) + taken_HQJJ

    def _std(self, folds: Sequence[int], taken_HQJJ: Tensor | float) -> Tensor:
        """Standard deviations (H, Q, J), or 1."""
        std_HQJ = self._mean(folds, taken_HQJJ).diagonal(dim1=2, dim2=3).clamp_min(0).sqrt()
        return torch.where(std_HQJ > 0, std_HQJ, 1.0)

    def _local(self, folds: Sequence[int], taken_HQJJ: Tensor | float, unit_HQJ: Tensor) -> _Local:
        correlation_HQJJ = self._mean(folds, taken_HQJJ) / unit_HQJ[..., None] / unit_HQJ[..., None, :]
        return _Local(correlation_HQJJ.double(), float(self._count_K[folds].sum()), len(self._white.varying_CXYZ))

    def _rest(self, link_HQACD: Tensor, left_HQC: Tensor, unit_HQJ: Tensor) -> Rest:
        """Links and variances of what is new, on the grid and in the units of the values."""
        unit_HQAD = unit_HQJ.unflatten(-1, (len(OFFSETS), -1))
        link_HQACD = link_HQACD.float() * unit_HQAD[:, :, -1:, :, None] / unit_HQAD[:, :, :, None]
        link_HACDXYZ = torch.zeros_like(self._white.link_HACDXYZ)
        link_HACDXYZ[..., self._held_XYZ] = link_HQACD.movedim(1, -1)
        new_HQC = (left_HQC.clamp_min(0).sqrt().float() * unit_HQAD[:, :, -1]).clamp_min(LEAST_NEW)
        new_HCXYZ = torch.zeros(len(unit_HQJ), *self._white.varying_CXYZ.shape)
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
