"""Condition prior: diffuse around a Gaussian that knows the condition instead of around zero.

The idea of PriorGrad (Lee et al. 2022) and Grad-TTS (Popov et al. 2021). The diffusion runs on whitened latents u, whose
prior is the unit Gaussian; training latents z of condition k are

``none``              z = u
``class_mean``        z = mean_k + u
``class_gaussian``    z = mean_k + std_k * u, with the elementwise standard deviation, shrunk towards the one pooled over conditions
``class_covariance``  z = mean_k + std_k * R A u, where R and A are linear maps, the same for all conditions

A is there because instances of a condition do not vary cell by cell but in modes that span the brain (networks, drift, the
strength of the response), each with its own course over the frames. It is kept small enough to be estimated from few instances
by taking space and time apart: orthonormal modes over channels and cells (principal components of single frames), a covariance
over time for each mode, and one for all that is left.

R gives every channel and cell p its own covariance over the frames, R_p R_p': signal is slow in some cells and nearly white in
others, and the GLM sees it, as the variance of an effect is that of a course along the regressor. R_p is also scaled such that what the
modes leave is equally large everywhere: a smooth channel is nearly whole in the modes, a rough one is not. With that scale
principal components are factor analysis, and draws vary as the latents do in every cell.

Axis legend: K conditions, F = C*T, X Y Z latent grid, B batch, T frames, P = C*X*Y*Z, R modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice

import torch
from einops import rearrange
from torch import Tensor

SHRINKAGE_INSTANCES = 32.0  # weight of the pooled variance, in instances
STD_FLOOR = 0.05  # in units of the pooled root-mean-square deviation
POWER_PASSES = (3, 2, 2, 2)  # passes of subspace iteration over the instances; R is scaled anew after each group
LEAST_SCALE = 0.05  # of a channel and cell: its own part of the standard deviation is not below
EXTRA_MODES = 8  # directions carried along in the iteration beside those asked for
N_FOLDS = 5  # groups of subjects that are left out in turn
BATCH_INSTANCES = 16  # instances in one matrix product


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
    course_root_PTT : Tensor or None
        R: a matrix over time for each channel and cell; None stands for unit matrices.
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

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, Tensor]) -> Prior:
        """The prior of stored tensors; see `tensors`."""
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
        if self.mode_root_RTT is not None and self.rest_root_TT is not None:
            stack_BFXYZ = self._mix(stack_BFXYZ, *self._inverse_modes)
        if self.varying_FXYZ is not None and filler_BFXYZ is not None:
            stack_BFXYZ = torch.where(self.varying_FXYZ.to(stack_BFXYZ.device) > 0.5, stack_BFXYZ, filler_BFXYZ)
        return stack_BFXYZ

    def unwhiten(self, stack_BFXYZ: Tensor, condition_B: Tensor) -> Tensor:
        """z of u."""
        if self.mode_root_RTT is not None and self.rest_root_TT is not None:
            stack_BFXYZ = self._mix(stack_BFXYZ, self.mode_root_RTT, self.rest_root_TT)
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

    def _mix(self, stack_BFXYZ: Tensor, mode_RTT: Tensor, rest_TT: Tensor) -> Tensor:
        """Multiply each mode's course by its matrix over time, and what no mode holds by another."""
        assert self.modes_RP is not None
        modes_RP, mode_RTT, rest_TT = (m.to(stack_BFXYZ) for m in (self.modes_RP, mode_RTT, rest_TT))
        n_frames = len(rest_TT)
        frames_BTP = frames_of(stack_BFXYZ, n_frames)
        course_BTR = frames_BTP @ modes_RP.T
        rest_BTP = rest_TT @ (frames_BTP - course_BTR @ modes_RP)
        mixed_BTP = rest_BTP + torch.einsum("rst,btr->bsr", mode_RTT, course_BTR) @ modes_RP
        return stack_of(mixed_BTP, stack_BFXYZ)

    @cached_property
    def _inverse_courses(self) -> Tensor:
        """Inverses of ten thousand small matrices, for every instance the same."""
        assert self.course_root_PTT is not None
        return torch.linalg.inv(self.course_root_PTT)

    @cached_property
    def _inverse_modes(self) -> tuple[Tensor, Tensor]:
        assert self.mode_root_RTT is not None
        assert self.rest_root_TT is not None
        return torch.linalg.inv(self.mode_root_RTT), torch.linalg.inv(self.rest_root_TT)

    @staticmethod
    def _pick(table_KFXYZ: Tensor, condition_B: Tensor, like: Tensor) -> Tensor:
        return table_KFXYZ[condition_B.to(table_KFXYZ.device)].to(like.device, like.dtype)


@dataclass(frozen=True)
class FittedPrior:
    """A prior, and those that training whitens with.

    Training latents look whiter under a prior that was fitted to them than new ones do, and a network trained on them would learn to
    undo that. So each subject is whitened with the prior that was fitted without the subject's fold (cross-fitting).

    Attributes
    ----------
    prior : Prior
        Of all training subjects: samples are drawn around it.
    without : dict of int to Prior
        The prior without each fold; empty if the kind needs none, or if there is one subject only.
    """

    prior: Prior
    without: dict[int, Prior] = field(default_factory=dict)

    def for_subject(self, number: int) -> Prior:
        """What to whiten a training subject with; ``number`` as given to `add_modes`."""
        return self.without.get(number % N_FOLDS, self.prior)

    def fold_tensors(self) -> dict[str, Tensor]:
        """What differs between the folds, to store: the modes."""
        return {str(k): prior.modes_RP for k, prior in self.without.items() if prior.modes_RP is not None}

    @classmethod
    def from_fold_tensors(cls, prior: Prior, tensors: Mapping[str, Tensor]) -> FittedPrior:
        """The inverse of `fold_tensors`; raises ValueError for tensors of another prior."""
        for modes_RP in tensors.values():
            if prior.modes_RP is None or modes_RP.shape != prior.modes_RP.shape:
                raise ValueError(f"modes of shape {tuple(modes_RP.shape)} do not fit the prior")
        return cls(prior, {int(k): replace(prior, modes_RP=modes_RP) for k, modes_RP in tensors.items()})


_TENSORS = ("mean", "std", "modes", "mode_root", "rest_root", "varying", "course_root")


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


def add_courses(
    prior: Prior,
    instances: Callable[[], Iterable[tuple[Tensor, int, int]]],
    n_frames: int,
    *,
    add_up: Callable[[Tensor], object] = lambda total: None,
) -> Prior:
    """Give a prior that has mean and standard deviation the covariance over time of each channel and cell.

    Parameters as for `add_modes`, which comes after it. Covariances are shrunk towards their mean over all that varies; cells that never
    vary get the unit matrix.
    """
    sums_PTT: Tensor | None = None
    count = torch.zeros((), dtype=torch.float64)
    for stack_FXYZ, condition, _ in instances():
        frames_TP = frames_of(prior.whiten(stack_FXYZ[None].float(), torch.tensor([condition])), n_frames)[0]
        if sums_PTT is None:
            sums_PTT = torch.zeros(frames_TP.shape[1], n_frames, n_frames)
        sums_PTT += torch.einsum("sp,tp->pst", frames_TP, frames_TP)
        count += 1
    assert sums_PTT is not None
    add_up(sums_PTT)
    add_up(count)
    own_PTT = sums_PTT.double() / count
    power_P = own_PTT.diagonal(dim1=1, dim2=2).mean(1)
    varies_P = power_P > 1e-6 * power_P.max()
    shared_TT = own_PTT[varies_P].mean(0)
    shrunk_PTT = (count * own_PTT + SHRINKAGE_INSTANCES * shared_TT) / (count + SHRINKAGE_INSTANCES)
    shrunk_PTT[~varies_P] = torch.eye(n_frames, dtype=torch.float64)
    return replace(prior, course_root_PTT=symmetric_root(shrunk_PTT))


def add_modes(
    prior: Prior,
    instances: Callable[[], Iterable[tuple[Tensor, int, int]]],
    n_modes: int,
    n_frames: int,
    *,
    add_up: Callable[[Tensor], object] = lambda total: None,
) -> FittedPrior:
    """Fit the modes of ``class_covariance`` to a prior that has mean and standard deviation.

    Parameters
    ----------
    prior : Prior
        ``class_gaussian``, from `MomentAccumulator`.
    instances : callable
        Returns an iterator over normalised latents (F, X, Y, Z), their condition and the number of their subject.
    n_modes : int
        R; fewer are kept if the latents have fewer dimensions.
    n_frames : int
        T.
    add_up : callable, optional
        Sums a tensor over ranks in place, when each of them iterates over a share of the instances.

    Returns
    -------
    FittedPrior
        Of kind ``class_covariance``, with R and A.

    Notes
    -----
    Subspace iteration (Halko et al. 2011, algorithm 4.4). Memory is six times P x R, and the instances' frames.

    Principal components vary more in the instances they were found in than in new ones, most where subjects are few, and what they
    leave varies less. So the modes are found again without each of ``N_FOLDS`` groups of subjects, and the covariances over time are those
    of the left-out subjects' courses along them, from largest to smallest mode (nonlinear shrinkage by cross-validation, Bartz 2016;
    with one split Lam 2016). So is what the modes leave of each channel and cell, by which R is scaled.
    """

    varying_P = _varying(prior, n_frames)
    n_varying = int(varying_P.sum())
    n_kept = min(n_modes, n_varying - 1)
    n_carried = min(n_kept + EXTRA_MODES, n_varying)
    batches = list(_white_batches(prior, instances, varying_P, n_frames))
    count_K = torch.zeros(N_FOLDS, dtype=torch.float64)
    for frames_BTP, fold in batches:
        count_K[fold] += len(frames_BTP)
    add_up(count_K)
    count, filled = count_K.sum(), [k for k in range(N_FOLDS) if count_K[k] > 0]
    if len(filled) < 2:  # one subject alone: nobody to leave out
        filled = []

    # One basis without each fold of subjects, and the last one of all of them.
    start_PR = torch.linalg.qr(torch.randn(n_varying, n_carried, generator=torch.Generator().manual_seed(0))).Q
    bases, scale_P = [start_PR] * (N_FOLDS + 1), torch.ones(n_varying)
    for n_passes in POWER_PASSES:
        for _ in range(n_passes):
            images = [torch.zeros_like(start_PR) for _ in bases]
            for frames_BTP, fold in batches:
                rows_NP = frames_BTP.flatten(0, 1) / scale_P
                for k in range(N_FOLDS + 1):
                    if k != fold:
                        images[k] += rows_NP.T @ (rows_NP @ bases[k])
            for total in images:
                add_up(total)
            bases = [torch.linalg.svd(image, full_matrices=False).U for image in images]
        *without, basis_PR = [basis_PR[:, :n_kept] for basis_PR in bases]
        if not filled:
            without = [basis_PR] * N_FOLDS

        mode_RTT = torch.zeros(n_kept, n_frames, n_frames, dtype=torch.float64)
        all_TT = torch.zeros(n_frames, n_frames, dtype=torch.float64)
        power_P, rest_P = torch.zeros(2, n_varying, dtype=torch.float64)
        for frames_BTP, fold in batches:
            scaled_BTP = frames_BTP / scale_P
            course_BTR = scaled_BTP @ without[fold]
            mode_RTT += torch.einsum("bsr,btr->rst", course_BTR, course_BTR)
            all_TT += torch.einsum("bsp,btp->st", scaled_BTP, scaled_BTP)
            power_P += scaled_BTP.square().mean(1).sum(0)
            rest_P += (scaled_BTP - course_BTR @ without[fold].T).square().mean(1).sum(0)
        for total in (mode_RTT, all_TT, power_P, rest_P):
            add_up(total)
        rest_TT = (all_TT - mode_RTT.sum(0)) / max(1, n_varying - n_kept)
        used_P = scale_P
        scale_P = (scale_P * (rest_P / count).sqrt().float()).clamp_min(LEAST_SCALE)

    # The last scale is the one that the modes belong to, and makes draws vary as much as the latents.
    weight_PR = basis_PR.double().square()
    drawn_P = weight_PR @ mode_RTT.diagonal(dim1=1, dim2=2).mean(1) + (1 - weight_PR.sum(1)) * rest_TT.diagonal().mean()
    scale_P = used_P * (power_P / drawn_P).sqrt().float()

    def whole(basis_PR: Tensor) -> Tensor:
        modes_RP = torch.zeros(n_kept, len(varying_P))
        modes_RP[:, varying_P] = basis_PR.T
        return modes_RP

    scale_of_all_P = torch.ones(len(varying_P))
    scale_of_all_P[varying_P] = scale_P
    fitted = replace(
        _scaled(prior, scale_of_all_P, n_frames), kind="class_covariance", modes_RP=whole(basis_PR),
        mode_root_RTT=symmetric_root(mode_RTT / count), rest_root_TT=symmetric_root(rest_TT / count),
    )  # fmt: skip
    return FittedPrior(fitted, {k: replace(fitted, modes_RP=whole(without[k])) for k in filled})


def _white_batches(
    prior: Prior, instances: Callable[[], Iterable[tuple[Tensor, int, int]]], varying_P: Tensor, n_frames: int
) -> Iterator[tuple[Tensor, int]]:
    """Frames (B, T, P) that varying elements have under a prior without modes, each batch from one fold of subjects."""
    for fold, group in groupby(instances(), key=lambda instance: instance[2] % N_FOLDS):
        while part := list(islice(group, BATCH_INSTANCES)):
            stack_BFXYZ = torch.stack([stack.float() for stack, _, _ in part])
            white_BFXYZ = prior.whiten(stack_BFXYZ, torch.tensor([condition for _, condition, _ in part]))
            yield frames_of(white_BFXYZ, n_frames)[:, :, varying_P].contiguous(), fold


def _scaled(prior: Prior, scale_P: Tensor, n_frames: int) -> Prior:
    """A prior with R times a number for each channel and cell."""
    root_PTT = prior.course_root_PTT
    if root_PTT is None:
        root_PTT = torch.eye(n_frames).repeat(len(scale_P), 1, 1)
    return replace(prior, course_root_PTT=root_PTT * scale_P[:, None, None])


def _varying(prior: Prior, n_frames: int) -> Tensor:
    """Which elements of a frame vary at all, bool (P,)."""
    assert prior.varying_FXYZ is not None
    return frames_of(prior.varying_FXYZ[None], n_frames)[0].amax(0) > 0.5


def symmetric_root(covariance: Tensor) -> Tensor:
    """Symmetric square roots (..., T, T), float32, of covariances; eigenvalues below 1e-4 of the mean one are raised to it."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = 1e-4 * values.mean(-1, keepdim=True).clamp_min(1e-12)
    return ((vectors * values.clamp_min(floor).sqrt().unsqueeze(-2)) @ vectors.transpose(-1, -2)).float()


class MomentAccumulator:
    """Per-condition sums of latents, one instance at a time: memory does not grow with the cohort."""

    def __init__(self, n_conditions: int, shape: tuple[int, ...]) -> None:
        self.count_K = torch.zeros(n_conditions, dtype=torch.float64)
        self.sum = torch.zeros(n_conditions, *shape, dtype=torch.float64)
        self.sum_of_squares = torch.zeros(n_conditions, *shape, dtype=torch.float64)

    def add(self, stack_FXYZ: Tensor, condition: int) -> None:
        """Add one normalised instance."""
        value = stack_FXYZ.double()
        self.count_K[condition] += 1
        self.sum[condition] += value
        self.sum_of_squares[condition] += value.square()

    def mean(self) -> Tensor:
        """Mean per condition, (K, ...), float64."""
        return self.sum / self._counts()

    def variance(self) -> Tensor:
        """Variance per condition around its own mean, (K, ...), float64."""
        return (self.sum_of_squares / self._counts() - self.mean().square()).clamp_min(0)

    def prior(self, kind: str) -> Prior:
        """Finish the statistics as a `Prior`: of its kind, or ``class_gaussian``, which `add_modes` makes ``class_covariance``."""
        if kind == "none":
            return Prior()
        mean = self.mean()
        if kind == "class_mean":
            return Prior(kind, mean.float())
        counts = self._counts()
        variance = self.variance()
        pooled = (counts * variance).sum(0) / counts.sum()
        shrunk = (counts * variance + SHRINKAGE_INSTANCES * pooled) / (counts + SHRINKAGE_INSTANCES)
        floor = STD_FLOOR * pooled.mean().sqrt().clamp_min(1e-6)
        varying = (pooled > 1e-8 * pooled.mean()).float()
        return Prior("class_gaussian", mean.float(), shrunk.sqrt().clamp_min(floor).float(), varying_FXYZ=varying)

    def _counts(self) -> Tensor:
        return self.count_K.clamp_min(1).reshape(-1, *[1] * (self.sum.ndim - 1))
