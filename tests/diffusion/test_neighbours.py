"""Neighbours against sums written out, and the map against its inverse."""

import itertools

import pytest
import torch

from fmrisynth.diffusion.neighbours import (
    GREATEST_NORM,
    blend,
    neighbour_products,
    norm_bound,
    separate,
    within_bound,
)

H, C, GRID = 2, 2, (5, 4, 3)
LINK = torch.tensor([[[0.1, -0.05], [0.02, 0.0]], [[0.07, 0.03], [-0.04, 0.01]], [[0.0, 0.02], [0.05, -0.06]]])
LINK = torch.stack([LINK, -0.5 * LINK.flip(0)])


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, H, C, *GRID, generator=generator), torch.rand(C, *GRID, generator=generator) < 0.7


def pairs_of(varying):
    """Every pair of varying neighbours of one channel, found by looking at all positions."""
    for c, x, y, z in itertools.product(range(C), *map(range, GRID)):
        for axis in range(3):
            other = [x, y, z]
            other[axis] += 1
            if other[axis] < GRID[axis] and varying[c, x, y, z] and varying[c, *other]:
                yield axis, (c, x, y, z), (c, *other)


def test_every_cell_takes_from_its_varying_neighbours(cells):
    values, varying = cells
    wanted = values.clone()
    for axis, (c, *low), (_, *high) in pairs_of(torch.ones_like(varying)):
        for d in range(C):
            if varying[c, *low] and varying[d, *high]:
                wanted[:, :, c, *low] -= LINK[:, axis, c, d] * values[:, :, d, *high]
                wanted[:, :, d, *high] -= LINK[:, axis, c, d] * values[:, :, c, *low]
    torch.testing.assert_close(separate(values, LINK, varying), wanted)


def test_products_are_of_the_same_pairs(cells):
    values, _ = cells
    wanted = torch.zeros(H, 3, C, C, dtype=torch.float64)
    for axis, (c, *low), (_, *high) in pairs_of(torch.ones(C, *GRID)):
        for d in range(C):
            wanted[:, axis, c, d] += (values[:, :, c, *low] * values[:, :, d, *high]).double().sum(0)
    torch.testing.assert_close(neighbour_products(values), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_blend_is_the_inverse(cells, size):
    values, varying = cells
    link = within_bound(size * LINK)
    assert norm_bound(link) <= GREATEST_NORM + 1e-6
    torch.testing.assert_close(blend(separate(values, link, varying), link, varying), values, rtol=0, atol=2e-5)


@pytest.fixture
def units():
    """A unit in each cell in turn, at all frequencies."""
    return torch.eye(C * 60).unflatten(1, (1, C, *GRID)).repeat(1, H, 1, 1, 1, 1)


def test_the_norm_is_within_its_bound(units):
    matrix_HPP = (units - separate(units, LINK, torch.ones(C, *GRID))).flatten(2).transpose(0, 1)
    assert torch.linalg.matrix_norm(matrix_HPP, ord=2).max() <= norm_bound(LINK)


def test_the_map_is_symmetric(cells, units):
    _, varying = cells
    for change in (separate, blend):
        matrix_HPP = change(units, LINK, varying).flatten(2).transpose(0, 1)
        torch.testing.assert_close(matrix_HPP, matrix_HPP.mT)
