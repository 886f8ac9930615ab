"""What modes leave, against covariances written out in full."""

import torch

from fmrisynth.diffusion.neighbours import OFFSETS, local_products
from fmrisynth.diffusion.rest_fit import Rest, RestMoments

H, C, GRID = 2, 2, (3, 2, 2)
P = C * 12


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_rest():
    link = 0.2 * randn(H, len(OFFSETS), C, C, *GRID)
    link[:, 0, :, :, 0] = link[:, 1, ..., 0, :] = link[:, 2, ..., 0] = 0  # nobody is there
    link[:, -1] = torch.tril(link[:, -1].movedim((1, 2), (-2, -1)), -1).movedim((-2, -1), (1, 2))
    return Rest(torch.ones(C, *GRID, dtype=torch.bool), 1 + 0.1 * randn(H, P, seed=2), link)


def values_of(rest):
    """Rows (P, H, P) whose products are the covariance of values of white noise."""
    return rest.blend(torch.eye(P)[:, None].expand(-1, H, -1))


def products(values):
    return local_products(values.reshape(len(values), H, C, *GRID), torch.ones(GRID, dtype=torch.bool))


def test_what_modes_take_is_what_is_missing_without_them():
    rest, basis = a_rest(), torch.linalg.qr(randn(P, 3, seed=1)).Q
    values = values_of(rest)
    lost = products(values) - products(values - (values @ basis) @ basis.T)
    lost.diagonal(dim1=2, dim2=3).clamp_(min=0)
    moments = RestMoments(Rest.white(rest.varying_CXYZ, H), 2)
    torch.testing.assert_close(moments.taken(rest, basis), lost, atol=1e-4, rtol=1e-4)


def test_the_rest_of_many_values_is_found_again():
    rest = a_rest()
    moments = RestMoments(Rest.white(rest.varying_CXYZ, H), 3)
    for k in range(20):
        values = rest.blend(randn(1000, H, P, seed=10 + k))
        for fold in (k % 2, -1):
            moments.add(values, torch.zeros(P, 1), fold)
    for found, error in ((moments.sample(), 0.03), (moments.cross_fitted(without=2), 0.05)):
        torch.testing.assert_close(found.link_HACDXYZ, rest.link_HACDXYZ, atol=error, rtol=0)
        torch.testing.assert_close(found.new_HP, rest.new_HP, atol=error, rtol=0)
