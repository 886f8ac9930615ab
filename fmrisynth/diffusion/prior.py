"""Condition prior: diffuse around a Gaussian that knows the condition instead of around zero.

The idea of PriorGrad (Lee et al. 2022) and Grad-TTS (Popov et al. 2021). The diffusion runs on whitened latents u, whose
prior is the unit Gaussian; training latents z of condition k are

``none``              z = u
``class_mean``        z = mean_k + u
``class_gaussian``    z = mean_k + std_k * u, with the elementwise standard deviation, shrunk towards the one pooled over conditions
``class_covariance``  z = mean_k + std_k * R K A u, where R, K and A are linear maps, the same for all conditions

A is there because instances of a condition do not vary cell by cell but in modes that span the brain (networks, drift, the
strength of the response), each with its own course over the frames. It is kept small enough to be estimated from few instances
by taking space and time apart: orthonormal modes over channels and cells (principal components of single frames), one covariance over
modes and frames for the leading ones, a covariance over time for each other mode, and one for all that is left. A network is no
single mode, at some frequencies still less than at others, but some modes that go together.

K blends neighbouring cells: they vary together beside the modes (`neighbours`).

R gives every channel and cell p its own covariance over the frames, R_p R_p': signal is slow in some cells and nearly white in
others, and the GLM sees it, as the variance of an effect is that of a course along the regressor. R_p is also scaled such that what the
modes leave is equally large everywhere and at every temporal frequency: a smooth channel is nearly whole in the modes, a rough one is not.
With that scale principal components are factor analysis. And it holds what is left to do for draws to be as slow as the latents in every cell.

Here is what a prior does; `prior_fit` and `rest_fit` estimate one.

Axis legend: K conditions, F = C*T, X Y Z latent grid, B batch, T frames, H temporal frequencies, A offsets between cells,
P = C*X*Y*Z, R modes, L leading modes and frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor

from fmrisynth.data.cosines import cosines
from fmrisynth.diffusion.neighbours import blend, is_sound, separate
from fmrisynth.errors import FmrisynthError


@dataclass(frozen=True)
class Prior:
    """Location, scale and covariance of the normalised latents.

    Attributes
    ----------
    kind : {"none", "class_mean", "class_gaussian", "class_covariance"}
    mean_KFXYZ, std_KFXYZ : Tensor or None
        None stands for 0 and 1.
    modes_RP : Tensor or None
        Orthonormal rows.
    mode_root_RTT, rest_root_TT : Tensor or None
        Symmetric square roots of the covariances over time, of each mode and of what no mode holds.
    leading_root_LL : Tensor or None
        The same of the leading modes together, L = modes x T; it takes the place of theirs in ``mode_root_RTT``.
    course_root_PTT : Tensor or None
        R: a matrix over time for each channel and cell; None stands for unit matrices.
    link_HACCXYZ : Tensor or None
        K: what a channel of a cell has from those before it, per temporal frequency; None stands for nothing.
    varying_FXYZ : Tensor or None
        1 where training latents differ at all, 0 where they are constant (cells without brain); None stands for 1.
    """

    kind: str = "none"
    mean_KFXYZ: Tensor | None = None
    std_KFXYZ: Tensor | None = None
    modes_RP: Tensor | None = None
    mode_root_RTT: Tensor | None = None
    rest_root_TT: Tensor | None = None
    varying_FXYZ: Tensor | None = None
    course_root_PTT: Tensor | None = None
    link_HACCXYZ: Tensor | None = None
    leading_root_LL: Tensor | None = None

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, Tensor]) -> Prior:
        """The prior of stored tensors; see `tensors`. Raises FmrisynthError for links that no fit gives."""
        link_HACCXYZ = tensors.get("link")
        if link_HACCXYZ is not None and not is_sound(link_HACCXYZ):
            raise FmrisynthError(
                "the links between neighbouring cells in the prior's file are not those of a fit; it is damaged, copy it again."
            )
        return cls(kind, *(tensors.get(name) for name in _TENSORS))

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to store beside the weights."""
        values = (
            self.mean_KFXYZ,
            self.std_KFXYZ,
            self.modes_RP,
            self.mode_root_RTT,
            self.rest_root_TT,
            self.varying_FXYZ,
            self.course_root_PTT,
            self.link_HACCXYZ,
            self.leading_root_LL,
        )
        return {name: tensor for name, tensor in zip(_TENSORS, values, strict=True) if tensor is not None}

    def whiten(self, stack_BFXYZ: Tensor, condition_B: Tensor, *, filler_BFXYZ: Tensor | None = None) -> Tensor:
        """u of normalised latents z.

        ``filler_BFXYZ`` is unit noise for the cells that never vary. They hold no brain and no decoder looks at them; as noise they
        are unit Gaussian like the others, and a network need not learn where the brain ends.
        """
        if self.mean_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ - self._pick(self.mean_KFXYZ, condition_B, stack_BFXYZ)
        if self.std_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ / self._pick(self.std_KFXYZ, condition_B, stack_BFXYZ)
        if self.course_root_PTT is not None:
            stack_BFXYZ = _along_time(stack_BFXYZ, self._inverse_courses)
        if self.link_HACCXYZ is not None:
            stack_BFXYZ = self._between_neighbours(separate, stack_BFXYZ, self.link_HACCXYZ)
        if self.mode_root_RTT is not None and self.rest_root_TT is not None:
            stack_BFXYZ = self._mix(stack_BFXYZ, *self._inverse_modes)
        if self.varying_FXYZ is not None and filler_BFXYZ is not None:
            stack_BFXYZ = torch.where(self.varying_FXYZ.to(stack_BFXYZ.device) > 0.5, stack_BFXYZ, filler_BFXYZ)
        return stack_BFXYZ

    def unwhiten(self, stack_BFXYZ: Tensor, condition_B: Tensor) -> Tensor:
        """z of u."""
        if self.mode_root_RTT is not None and self.rest_root_TT is not None:
            stack_BFXYZ = self._mix(stack_BFXYZ, self.mode_root_RTT, self.rest_root_TT, self.leading_root_LL)
        if self.link_HACCXYZ is not None:
            stack_BFXYZ = self._between_neighbours(blend, stack_BFXYZ, self.link_HACCXYZ)
        if self.course_root_PTT is not None:
            stack_BFXYZ = _along_time(stack_BFXYZ, self.course_root_PTT)
        if self.std_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ * self._pick(self.std_KFXYZ, condition_B, stack_BFXYZ)
        if self.mean_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ + self._pick(self.mean_KFXYZ, condition_B, stack_BFXYZ)
        return stack_BFXYZ

    def beyond_modes(self, stack_BFXYZ: Tensor) -> Tensor:
        """What no mode holds of a stack; all of it if there are no modes.

        The modes are few directions among a hundred thousand, so a squared error hardly sees them and a short training gets them
        wrong; yet evoked responses live in them. Their distribution is known from the left-out subjects, so a preconditioned
        network is not asked (see `Objective.answer`).
        """
        if self.modes_RP is None or self.rest_root_TT is None:
            return stack_BFXYZ
        frames_BTP = frames_of(stack_BFXYZ.float(), len(self.rest_root_TT))
        modes_RP = self.modes_RP.to(frames_BTP)
        beyond_BTP = frames_BTP - (frames_BTP @ modes_RP.T) @ modes_RP
        return stack_of(beyond_BTP, stack_BFXYZ)

    def _mix(self, stack_BFXYZ: Tensor, mode_RTT: Tensor, rest_TT: Tensor, leading_LL: Tensor | None) -> Tensor:
        """Multiply the courses of modes by their matrices, and what no mode holds by another."""
        assert self.modes_RP is not None
        modes_RP, mode_RTT, rest_TT = (m.to(stack_BFXYZ) for m in (self.modes_RP, mode_RTT, rest_TT))
        n_frames = len(rest_TT)
        frames_BTP = frames_of(stack_BFXYZ, n_frames)
        course_BTR = frames_BTP @ modes_RP.T
        rest_BTP = rest_TT @ (frames_BTP - course_BTR @ modes_RP)
        mixed_BTR = torch.einsum("rst,btr->bsr", mode_RTT, course_BTR)
        if leading_LL is not None:
            n_leading = len(leading_LL) // n_frames
            leading_BL = rearrange(course_BTR[..., :n_leading], "b t r -> b (r t)") @ leading_LL.T.to(course_BTR)
            mixed_BTR[..., :n_leading] = rearrange(leading_BL, "b (r t) -> b t r", t=n_frames)
        return stack_of(rest_BTP + mixed_BTR @ modes_RP, stack_BFXYZ)

    @staticmethod
    def _between_neighbours(
        change: Callable[[Tensor, Tensor], Tensor], stack_BFXYZ: Tensor, link_HACCXYZ: Tensor
    ) -> Tensor:
        """Apply `blend` or `separate` to every frequency."""
        n_frequencies, _, n_channels = link_HACCXYZ.shape[:3]
        cosines_HT = torch.from_numpy(cosines(n_frequencies)).to(stack_BFXYZ)
        cells_BCTXYZ = rearrange(stack_BFXYZ, "b (c t) x y z -> b c t x y z", c=n_channels)
        cells_BHCXYZ = torch.einsum("ht,bctxyz->bhcxyz", cosines_HT, cells_BCTXYZ)
        changed_BHCXYZ = change(cells_BHCXYZ, link_HACCXYZ)
        return torch.einsum("ht,bhcxyz->bctxyz", cosines_HT, changed_BHCXYZ).flatten(1, 2)

    @cached_property
    def _inverse_courses(self) -> Tensor:
        """Inverses of ten thousand small matrices, for every instance the same."""
        assert self.course_root_PTT is not None
        return torch.linalg.inv(self.course_root_PTT)

    @cached_property
    def _inverse_modes(self) -> tuple[Tensor, Tensor, Tensor | None]:
        assert self.mode_root_RTT is not None
        assert self.rest_root_TT is not None
        leading_LL = None if self.leading_root_LL is None else torch.linalg.inv(self.leading_root_LL)
        return torch.linalg.inv(self.mode_root_RTT), torch.linalg.inv(self.rest_root_TT), leading_LL

    @staticmethod
    def _pick(table_KFXYZ: Tensor, condition_B: Tensor, like: Tensor) -> Tensor:
        return table_KFXYZ[condition_B.to(table_KFXYZ.device)].to(like.device, like.dtype)


_TENSORS = ("mean", "std", "modes", "mode_root", "rest_root", "varying", "course_root", "link", "leading_root")


def frames_of(stack_BFXYZ: Tensor, n_frames: int) -> Tensor:
    """Frames as vectors, (B, T, P), of stacks whose second axis is (c t)."""
    return rearrange(stack_BFXYZ, "b (c t) x y z -> b t (c x y z)", t=n_frames)


def stack_of(frames_BTP: Tensor, like_BFXYZ: Tensor) -> Tensor:
    """The inverse of `frames_of`, for a latent grid like another stack's."""
    x, y, z = like_BFXYZ.shape[2:]
    return rearrange(frames_BTP, "b t (c x y z) -> b (c t) x y z", x=x, y=y, z=z)


def _along_time(stack_BFXYZ: Tensor, matrix_PTT: Tensor) -> Tensor:
    """Multiply the course of each channel and cell by its own matrix."""
    frames_BTP = frames_of(stack_BFXYZ, matrix_PTT.shape[-1])
    return stack_of(torch.einsum("pst,btp->bsp", matrix_PTT.to(stack_BFXYZ), frames_BTP), stack_BFXYZ)


def symmetric_root(covariance: Tensor) -> Tensor:
    """Symmetric square roots (..., T, T), float32, of covariances; eigenvalues below 1e-4 of the mean one are raised to it."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = 1e-4 * values.mean(-1, keepdim=True).clamp_min(1e-12)
    return ((vectors * values.clamp_min(floor).sqrt().unsqueeze(-2)) @ vectors.transpose(-1, -2)).float()
