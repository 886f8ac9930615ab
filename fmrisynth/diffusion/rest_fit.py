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

from fmrisynth.diffusion.neighbours import OFFSETS, around, blend, local_products, regress, separate

SHRINKAGE_INSTANCES = 32.0  # weight of what is found in all cells against what is found in one, in instances
LINK_SHRINKAGES = tuple(itertools.product((16.0, 128.0, 1024.0, 8192.0, 1e6), (0.0, 128.0, 1024.0, 8192.0)))
"""Weights to choose from, for links: of all cells against one, and of all frequencies against one."""
LEAST_SCALE = 0.05  # of an element's standard deviation
BATCH_MODES = 16


@dataclass(frozen=True)
class Rest:
    """What the modes leave, as a map from white noise: links between neighbours, then a scale for each element and frequency.

    Attributes
    ----------
    varying_CXYZ : bool Tensor
        Where the elements lie.
    scale_HP : Tensor
    link_HACDXYZ : Tensor
    """

    varying_CXYZ: Tensor
    scale_HP: Tensor
    link_HACDXYZ: Tensor

    @classmethod
    def white(cls, varying_CXYZ: Tensor, n_frequencies: int) -> Rest:
        """Noise as large everywhere."""
        n_channels, *grid = varying_CXYZ.shape
        link_HACDXYZ = torch.zeros(n_frequencies, len(OFFSETS), n_channels, n_channels, *grid)
        return cls(varying_CXYZ, torch.ones(n_frequencies, int(varying_CXYZ.sum())), link_HACDXYZ)

    def separate(self, values_BHP: Tensor) -> Tensor:
        """White noise of values."""
        return separate(self.on_grid(values_BHP / self.scale_HP), self.link_HACDXYZ)[:, :, self.varying_CXYZ]

    def blend(self, white_BHP: Tensor) -> Tensor:
        """The inverse of `separate`, before the scale, on the grid."""
        return blend(self.on_grid(white_BHP), self.link_HACDXYZ)

    def on_grid(self, values_BHP: Tensor) -> Tensor:
        """Values of the varying elements with zeros for the others, (B, H, C, X, Y, Z)."""
        grid_BHCXYZ = values_BHP.new_zeros(*values_BHP.shape[:2], *self.varying_CXYZ.shape)
        grid_BHCXYZ[:, :, self.varying_CXYZ] = values_BHP
        return grid_BHCXYZ


class RestMoments:
    """Second moments of what the modes leave of subjects who had no part in finding them, and the `Rest` that follows.

    Parameters
    ----------
    rest : Rest
        With which the modes were found.
    """

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self._held_XYZ = rest.varying_CXYZ.any(0)
        n_frequencies, n_elements = rest.scale_HP.shape
        n_around = len(OFFSETS) * len(rest.varying_CXYZ)
        self._squares_HP = torch.zeros(n_frequencies, n_elements, dtype=torch.float64)
        self._products_SHQJJ = torch.zeros(2, n_frequencies, int(self._held_XYZ.sum()), n_around, n_around)

    def add(self, beside_BHP: Tensor, fold: int) -> None:
        """Add a batch of white values without their modes."""
        self._squares_HP += beside_BHP.square().sum(0)
        self._products_SHQJJ[fold % 2] += local_products(self._rest.blend(beside_BHP), self._held_XYZ)

    def add_up(self, add_up: Callable[[Tensor], object]) -> None:
        """Sum over ranks."""
        add_up(self._squares_HP)
        add_up(self._products_SHQJJ)

    def update(self, basis_PR: Tensor, level_H: Tensor, count_K: Tensor) -> Rest:
        """Scale and links with which what the modes leave is whiter.

        Noise beside modes is not white: it lacks what the modes have taken, which is put back, as in factor analysis.

        Parameters
        ----------
        basis_PR : Tensor
            The modes.
        level_H : Tensor
            Variance of what they leave.
        count_K : Tensor
            Instances of each fold.
        """
        count = count_K.sum()
        squares_HP = self._squares_HP / count + level_H[:, None] * basis_PR.square().sum(1)
        shared_H1 = squares_HP.mean(1, keepdim=True)
        squares_HP = (count * squares_HP + SHRINKAGE_INSTANCES * shared_H1) / (count + SHRINKAGE_INSTANCES)
        scale_HP = (self._rest.scale_HP * squares_HP.sqrt().float()).clamp_min(LEAST_SCALE)

        taken_HQJJ = self._of_modes(basis_PR, level_H)
        both_HQJJ = self._products_SHQJJ.sum(0) / count + taken_HQJJ
        std_HQJ = both_HQJJ.diagonal(dim1=2, dim2=3).sqrt()
        unit_HQJ = torch.where(std_HQJ > 0, std_HQJ, 1.0)
        n_channels = len(self._rest.varying_CXYZ)

        def local(products_HQJJ: Tensor, count: Tensor) -> _Local:
            correlation_HQJJ = products_HQJJ / unit_HQJ[..., None] / unit_HQJ[..., None, :]
            return _Local(correlation_HQJJ.double(), float(count), n_channels)

        count_S = torch.stack([count_K[half::2].sum() for half in range(2)])
        halves = [
            local(sums_HQJJ / half.clamp_min(1) + taken_HQJJ, half)
            for sums_HQJJ, half in zip(self._products_SHQJJ, count_S, strict=True)
        ]
        link_HQACD = _links(local(both_HQJJ, count), halves).float()
        # In units of the new scale.
        ratio_HCXYZ = self._rest.on_grid((scale_HP / self._rest.scale_HP)[None])[0]
        unit_HQAD = unit_HQJ.unflatten(-1, (-1, n_channels)) / around(ratio_HCXYZ[None], self._held_XYZ)[
            :, :, 0
        ].clamp_min(1e-12)
        link_HQACD = link_HQACD * unit_HQAD[:, :, -1:, :, None] / unit_HQAD[:, :, :, None]
        link_HACDXYZ = torch.zeros_like(self._rest.link_HACDXYZ)
        link_HACDXYZ[..., self._held_XYZ] = link_HQACD.movedim(1, -1)
        return replace(self._rest, scale_HP=scale_HP, link_HACDXYZ=link_HACDXYZ)

    def _of_modes(self, basis_PR: Tensor, level_H: Tensor) -> Tensor:
        """Local products of noise along the modes."""
        total_HQJJ = torch.zeros_like(self._products_SHQJJ[0])
        for mode_PB in basis_PR.split(BATCH_MODES, dim=1):
            noise_BHP = level_H.sqrt().float()[:, None] * mode_PB.T[:, None]
            total_HQJJ += local_products(self._rest.blend(noise_BHP), self._held_XYZ)
        return total_HQJJ


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
        """Variance per frequency that is new in every element, sum over elements."""
        link_HQCJ = link_HQACD.transpose(2, 3).flatten(3)
        new_HQCJ = torch.eye(link_HQCJ.shape[-1])[-self.n_channels :].to(link_HQCJ) - link_HQCJ
        return torch.einsum("hqcj,hqjk,hqck->h", new_HQCJ, self.products_HQJJ, new_HQCJ)


def _links(both: _Local, halves: Sequence[_Local]) -> Tensor:
    """Links (H, Q, A, C, D), shrunk at each frequency as is best for predicting each half of the subjects from the other."""
    n_frequencies, n_cells = both.products_HQJJ.shape[:2]
    none_HQACD = torch.zeros(
        n_frequencies, n_cells, len(OFFSETS), both.n_channels, both.n_channels, dtype=torch.float64
    )
    if min(half.n_instances for half in halves) == 0:
        return none_HQACD
    first, second = halves
    left_WH = [second.left_over(none_HQACD) + first.left_over(none_HQACD)]
    left_WH += [second.left_over(first.links(*w)) + first.left_over(second.links(*w)) for w in LINK_SHRINKAGES]
    best_H = torch.stack(left_WH).argmin(0)
    link_HQACD = none_HQACD
    for number, weights in enumerate(LINK_SHRINKAGES, start=1):
        if (best_H == number).any():
            link_HQACD[best_H == number] = both.links(*weights)[best_H == number]
    return link_HQACD
