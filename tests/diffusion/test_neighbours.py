"""Links between neighbours against sums written out, against the inverse, and against links that data were made with."""

import itertools

import pytest
import torch

from fmrisynth.diffusion.neighbours import OFFSETS, blend, blend_transposed, is_sound, local_products, regress, separate

H, C, GRID = 2, 2, (5, 4, 3)


@pytest.fixture
def varying():
    return torch.rand(C, *GRID, generator=torch.Generator().manual_seed(1)) < 0.7


@pytest.fixture
def link(varying):
    """Links of varying elements to varying ones before them."""
    values = 0.2 * torch.randn(H, len(OFFSETS), C, C, *GRID, generator=torch.Generator().manual_seed(2))
    link = torch.zeros_like(values)
    for a, (c, *here), (d, *_) in pairs_of(varying):
        if OFFSETS[a] != (0, 0, 0) or d < c:
            link[:, a, c, d, *here] = values[:, a, c, d, *here]
    return link


@pytest.fixture
def values():
    return torch.randn(6, H, C, *GRID, generator=torch.Generator().manual_seed(3))


def pairs_of(varying):
    """Every varying element with every varying one of the cells before it and of its own, found by looking at all positions."""
    for c, d, position, (a, offset) in itertools.product(
        range(C), range(C), itertools.product(*map(range, GRID)), enumerate(OFFSETS)
    ):
        before = tuple(p + o for p, o in zip(position, offset, strict=True))
        if min(before) >= 0 and varying[c, *position] and varying[d, *before]:
            yield a, (c, *position), (d, *before)


def test_every_element_takes_from_those_before_it(values, varying, link):
    wanted = values.clone()
    for a, here, before in pairs_of(varying):
        wanted[:, :, *here] -= link[:, a, here[0], before[0], *here[1:]] * values[:, :, *before]
    torch.testing.assert_close(separate(values, link), wanted)


@pytest.mark.parametrize("size", [0.0, 1.0, 5.0])
def test_blend_is_the_inverse(values, link, size):
    link, values = size * link, values.double()  # whatever the links
    torch.testing.assert_close(blend(separate(values, link), link), values)
    torch.testing.assert_close(separate(blend(values, link), link), values)


def test_the_transpose_is_the_transpose(values, link):
    values, others = values.double(), values.double().flip(0).sin()
    there, back = (others * blend(values, link)).sum(), (values * blend_transposed(others, link)).sum()
    torch.testing.assert_close(there, back)


def test_the_determinant_is_one(link):
    units = torch.eye(C * 60, dtype=torch.float64).unflatten(1, (1, C, *GRID)).repeat(1, H, 1, 1, 1, 1)
    matrix_HPP = separate(units, link).flatten(2).transpose(0, 1)
    torch.testing.assert_close(torch.linalg.det(matrix_HPP), torch.ones(H, dtype=torch.float64))


def test_products_are_of_the_same_pairs(values):
    held = torch.rand(*GRID, generator=torch.Generator().manual_seed(4)) < 0.8
    place = {position: q for q, position in enumerate(map(tuple, held.nonzero().tolist()))}
    found = local_products(values, held)
    wanted = torch.zeros_like(found)
    own = (len(OFFSETS) - 1) * C
    for a, (c, *here), before in pairs_of(torch.ones(C, *GRID)):
        if tuple(here) in place:
            wanted[:, place[tuple(here)], own + c, a * C + before[0]] = (
                values[:, :, c, *here] * values[:, :, *before]
            ).sum(0)
    torch.testing.assert_close(found[:, :, own:], wanted[:, :, own:])
    torch.testing.assert_close(found, found.mT)


def test_regression_finds_the_links_that_data_were_made_with(varying, link):
    white = torch.randn(30_000, H, C, *GRID, generator=torch.Generator().manual_seed(5))
    products_HQJJ = local_products(blend(white * varying, link), torch.ones(GRID, dtype=torch.bool))
    found = regress(products_HQJJ.double(), C).movedim(1, -1).unflatten(-1, GRID)
    assert is_sound(found)
    torch.testing.assert_close(found, link.double(), atol=0.03, rtol=0)
    assert not found[link == 0].any()


def test_links_that_no_fit_gives_are_told(link):
    assert is_sound(link)
    assert not is_sound(torch.full_like(link, torch.nan))
    assert not is_sound(link + 0.1)  # a channel that has something from itself
