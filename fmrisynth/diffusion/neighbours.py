"""Correlation of neighbouring cells that no mode holds: a sequential autoregression on the latent grid (Vecchia 1988).

Modes span the brain, and a few hundred of them hold what is correlated over long distances. What they leave is nearly white, but
neighbouring cells still go together a little: a smooth channel with itself, and a channel that holds a slope with the step between
the means beside it. So each element is a share of those before it, in the order (x y z c), plus something new,

    new_c(p) = x_c(p) - sum over offsets a and channels d of  link[a, c, d, p] x_d(p + a)

where the offsets lead to the cells beside it that come before it, and to the cell itself (its channels before c). `separate` is this
map, `blend` its inverse; both have determinant 1, whatever the links. Every cell has links of its own, and as slow signal is smoother than
fast noise, so has every temporal frequency (`data.cosines`).

Axis legend: N anything, H temporal frequencies, C D channels, X Y Z latent grid, Q cells, A offsets, J = A*D the channels of the cells
before a cell and of itself.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 0))
"""From a cell to those beside it that come before it; the last is the cell itself."""


def separate(cells_NHCXYZ: Tensor, link_HACDXYZ: Tensor) -> Tensor:
    """What is new in every element."""
    new_NHCXYZ = cells_NHCXYZ.clone()
    for a, offset in enumerate(OFFSETS):
        before_NHDXYZ = _shifted(cells_NHCXYZ, offset)
        for d in range(before_NHDXYZ.shape[2]):
            new_NHCXYZ -= link_HACDXYZ[:, a, :, d].to(cells_NHCXYZ) * before_NHDXYZ[:, :, d, None]
    return new_NHCXYZ


def blend(new_NHCXYZ: Tensor, link_HACDXYZ: Tensor) -> Tensor:
    """The inverse of `separate`: cells one after another, those that do not need one another at once."""
    x, y, z = new_NHCXYZ.shape[3:]
    link_QHACD = rearrange(link_HACDXYZ.to(new_NHCXYZ), "h a c d x y z -> (x y z) h a c d")
    unit_CC = torch.eye(new_NHCXYZ.shape[2]).to(new_NHCXYZ)
    within_QHCC = torch.linalg.solve_triangular(
        unit_CC - link_QHACD[:, :, -1], unit_CC, upper=False, unitriangular=True
    )
    between_QHCJ = within_QHCC @ rearrange(link_QHACD[:, :, :-1], "q h a c d -> q h c (a d)")
    found_QHCN = within_QHCC @ rearrange(new_NHCXYZ, "n h c x y z -> (x y z) h c n")
    found_QHCN = torch.cat([found_QHCN, torch.zeros_like(found_QHCN[:1])])  # the last: outside the grid
    for members, before in _waves((x, y, z)):
        before_QHJN = rearrange(found_QHCN[before], "q a h d n -> q h (a d) n")
        found_QHCN[members] += between_QHCJ[members] @ before_QHJN
    return rearrange(found_QHCN[:-1], "(x y z) h c n -> n h c x y z", x=x, y=y, z=z)


def blend_transposed(cells_NHCXYZ: Tensor, link_HACDXYZ: Tensor) -> Tensor:
    """The transpose of `blend`: x . blend(y) is y . blend_transposed(x)."""
    with torch.enable_grad():
        new_NHCXYZ = torch.zeros_like(cells_NHCXYZ, requires_grad=True)
        blended_NHCXYZ = blend(new_NHCXYZ, link_HACDXYZ)
    return torch.autograd.grad(blended_NHCXYZ, new_NHCXYZ, cells_NHCXYZ)[0]


def local_products(cells_NHCXYZ: Tensor, held_XYZ: Tensor) -> Tensor:
    """Products of the channels of the cells before each cell where ``held_XYZ`` and of itself, (H, Q, J, J), sum over N."""
    around_HQNAC = torch.stack(
        [_shifted(cells_NHCXYZ, offset)[..., held_XYZ].permute(1, 3, 0, 2) for offset in OFFSETS], dim=3
    )
    around_HQNJ = around_HQNAC.flatten(3)
    return around_HQNJ.mT @ around_HQNJ


def regress(products_XJJ: Tensor, n_channels: int) -> Tensor:
    """Links (..., A, C, D) of the least squares that `local_products` (..., J, J) describe; 0 from and to what never varies."""
    n_before = products_XJJ.shape[-1] - n_channels
    link_XCJ = products_XJJ.new_zeros(*products_XJJ.shape[:-2], n_channels, products_XJJ.shape[-1])
    for c in range(n_channels):
        known = n_before + c
        covariance_XJJ = products_XJJ[..., :known, :known]
        still_XJ = (covariance_XJJ.diagonal(dim1=-2, dim2=-1) <= 0).to(covariance_XJJ)
        link_XCJ[..., c, :known] = torch.linalg.solve(
            covariance_XJJ + torch.diag_embed(still_XJ), products_XJJ[..., :known, known]
        )
    return rearrange(link_XCJ, "... c (a d) -> ... a c d", d=n_channels)


def is_sound(link_HACDXYZ: Tensor) -> bool:
    """Whether all are numbers, and no channel of a cell has anything from itself or from the channels after it."""
    within_XYZHCD = link_HACDXYZ[:, -1].permute(3, 4, 5, 0, 1, 2)
    return bool(link_HACDXYZ.isfinite().all()) and not bool(within_XYZHCD.triu().any())


@lru_cache(maxsize=8)
def _waves(grid: tuple[int, int, int]) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the cells that can be found at once, and of the cells before each (A - 1), wave by wave; outside has the number Q."""
    position_Q3 = torch.cartesian_prod(*map(torch.arange, grid))
    before_QA3 = position_Q3[:, None] + torch.tensor(OFFSETS[:-1])
    number_QA = (before_QA3[..., 0] * grid[1] + before_QA3[..., 1]) * grid[2] + before_QA3[..., 2]
    number_QA[(before_QA3 < 0).any(-1)] = len(position_Q3)
    wave_Q = position_Q3.sum(1)  # grows along the order, and cells of equal sums do not need one another
    waves = (torch.nonzero(wave_Q == wave)[:, 0] for wave in range(1, int(wave_Q.max()) + 1))
    return [(members, number_QA[members]) for members in waves]


def _shifted(cells_NHCXYZ: Tensor, offset: tuple[int, int, int]) -> Tensor:
    """At each cell the value of the cell at an offset of -1 or 0 from it, and 0 outside the grid."""
    shifted_NHCXYZ = torch.zeros_like(cells_NHCXYZ)
    here, there = (tuple(slice(*ends) if step else slice(None) for step in offset) for ends in ((1, None), (None, -1)))
    shifted_NHCXYZ[:, :, :, *here] = cells_NHCXYZ[:, :, :, *there]
    return shifted_NHCXYZ
