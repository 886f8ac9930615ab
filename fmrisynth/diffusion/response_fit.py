"""Estimating how conditions differ in more than their mean: the directions and the matrices C_k of a `Prior`.

The strength of a response differs between people and between blocks, so along its own mean response a condition varies more than others
do. A covariance that all conditions share gives each of them the variation of all, and single samples are then taken for other
conditions. In units of the covariance of the modes, two directions are kept for each condition: its mean response, and the direction that
decides how large its mean response looks. Constants have no part in either: the effect of a block is a change within it.

Axis legend: K conditions, B batch, H temporal frequencies, P the elements of a frame that vary, R modes, S directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fmrisynth.diffusion.mode_fit import AddUp
from fmrisynth.diffusion.prior import Prior, frequencies_of, symmetric_inverse, symmetric_root
from fmrisynth.diffusion.rest_fit import SHRINKAGE_INSTANCES


@dataclass(frozen=True)
class MeanResponses:
    """The changing part of the conditions' means, as a prior without modes whitens values, and as weights of whitened values."""

    white_KHP: Tensor
    weights_KHP: Tensor

    @classmethod
    def of(cls, prior: Prior, varying_P: Tensor) -> MeanResponses:
        """Of the means and the courses of a prior."""
        assert prior.mean_KFXYZ is not None
        assert prior.course_root_PHH is not None
        root_PHH = prior.course_root_PHH
        mean_KHP = frequencies_of(prior.mean_KFXYZ, root_PHH.shape[1])
        mean_KHP[:, 0] = 0.0
        white_KHP = torch.einsum("pgh,khp->kgp", torch.linalg.inv(root_PHH), mean_KHP)
        weights_KHP = torch.einsum("phg,khp->kgp", root_PHH, mean_KHP)
        return cls(white_KHP[:, :, varying_P], weights_KHP[:, :, varying_P])

    def patterns(self) -> Tensor:
        """The map (P, K) that with some course comes nearest to each."""
        return torch.linalg.svd(self.white_KHP, full_matrices=False).Vh[:, 0].T


@dataclass(frozen=True)
class ResponseDirections:
    """Directions of values along modes (H, R).

    Attributes
    ----------
    weight_SHR : Tensor
        Of the values, in their coordinates, which are uncorrelated and have unit variance over all conditions.
    load_SHR : Tensor
        What a unit along each adds to the values.
    """

    weight_SHR: Tensor
    load_SHR: Tensor

    @classmethod
    def of(cls, means: MeanResponses, basis_PR: Tensor, covariance_HRR: Tensor) -> ResponseDirections:
        """For a basis, and the covariance of values along it."""
        root_HRR = symmetric_root(covariance_HRR)
        inverse_HRR = symmetric_inverse(root_HRR)
        found_SHR = torch.cat(
            [
                torch.einsum("hrq,khq->khr", inverse_HRR, means.white_KHP @ basis_PR),
                torch.einsum("hrq,khq->khr", root_HRR, means.weights_KHP @ basis_PR),
            ]
        )
        # Signs of the triangular factor make directions of different bases comparable.
        orthonormal_NS, upper_SS = torch.linalg.qr(found_SHR.flatten(1).T)
        signs_S = torch.where(upper_SS.diagonal() < 0, -1.0, 1.0)
        unit_SHR = (orthonormal_NS * signs_S).T.unflatten(1, found_SHR.shape[1:])
        return cls(
            torch.einsum("hqr,shq->shr", inverse_HRR, unit_SHR), torch.einsum("hrq,shq->shr", root_HRR, unit_SHR)
        )


class ResponseMoments:
    """Second moments along the directions of responses, per condition."""

    def __init__(self, n_conditions: int, n_directions: int) -> None:
        self._count_K = torch.zeros(n_conditions, dtype=torch.float64)
        self._sums_KSS = torch.zeros(n_conditions, n_directions, n_directions, dtype=torch.float64)

    def add(self, along_BHR: Tensor, directions: ResponseDirections, condition_B: Tensor) -> None:
        """Add values along modes."""
        along_BS = torch.einsum("shr,bhr->bs", directions.weight_SHR, along_BHR).double()
        self._count_K += torch.bincount(condition_B, minlength=len(self._count_K))
        self._sums_KSS.index_add_(0, condition_B, torch.einsum("bs,bt->bst", along_BS, along_BS))

    def add_up(self, add_up: AddUp) -> None:
        """Sum over ranks."""
        add_up(self._count_K)
        add_up(self._sums_KSS)

    def gains(self) -> Tensor:
        """C_k (K, S, S): square roots of covariances that are shrunk towards that of all conditions, and this towards unit variance."""
        unit_SS = torch.eye(self._sums_KSS.shape[1], dtype=torch.float64)
        shared_SS = _shrunk(self._sums_KSS.sum(0), self._count_K.sum(), unit_SS)
        return symmetric_root(_shrunk(self._sums_KSS, self._count_K[:, None, None], shared_SS))

    def more(self, gain_KSS: Tensor) -> Tensor:
        """By how much (S, S) the covariance of draws, over all conditions, is more than the unit matrix."""
        share_K11 = (self._count_K / self._count_K.sum().clamp_min(1)).float()[:, None, None]
        return (share_K11 * (gain_KSS @ gain_KSS)).sum(0) - torch.eye(gain_KSS.shape[1])


def _shrunk(sums: Tensor, count: Tensor, target_SS: Tensor) -> Tensor:
    return (sums + SHRINKAGE_INSTANCES * target_SS) / (count + SHRINKAGE_INSTANCES)
