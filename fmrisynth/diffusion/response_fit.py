"""Estimating how conditions differ in more than their mean: D_k, and the directions and matrices of C_k, of a `Prior`.

A covariance that all conditions share gives each of them the variation of all. But responses differ between people: the activation of
each region, so that a condition varies most where it responds (D_k, apart for each channel and cell), and the strength of the whole, so
that it varies along its own mean response (C_k). Without D_k effects vary too much where a condition does not respond, without C_k
single samples are taken for other conditions.

C_k: in units of the covariance of the modes, two directions are kept for each condition: its mean response, and the direction that
decides how large its mean response looks. Constants have no part in either: the effect of a block is a change within it.

Axis legend: K L conditions, B batch, T frames, H temporal frequencies, P the elements of a frame that vary, R modes, S directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fmrisynth.diffusion.mode_fit import AddUp
from fmrisynth.diffusion.prior import Prior, frames_of, frequencies_of, symmetric_inverse, symmetric_root
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
        every_K = torch.arange(len(prior.mean_KFXYZ))
        parts = (prior.along_response_course(prior.mean_KFXYZ, every_K, inverse=inverse) for inverse in (True, False))
        shown_KHP, weighed_KHP = (frequencies_of(part, root_PHH.shape[1]) for part in parts)
        shown_KHP[:, 0] = weighed_KHP[:, 0] = 0.0
        white_KHP = torch.einsum("pgh,khp->kgp", torch.linalg.inv(root_PHH), shown_KHP)
        weights_KHP = torch.einsum("phg,khp->kgp", root_PHH, weighed_KHP)
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


class ResponseSpreads:
    """Second moments of every channel and cell along the courses of the mean responses, per condition."""

    def __init__(self, prior: Prior, n_frames: int) -> None:
        assert prior.mean_KFXYZ is not None
        frames_KTP = frames_of(prior.mean_KFXYZ, n_frames)
        self.course_KT = torch.linalg.svd(frames_KTP - frames_KTP.mean(1, keepdim=True), full_matrices=False).U[..., 0]
        n_conditions = len(frames_KTP)
        self._count_K = torch.zeros(n_conditions, dtype=torch.float64)
        self._squares_KLP = torch.zeros(n_conditions, n_conditions, frames_KTP.shape[2], dtype=torch.float64)

    def add(self, stack_FXYZ: Tensor, condition: int) -> None:
        """Add one instance without its mean."""
        frames_TP = frames_of(stack_FXYZ[None], self.course_KT.shape[1])[0]
        self._count_K[condition] += 1
        self._squares_KLP[condition] += (self.course_KT @ frames_TP).square()

    def add_up(self, add_up: AddUp) -> None:
        """Sum over ranks."""
        add_up(self._count_K)
        add_up(self._squares_KLP)

    def spread(self, varies_P: Tensor) -> Tensor:
        """Standard deviation (K, P) of each condition along its own course over that of all conditions; shrunk towards 1."""
        own_KP = torch.einsum("kkp->kp", self._squares_KLP) / self._count_K.clamp_min(1)[:, None]
        all_KP = self._squares_KLP.sum(0) / self._count_K.sum()
        ratio_KP = own_KP / all_KP.clamp_min(1e-12 * float(all_KP.mean()))
        spread_KP = _shrunk(ratio_KP * self._count_K[:, None], self._count_K[:, None], torch.ones(())).sqrt()
        return torch.where(varies_P, spread_KP, 1.0).float()


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

    def shares(self) -> Tensor:
        """Of the conditions (K,) in all instances."""
        return (self._count_K / self._count_K.sum().clamp_min(1)).float()


def _shrunk(sums: Tensor, count: Tensor, target: Tensor) -> Tensor:
    return (sums + SHRINKAGE_INSTANCES * target) / (count + SHRINKAGE_INSTANCES)
