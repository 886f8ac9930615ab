"""Whitening: unit variance, no correlation between a cell's numbers, and the way back."""

from types import SimpleNamespace

import torch

from fmrisynth.models.distributed import World
from fmrisynth.models.whitening import LEAST_SCALE, Whitening, whitening_map
from fmrisynth.train.moments import fit_whitening


class Latents:
    """Instances whose cells have one covariance and each a scale of its own."""

    latent_shape = (2, 3, 4, 2, 2)
    whitening = None

    def __init__(self, n_instances=400):
        generator = torch.Generator().manual_seed(0)
        self.brain_XYZ = torch.ones(4, 2, 2, dtype=torch.bool)
        self.brain_XYZ[3] = False
        root_FF = torch.randn(6, 6, generator=generator)
        scale_CXYZ = 0.1 + 3 * torch.rand(2, 4, 2, 2, generator=generator)
        white = torch.randn(n_instances, 6, 4, 2, 2, generator=generator)
        stacks = torch.einsum("fg,ngxyz->nfxyz", root_FF, white) * scale_CXYZ.repeat_interleave(3, dim=0)
        self.stacks_NFXYZ = stacks * self.brain_XYZ

    def read(self, instance):
        return self.stacks_NFXYZ[instance]

    def row(self, instance):
        return SimpleNamespace(subject=f"{instance % 20:02d}")


def test_whitened_latents_have_unit_covariance_and_come_back():
    latents = Latents()
    whitening = fit_whitening(latents, range(400), World(0, 1, torch.device("cpu")))
    white_NFXYZ = whitening.apply(latents.stacks_NFXYZ)
    rows_NF = white_NFXYZ[..., latents.brain_XYZ].movedim(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows_NF.T @ rows_NF / len(rows_NF), torch.eye(6), rtol=0, atol=1e-3)
    # Every cell on its own, too, as well as 400 instances can tell.
    power_FXYZ = white_NFXYZ.square().mean(0)[:, latents.brain_XYZ]
    assert float((power_FXYZ - 1).abs().max()) < 0.3
    assert float((latents.stacks_NFXYZ.square().mean(0)[:, latents.brain_XYZ] - 1).abs().max()) > 3
    torch.testing.assert_close(whitening.undo(white_NFXYZ), latents.stacks_NFXYZ, rtol=1e-4, atol=1e-4)
    assert not white_NFXYZ[..., ~latents.brain_XYZ].any()


def test_a_cell_that_hardly_varies_is_not_blown_up():
    latents = Latents()
    latents.stacks_NFXYZ[:, :, 0, 0, 0] *= 1e-6
    whitening = fit_whitening(latents, range(400), World(0, 1, torch.device("cpu")))
    assert float(whitening.scale_CXYZ.min()) == torch.tensor(LEAST_SCALE)
    assert float(whitening.apply(latents.stacks_NFXYZ)[:, :, 0, 0, 0].abs().max()) < 1e-2
    eigenvalues = torch.linalg.eigvalsh(whitening_map(torch.diag(torch.tensor([4.0, 1e-12]))).double())
    torch.testing.assert_close(eigenvalues, torch.tensor([0.5, 1 / LEAST_SCALE], dtype=torch.float64))


def test_it_is_stored_by_name():
    whitening = Whitening(torch.rand(2, 4, 2, 2), torch.eye(6))
    tensors = whitening.tensors()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == Whitening.shapes((2, 3, 4, 2, 2))
    assert Whitening.taken_from(tensors).mix_FF is whitening.mix_FF
    assert Whitening.taken_from({"other": torch.ones(1)}) is None
