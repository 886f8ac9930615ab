"""Correlation of neighbouring cells that no mode holds: a simultaneous autoregression on the latent grid (Whittle 1954).

Modes span the brain, and a few hundred of them hold what is correlated over long distances. What they leave is nearly white, but
neighbouring cells still go together a little, everywhere in the same way: a smooth channel with itself, and a channel that holds a slope
with the step between the means beside it. So each cell is a share of its neighbours plus something new,

    new_c(p) = x_c(p) - sum over axes a and channels d of  link[a, c, d] x_d(p + a) + link[a, d, c] x_d(p - a)

This is a symmetric map. `separate` applies it, `blend` inverts it. Slow signal is smoother than fast noise, so each temporal frequency
(`data.cosines`) has links of its own.

Axis legend: N anything, T frames, H temporal frequencies, C D channels, X Y Z latent grid, A its three axes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GREATEST_NORM = 0.8
"""Bound of the norm of the sum over neighbours; the map can surely be inverted below 1."""

INVERSE_ERROR = 1e-6


def separate(cells_NHCXYZ: Tensor, link_HACD: Tensor, varying_CXYZ: Tensor) -> Tensor:
    """What is new in every cell; cells that never vary (``varying_CXYZ`` is 0) stay as they are and are nobody's neighbour."""
    return cells_NHCXYZ - _neighbour_sum(cells_NHCXYZ, link_HACD, varying_CXYZ.to(cells_NHCXYZ))


def blend(cells_NHCXYZ: Tensor, link_HACD: Tensor, varying_CXYZ: Tensor) -> Tensor:
    """The inverse of `separate`, by Chebyshev semi-iteration (Golub and Varga 1961)."""
    norm = norm_bound(link_HACD)
    if norm == 0:
        return cells_NHCXYZ
    rate = norm / (1 + math.sqrt(1 - norm**2))  # by which the error falls each time
    varying_CXYZ = varying_CXYZ.to(cells_NHCXYZ)
    before_NHCXYZ = found_NHCXYZ = cells_NHCXYZ
    weight = 1.0
    for step in range(math.ceil(math.log(INVERSE_ERROR / 2) / math.log(rate))):
        again_NHCXYZ = cells_NHCXYZ + _neighbour_sum(found_NHCXYZ, link_HACD, varying_CXYZ)
        if step > 0:
            weight = 1 / (1 - norm**2 * weight / (2 if step == 1 else 4))
        before_NHCXYZ, found_NHCXYZ = found_NHCXYZ, torch.lerp(before_NHCXYZ, again_NHCXYZ, weight)
    return found_NHCXYZ


def norm_bound(link_HACD: Tensor) -> float:
    """No less than the norm of the sum over neighbours: two of them along each axis."""
    return float(_norm_bounds(link_HACD).max())


def within_bound(link_HACD: Tensor) -> Tensor:
    """Links, made smaller at frequencies where `blend` might not converge."""
    factor_H = (GREATEST_NORM / _norm_bounds(link_HACD).clamp_min(1e-12)).clamp_max(1)
    return link_HACD * factor_H[:, None, None, None]


def _norm_bounds(link_HACD: Tensor) -> Tensor:
    return 2 * torch.linalg.matrix_norm(link_HACD, ord=2).sum(-1)


def neighbour_products(cells_NHCXYZ: Tensor) -> Tensor:
    """Sums over N and all pairs of neighbours, ``sum of x_c(p) x_d(p + a)``, (H, A, C, C), float64."""
    products = []
    for axis in range(3):
        low_NHCXYZ, high_NHCXYZ = _pairs(cells_NHCXYZ, axis)
        products.append(torch.einsum("nhcxyz,nhdxyz->hcd", low_NHCXYZ, high_NHCXYZ).double())
    return torch.stack(products, dim=1)


def _neighbour_sum(cells_NHCXYZ: Tensor, link_HACD: Tensor, varying_CXYZ: Tensor) -> Tensor:
    cells_NHCXYZ = cells_NHCXYZ * varying_CXYZ
    total_NHCXYZ = torch.zeros_like(cells_NHCXYZ)
    for axis, link_HCD in enumerate(link_HACD.to(cells_NHCXYZ).unbind(1)):
        low_NHCXYZ, high_NHCXYZ = _pairs(cells_NHCXYZ, axis)
        to_low_NHCXYZ, to_high_NHCXYZ = _pairs(total_NHCXYZ, axis)
        to_low_NHCXYZ += torch.einsum("hcd,nhdxyz->nhcxyz", link_HCD, high_NHCXYZ)
        to_high_NHCXYZ += torch.einsum("hdc,nhdxyz->nhcxyz", link_HCD, low_NHCXYZ)
    return total_NHCXYZ * varying_CXYZ


def _pairs(cells_NHCXYZ: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Views of the cells that have a neighbour above them along an axis, and of these neighbours."""
    n_pairs = cells_NHCXYZ.shape[3 + axis] - 1
    return cells_NHCXYZ.narrow(3 + axis, 0, n_pairs), cells_NHCXYZ.narrow(3 + axis, 1, n_pairs)
