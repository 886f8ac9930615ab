"""Condition prior: diffuse around a Gaussian that knows the condition instead of around zero.

The idea of PriorGrad (Lee et al. 2022) and Grad-TTS (Popov et al. 2021). The diffusion runs on whitened latents u, whose
prior is the unit Gaussian; training latents z of condition k are

``none``              z = u
``class_mean``        z = mean_k + u
``class_gaussian``    z = mean_k + std_k * u, with the elementwise standard deviation, shrunk towards the one pooled over conditions
``class_covariance``  z = mean_k + D_k R C_k A K u, where R, A and K are linear maps, the same for all conditions

R, A and K are taken apart by temporal frequency (`data.cosines`): a block is short and nearly stationary, so frequencies hardly vary
together, and one needs fewer numbers for each than for all frames at once.

D_k and C_k are how conditions differ in more than their mean. Instances of a condition differ most where it responds, each person in an
own way: in every channel and cell D_k multiplies what goes along the course of the response by a number. And people respond more or less
strongly as a whole, so instances of a condition vary most along its own response, where those of another may hardly vary at all: C_k
multiplies what the modes hold of a few directions by a matrix.

K makes noise as large as what is new in each channel and cell, and blends neighbouring cells (`neighbours`).

A gives what spans the brain its covariance. Instances of a condition do not vary cell by cell but in modes (networks, drift, the
strength of the response): orthonormal patterns over channels and cells, principal components of single frames. A multiplies the values
along them by a matrix at each frequency, for a network is no single mode, at some frequencies still less than at others, but some modes
that go together. What no mode holds stays as K made it. (How loud the modes are differs from block to block: see `Prior.draw_scales`.)

R gives every channel and cell p its own covariance of the frequencies, R_p R_p': signal is slow in some cells and nearly white in
others, and the GLM sees it, as the variance of an effect is that of a course along the regressor. What
frequencies have in common is there, too.

Here is what a prior does; `prior_fit`, with `mode_fit`, `response_fit` and `rest_fit`, estimates one.

Axis legend: K conditions, F = C*T, X Y Z latent grid, B batch, T frames, H temporal frequencies, A offsets between cells,
P = C*X*Y*Z, R modes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
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
    mode_gain_HRR : Tensor or None
        A: symmetric matrices that multiply the values along the modes; None stands for unit matrices.
    unasked_RP : Tensor or None
        Orthonormal rows: where in u nearly all that the modes show comes from.
    course_root_PHH : Tensor or None
        R: a matrix over frequencies for each channel and cell; None stands for a prior without R, A and K.
    new_HP : Tensor or None
        K: standard deviation of what is new in each channel and cell; None stands for 1.
    link_HACCXYZ : Tensor or None
        K: what a channel of a cell has from those before it, per temporal frequency; None stands for nothing.
    response_weight_SHR : Tensor or None
        Weights of the values along the modes, at all frequencies, whose sums say how strong responses are.
    response_load_SHR : Tensor or None
        What a unit of each of these sums is in the values along the modes; weights times loads is the unit matrix.
    response_gain_KSS : Tensor or None
        C_k: symmetric matrices that multiply the sums.
    response_course_KT : Tensor or None
        D_k: the course of each condition's mean response, of unit length and mean 0; None stands for a prior without D_k.
    response_spread_KP : Tensor or None
        D_k: what multiplies the part of a channel's and cell's course along it.
    scale_spread_H : Tensor or None
        Standard deviation of the logarithm of how loud the modes are in a block, beyond chance; None stands for 0.
    varying_FXYZ : Tensor or None
        1 where training latents differ, 0 where they are nearly constant (cells with hardly any brain); None stands for 1.
    """

    kind: str = "none"
    mean_KFXYZ: Tensor | None = None
    std_KFXYZ: Tensor | None = None
    modes_RP: Tensor | None = None
    mode_gain_HRR: Tensor | None = None
    varying_FXYZ: Tensor | None = None
    course_root_PHH: Tensor | None = None
    new_HP: Tensor | None = None
    link_HACCXYZ: Tensor | None = None
    unasked_RP: Tensor | None = None
    response_weight_SHR: Tensor | None = None
    response_load_SHR: Tensor | None = None
    response_gain_KSS: Tensor | None = None
    response_course_KT: Tensor | None = None
    response_spread_KP: Tensor | None = None
    scale_spread_H: Tensor | None = None

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, Tensor]) -> Prior:
        """The prior of stored tensors; see `tensors`. Raises FmrisynthError for values that no fit gives."""
        link_HACCXYZ = tensors.get("link")
        sound = all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        sound = sound and (link_HACCXYZ is None or is_sound(link_HACCXYZ))
        gains = (tensors[name].float() for name in ("mode_gain", "response_gain") if name in tensors)
        sound = sound and not any(bool(torch.linalg.cholesky_ex(gain).info.any()) for gain in gains)
        scales = (tensors[name] for name in ("new", "response_spread") if name in tensors)
        if not sound or any(float(scale.min()) <= 0 for scale in scales):
            raise FmrisynthError("the prior's file holds values that no fit gives; it is damaged, copy it again.")
        return cls(kind, **{attribute: tensors.get(name) for attribute, name in _tensor_names().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to store beside the weights, by the names of their attributes without axes."""
        values = {name: getattr(self, attribute) for attribute, name in _tensor_names().items()}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def whiten(self, stack_BFXYZ: Tensor, condition_B: Tensor, *, filler_BFXYZ: Tensor | None = None) -> Tensor:
        """u of normalised latents z.

        ``filler_BFXYZ`` is unit noise for the cells that never vary. They hold no brain and no decoder looks at them; as noise they
        are unit Gaussian like the others, and a network need not learn where the brain ends.
        """
        if self.mean_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ - self._pick(self.mean_KFXYZ, condition_B, stack_BFXYZ)
        if self.std_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ / self._pick(self.std_KFXYZ, condition_B, stack_BFXYZ)
        stack_BFXYZ = self.along_response_course(stack_BFXYZ, condition_B, inverse=True)
        if self.course_root_PHH is not None:
            values_BHP = frequencies_of(stack_BFXYZ, self.course_root_PHH.shape[-1])
            values_BHP = _multiply(self._inverse_courses, values_BHP)
            if self.response_gain_KSS is not None:
                values_BHP = self._along_responses(values_BHP, self._inverse_response_gain[condition_B.cpu()])
            if self.mode_gain_HRR is not None:
                values_BHP = self._along_modes(values_BHP, self._inverse_gain)
            if self.link_HACCXYZ is not None:
                values_BHP = _between_neighbours(separate, values_BHP, self.link_HACCXYZ)
            if self.new_HP is not None:
                values_BHP = values_BHP / self.new_HP.to(values_BHP)
            stack_BFXYZ = stack_of(values_BHP, stack_BFXYZ)
        if self.varying_FXYZ is not None and filler_BFXYZ is not None:
            stack_BFXYZ = torch.where(self.varying_FXYZ.to(stack_BFXYZ.device) > 0.5, stack_BFXYZ, filler_BFXYZ)
        return stack_BFXYZ

    def draw_scales(self, generator: torch.Generator) -> Tensor | None:
        """How loud the modes of one sample are at each frequency, (H,); None where all are alike.

        Blocks differ more in how much they vary than Gaussians of one covariance do: at just this frequency one person breathes, another
        moves. So a sample's values along the modes are multiplied by log-normal numbers of mean square 1, which leave covariances as they
        are (a Gaussian scale mixture, Wainwright and Simoncelli 2000). Whitening does not take them out.
        """
        if self.scale_spread_H is None:
            return None
        spread_H = self.scale_spread_H.cpu()
        return (spread_H * torch.randn(len(spread_H), generator=generator) - spread_H.square()).exp()

    def unwhiten(
        self,
        stack_BFXYZ: Tensor,
        condition_B: Tensor,
        *,
        noise_BFXYZ: Tensor | None = None,
        scale_BH: Tensor | None = None,
    ) -> Tensor:
        """z of u, with `draw_scales` if given.

        ``noise_BFXYZ`` is the noise that a sampler turned into u. Where a network is not asked (`beyond_modes`) the two are equal, but
        that is one set of directions for all frequencies, and what the modes show comes from slightly other ones at each. With the noise
        given, the modes show exactly what they show of it.
        """
        if self.course_root_PHH is not None:
            values_BHP = self._colour(stack_BFXYZ)
            if noise_BFXYZ is not None and self.modes_RP is not None:
                modes_RP = self.modes_RP.to(values_BHP)
                values_BHP = values_BHP + ((self._colour(noise_BFXYZ) - values_BHP) @ modes_RP.T) @ modes_RP
            if self.mode_gain_HRR is not None:
                values_BHP = self._along_modes(values_BHP, self.mode_gain_HRR, scale_BH)
            if self.response_gain_KSS is not None:
                values_BHP = self._along_responses(values_BHP, self.response_gain_KSS[condition_B.cpu()])
            stack_BFXYZ = stack_of(_multiply(self.course_root_PHH, values_BHP), stack_BFXYZ)
        stack_BFXYZ = self.along_response_course(stack_BFXYZ, condition_B)
        if self.std_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ * self._pick(self.std_KFXYZ, condition_B, stack_BFXYZ)
        if self.mean_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ + self._pick(self.mean_KFXYZ, condition_B, stack_BFXYZ)
        return stack_BFXYZ

    def along_response_course(self, stack_BFXYZ: Tensor, condition_B: Tensor, *, inverse: bool = False) -> Tensor:
        """D_k, or its inverse."""
        if self.response_spread_KP is None or self.response_course_KT is None:
            return stack_BFXYZ
        course_BT = self._pick(self.response_course_KT, condition_B, stack_BFXYZ)
        factor_BP = self._pick(self.response_spread_KP, condition_B, stack_BFXYZ)
        factor_BP = 1 / factor_BP if inverse else factor_BP
        along_BP = torch.einsum("bt,btp->bp", course_BT, frames_of(stack_BFXYZ, course_BT.shape[1]))
        return stack_BFXYZ + _stack(course_BT[:, :, None] * ((factor_BP - 1) * along_BP)[:, None], stack_BFXYZ)

    def beyond_modes(self, stack_BFXYZ: Tensor) -> Tensor:
        """What has no part in the modes of a whitened stack; all of it if there are no modes.

        The modes are few directions among a hundred thousand, so a squared error hardly sees them and a short training gets them
        wrong; yet evoked responses live in them. Their distribution is known from the left-out subjects, so a preconditioned
        network is not asked (see `Objective.answer`).
        """
        if self.unasked_RP is None or self.course_root_PHH is None:
            return stack_BFXYZ
        values_BHP = frequencies_of(stack_BFXYZ.float(), self.course_root_PHH.shape[-1])
        unasked_RP = self.unasked_RP.to(values_BHP)
        return stack_of(values_BHP - (values_BHP @ unasked_RP.T) @ unasked_RP, stack_BFXYZ)

    def _colour(self, stack_BFXYZ: Tensor) -> Tensor:
        """K u at each frequency, (B, H, P)."""
        assert self.course_root_PHH is not None
        values_BHP = frequencies_of(stack_BFXYZ, self.course_root_PHH.shape[-1])
        if self.new_HP is not None:
            values_BHP = values_BHP * self.new_HP.to(values_BHP)
        if self.link_HACCXYZ is not None:
            values_BHP = _between_neighbours(blend, values_BHP, self.link_HACCXYZ)
        return values_BHP

    def _along_modes(self, values_BHP: Tensor, gain_HRR: Tensor, scale_BH: Tensor | None = None) -> Tensor:
        """Multiply the values along the modes by a matrix at each frequency, and by a number for each instance."""
        assert self.modes_RP is not None
        modes_RP, gain_HRR = self.modes_RP.to(values_BHP), gain_HRR.to(values_BHP)
        along_BHR = values_BHP @ modes_RP.T
        gained_BHR = torch.einsum("hrs,bhs->bhr", gain_HRR, along_BHR)
        if scale_BH is not None:
            gained_BHR = scale_BH.to(gained_BHR)[..., None] * gained_BHR
        return values_BHP + (gained_BHR - along_BHR) @ modes_RP

    def _along_responses(self, values_BHP: Tensor, gain_BSS: Tensor) -> Tensor:
        """Multiply how strong responses are by a matrix for each instance."""
        assert self.modes_RP is not None
        assert self.response_weight_SHR is not None
        assert self.response_load_SHR is not None
        modes_RP, gain_BSS = self.modes_RP.to(values_BHP), gain_BSS.to(values_BHP)
        weight_SHR, load_SHR = self.response_weight_SHR.to(values_BHP), self.response_load_SHR.to(values_BHP)
        strength_BS = torch.einsum("shr,bhr->bs", weight_SHR, values_BHP @ modes_RP.T)
        more_BS = torch.einsum("bst,bt->bs", gain_BSS, strength_BS) - strength_BS
        return values_BHP + torch.einsum("bs,shr->bhr", more_BS, load_SHR) @ modes_RP

    @cached_property
    def _inverse_courses(self) -> Tensor:
        """Inverses of ten thousand small matrices, for every instance the same."""
        assert self.course_root_PHH is not None
        return torch.linalg.inv(self.course_root_PHH)

    @cached_property
    def _inverse_gain(self) -> Tensor:
        assert self.mode_gain_HRR is not None
        return symmetric_inverse(self.mode_gain_HRR)

    @cached_property
    def _inverse_response_gain(self) -> Tensor:
        assert self.response_gain_KSS is not None
        return symmetric_inverse(self.response_gain_KSS)

    @staticmethod
    def _pick(table: Tensor, condition_B: Tensor, like: Tensor) -> Tensor:
        return table[condition_B.to(table.device)].to(like.device, like.dtype)


def _tensor_names() -> dict[str, str]:
    """The attributes of a `Prior` that are tensors, and their names without axes."""
    return {field.name: field.name.rpartition("_")[0] for field in fields(Prior) if field.name != "kind"}


def frequencies_of(stack_BFXYZ: Tensor, n_frames: int) -> Tensor:
    """Each channel and cell at each temporal frequency, (B, H, P), of stacks whose second axis is (c t)."""
    frames_BTP = frames_of(stack_BFXYZ, n_frames)
    return torch.from_numpy(cosines(n_frames)).to(frames_BTP) @ frames_BTP


def stack_of(values_BHP: Tensor, like_BFXYZ: Tensor) -> Tensor:
    """The inverse of `frequencies_of`, for a latent grid like another stack's."""
    return _stack(torch.from_numpy(cosines(values_BHP.shape[1])).to(values_BHP).T @ values_BHP, like_BFXYZ)


def frames_of(stack_BFXYZ: Tensor, n_frames: int) -> Tensor:
    """Each channel and cell at each frame, (B, T, P), of stacks whose second axis is (c t)."""
    return rearrange(stack_BFXYZ, "b (c t) x y z -> b t (c x y z)", t=n_frames)


def _stack(frames_BTP: Tensor, like_BFXYZ: Tensor) -> Tensor:
    x, y, z = like_BFXYZ.shape[2:]
    return rearrange(frames_BTP, "b t (c x y z) -> b (c t) x y z", x=x, y=y, z=z)


def _multiply(matrix_PHH: Tensor, values_BHP: Tensor) -> Tensor:
    """Each channel and cell times its own matrix."""
    return torch.einsum("pgh,bhp->bgp", matrix_PHH.to(values_BHP), values_BHP)


def _between_neighbours(change: Callable[[Tensor, Tensor], Tensor], values_BHP: Tensor, link_HACCXYZ: Tensor) -> Tensor:
    """Apply `blend` or `separate`."""
    cells_BHCXYZ = values_BHP.unflatten(2, (link_HACCXYZ.shape[2], *link_HACCXYZ.shape[4:]))
    return change(cells_BHCXYZ, link_HACCXYZ).flatten(2)


def symmetric_root(covariance: Tensor) -> Tensor:
    """Symmetric square roots (..., N, N), float32, of covariances; eigenvalues below 1e-4 of the mean one are raised to it."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = 1e-4 * values.mean(-1, keepdim=True).clamp_min(1e-12)
    return ((vectors * values.clamp_min(floor).sqrt().unsqueeze(-2)) @ vectors.transpose(-1, -2)).float()


def symmetric_inverse(matrix: Tensor) -> Tensor:
    """Inverses of symmetric positive definite matrices (..., N, N), of their type.

    By Cholesky: `torch.linalg.inv` of a batch of more than about 128 rows fails on a CPU where it has several threads (PyTorch 2.13 with oneMKL 2024.2).
    """
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
