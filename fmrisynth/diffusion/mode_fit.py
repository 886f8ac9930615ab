"""Finding the modes of a `Prior`, once of all subjects and once without each fold of them, and their covariances.

Axis legend: K folds of subjects, B batch, H temporal frequencies, N = B*H, P the elements of a frame that vary, R modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

N_FOLDS = 5  # groups of subjects that are left out in turn
POWER_PASSES = 10  # of subspace iteration over the instances
LEAST_VARIANCE = 1e-6  # of a mode, in units of the mean one
EXTRA_MODES = 8  # directions carried along in the iteration beside those asked for

AddUp = Callable[[Tensor], object]
"""Sums a tensor over ranks in place."""

Batches = Sequence[tuple[Tensor, int]]
"""Values (B, H, P) of the elements that vary, and the fold of their subjects."""


def find_modes(batches: Batches, n_modes: int, response_PK: Tensor, add_up: AddUp) -> list[Tensor]:
    """Orthonormal modes (P, R): patterns of responses, and principal components of single frequencies.

    One basis without each fold of subjects, and at the end one of all. The components are found by subspace iteration (Halko et al. 2011,
    algorithm 4.4), from the same random start on every rank.
    """
    n_elements = len(response_PK)
    n_carried = min(n_modes + EXTRA_MODES, n_elements)
    start_PR = torch.linalg.qr(torch.randn(n_elements, n_carried, generator=torch.Generator().manual_seed(0))).Q
    bases = [start_PR] * (N_FOLDS + 1)
    for _ in range(POWER_PASSES):
        bases = _power_pass(batches, bases, add_up)
    return [torch.linalg.qr(torch.cat([response_PK, basis_PR[:, :n_modes]], 1)).Q for basis_PR in bases]


def mode_covariances(batches: Batches, bases: list[Tensor], count_K: Tensor, add_up: AddUp) -> list[Tensor]:
    """Covariances (H, R, R) of the modes of each basis (P, R), those without one fold of subjects and the last.

    The last is the covariance in all subjects. The others are to describe the subjects left out: the subjects who found a basis overstate
    some of what is along it, so the standard deviations of the modes, and then the eigenvalues in units of these, are made as large as
    they are in those left out.
    """
    n_frequencies, n_kept = batches[0][0].shape[1], bases[0].shape[1]
    inside_KHRR, outside_KHRR = (
        torch.zeros(len(bases), n_frequencies, n_kept, n_kept, dtype=torch.float64) for _ in range(2)
    )
    for values_BHP, fold in batches:
        for k, basis_PR in enumerate(bases):
            along_BHR = values_BHP @ basis_PR
            sums_KHRR = outside_KHRR if k == fold else inside_KHRR  # nobody is outside the last
            sums_KHRR[k] += torch.einsum("bhr,bhs->hrs", along_BHR, along_BHR)
    add_up(inside_KHRR)
    add_up(outside_KHRR)
    sample_HRR = inside_KHRR[-1] / count_K.sum()
    if (count_K > 0).sum() < 2:  # nobody is left out
        return [sample_HRR] * len(bases)
    inside_KHRR = inside_KHRR[:-1] / (count_K.sum() - count_K)[:, None, None, None]
    outside_KHRR = outside_KHRR[:-1]
    expected_HR = (count_K[:, None, None] * _variances(inside_KHRR)).sum(0)
    shrinkage_HR = _variances(outside_KHRR).sum(0) / expected_HR
    inside_std_KHR = _variances(inside_KHRR).sqrt()
    vectors_KHRR = torch.linalg.eigh(_over(inside_KHRR, inside_std_KHR)).eigenvectors
    std_KHR = inside_std_KHR * shrinkage_HR.sqrt()
    values_KHR = _variances(vectors_KHRR.mT @ _over(outside_KHRR, std_KHR) @ vectors_KHRR)
    values_HR = (values_KHR.sum(0) / count_K.sum()).numpy()
    rising_HR = torch.stack([torch.from_numpy(isotonic_regression(values_R).x) for values_R in values_HR])
    shape_KHRR = (vectors_KHRR * rising_HR[:, None]) @ vectors_KHRR.mT
    return [*_over(shape_KHRR, _variances(shape_KHRR).sqrt() / std_KHR), sample_HRR]


def scale_spread(batches: Batches, basis_PR: Tensor, covariance_HRR: Tensor, add_up: AddUp) -> Tensor:
    """Standard deviation (H,) of the logarithm of how loud the values along a basis (P, R) are in a block, beyond chance.

    The sum of squares of Gaussians whose variances are v has variance 2 sum v^2, so its logarithm about 2 sum v^2 / (sum v)^2; what is more
    is twice the logarithm of a factor that all of them share. Logarithms, because few blocks decide the moments of the squares themselves.
    """
    sums_2H, count = torch.zeros(2, len(covariance_HRR), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for values_BHP, _ in batches:
        logs_BH = (values_BHP @ basis_PR).square().sum(2).clamp_min(1e-12).log().double()
        sums_2H += torch.stack([logs_BH.sum(0), logs_BH.square().sum(0)])
        count += len(logs_BH)
    add_up(sums_2H)
    add_up(count)
    found_H = sums_2H[1] / count - (sums_2H[0] / count).square()
    total_H = covariance_HRR.diagonal(dim1=1, dim2=2).sum(1)
    chance_H = 2 * covariance_HRR.square().sum((1, 2)) / total_H.square()
    return ((found_H - chance_H).clamp_min(0) / 4).sqrt().float()


def _power_pass(batches: Batches, bases: list[Tensor], add_up: AddUp) -> list[Tensor]:
    """One step of subspace iteration for each basis (P, R): those without one fold of subjects, and the last of all subjects."""
    images = [torch.zeros_like(basis_PR) for basis_PR in bases]
    for values_BHP, fold in batches:
        rows_NP = values_BHP.flatten(0, 1)
        for k, basis_PR in enumerate(bases):
            if k != fold:
                images[k] += rows_NP.T @ (rows_NP @ basis_PR)
    for total in images:
        add_up(total)
    return [torch.linalg.svd(image, full_matrices=False).U for image in images]


def _variances(covariance: Tensor) -> Tensor:
    """The diagonal (..., R), above 0 also where instances are too few for so many modes."""
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return variance.clamp_min(LEAST_VARIANCE * float(variance.mean()))


def _over(covariance: Tensor, std: Tensor) -> Tensor:
    """A covariance (..., R, R) in units of standard deviations."""
    return covariance / std[..., None] / std[..., None, :]
