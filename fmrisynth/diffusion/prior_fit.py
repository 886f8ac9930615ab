"""Estimating a `Prior` from training latents: moments per condition, courses of cells, and cross-fitted modes.

Axis legend: K conditions or folds, F = C*T, X Y Z latent grid, B batch, N = B*T, T frames, H temporal frequencies,
P = C*X*Y*Z, R modes,
L leading modes and frequencies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import torch
from einops import rearrange
from torch import Tensor

from fmrisynth.data.cosines import cosines
from fmrisynth.diffusion.prior import Prior, frames_of, symmetric_root
from fmrisynth.diffusion.rest_fit import SHRINKAGE_INSTANCES, Rest, RestMoments

STD_FLOOR = 0.05  # in units of the pooled root-mean-square deviation
POWER_PASSES = (3, 2, 2, 2)  # passes of subspace iteration over the instances; R is scaled anew after each group
EXTRA_MODES = 8  # directions carried along in the iteration beside those asked for
LEADING_NUMBERS = 768  # modes x frames that vary together: 64 modes of 12 frames; the other modes vary each on its own
MODE_SHRINKAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of independence to choose from
N_FOLDS = 5  # groups of subjects that are left out in turn
N_PROBES = 512  # frames of random signs from which the variance of blended noise is found
BATCH_INSTANCES = 16  # instances in one matrix product

Instances = Callable[[], Iterable[tuple[Tensor, int, int]]]
"""Starts an iteration over normalised latents (F, X, Y, Z), their condition and the number of their subject."""

AddUp = Callable[[Tensor], object]
"""Sums a tensor over ranks in place."""

Batches = Sequence[tuple[Tensor, int]]
"""Whitened values (B, H, P) of the elements that vary, and the fold of their subjects."""


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


def add_courses(
    prior: Prior,
    instances: Instances,
    n_frames: int,
    *,
    add_up: AddUp = lambda total: None,
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
    instances: Instances,
    n_modes: int,
    n_frames: int,
    *,
    add_up: AddUp = lambda total: None,
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
        Of kind ``class_covariance``, with R, K and A.

    Notes
    -----
    Subspace iteration (Halko et al. 2011, algorithm 4.4). Memory is six times P x R, and twice the instances' frames.

    Principal components vary more in the instances they were found in than in new ones, most where subjects are few, and what they
    leave varies less. So the modes are found again without each of ``N_FOLDS`` groups of subjects, and the covariances over time are those
    of the left-out subjects' courses along them, from largest to smallest mode (nonlinear shrinkage by cross-validation, Bartz 2016;
    with one split Lam 2016). So is what the modes leave (`rest_fit`), from which the scale of R and K
    come: in turn with the modes, each a step towards what leaves white noise.
    """
    assert prior.varying_FXYZ is not None
    varying_CXYZ = prior.varying_FXYZ.unflatten(0, (-1, n_frames)).amax(1) > 0.5
    varying_P = varying_CXYZ.flatten()
    batches = list(_white_batches(prior, instances, varying_P, n_frames))
    count_K = torch.zeros(N_FOLDS, dtype=torch.float64)
    for values_BHP, fold in batches:
        count_K[fold] += len(values_BHP)
    add_up(count_K)
    filled = [k for k in range(N_FOLDS) if count_K[k] > 0]
    if len(filled) < 2:  # one subject alone: nobody to leave out
        filled = []

    n_varying = int(varying_P.sum())
    n_kept = min(n_modes, n_varying - 1)
    n_carried = min(n_kept + EXTRA_MODES, n_varying)
    start_PR = torch.linalg.qr(torch.randn(n_varying, n_carried, generator=torch.Generator().manual_seed(0))).Q
    bases, rest = [start_PR] * (N_FOLDS + 1), Rest.white(varying_CXYZ, n_frames)
    for n_passes in POWER_PASSES:
        used = rest
        white_batches = [(used.separate(values_BHP), fold) for values_BHP, fold in batches]
        for _ in range(n_passes):
            bases = _power_pass(white_batches, bases, add_up)
        *without, basis_PR = [basis_PR[:, :n_kept] for basis_PR in bases]
        if not filled:
            without = [basis_PR] * N_FOLDS
        found, rest = _left_out_moments(batches, white_batches, without, basis_PR, used, count_K, add_up)
    n_leading = min(n_kept, max(1, LEADING_NUMBERS // n_frames))
    without = [_aligned(fold_PR, basis_PR, n_leading) for fold_PR in without]
    leading_LL = _leading_moments(white_batches, without, n_leading, count_K, add_up)
    courses = _with_courses_of_latents(prior, found, leading_LL, basis_PR, used, float(count_K.sum()))

    def whole(basis_PR: Tensor) -> Tensor:
        modes_RP = torch.zeros(n_kept, len(varying_P))
        modes_RP[:, varying_P] = basis_PR.T
        return modes_RP

    mode_RTT, rest_TT = _in_time(found.mode_RHH), _in_time(found.rest_HH)
    cosines_LL = torch.block_diag(*[torch.from_numpy(cosines(n_frames))] * n_leading)
    fitted = replace(
        courses, kind="class_covariance", modes_RP=whole(basis_PR), link_HACCXYZ=used.link_HACDXYZ,
        mode_root_RTT=symmetric_root(mode_RTT), rest_root_TT=symmetric_root(rest_TT),
        leading_root_LL=symmetric_root(cosines_LL.T @ leading_LL @ cosines_LL),
    )  # fmt: skip
    return FittedPrior(fitted, {k: replace(fitted, modes_RP=whole(without[k])) for k in filled})


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


@dataclass(frozen=True)
class _Moments:
    """Second moments per instance of left-out subjects' values, along the modes and beside them.

    Attributes
    ----------
    mode_RHH, rest_HH : Tensor
        Covariances of the frequencies: of each mode, and of what the modes leave (mean over the other directions).
    own_PHH : Tensor
        Covariance of the frequencies of each element, in units of the rest's scale.
    """

    mode_RHH: Tensor
    rest_HH: Tensor
    own_PHH: Tensor

    def drawn_by(self, leading_LL: Tensor, basis_PR: Tensor, rest: Rest) -> Tensor:
        """Covariance (P, H, H) of each element in draws with these covariances along and beside a basis, after K."""
        n_frequencies = len(self.rest_HH)
        n_leading = len(leading_LL) // n_frequencies

        def blended(values_NP: Tensor) -> Iterator[tuple[slice, Tensor]]:
            for start in range(0, len(values_NP), BATCH_INSTANCES):
                part = slice(start, start + BATCH_INSTANCES)
                values_BHP = values_NP[part, None].expand(-1, n_frequencies, -1)
                yield part, rest.blend(values_BHP)[:, :, rest.varying_CXYZ]

        drawn_PHH = torch.zeros(len(basis_PR), n_frequencies, n_frequencies, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        signs_NP = torch.randint(0, 2, (N_PROBES, len(basis_PR)), generator=generator) * 2.0 - 1
        for _, noise_BHP in blended(signs_NP):  # random signs have the covariance of noise
            drawn_PHH += torch.einsum("bhp,bgp->phg", noise_BHP, noise_BHP) / N_PROBES * self.rest_HH
        more_RHH = (self.mode_RHH - self.rest_HH).float()
        more_RHH[:n_leading] = -self.rest_HH.float()
        for part, mode_BHP in blended(basis_PR.T):
            drawn_PHH += torch.einsum("bhp,bhgp->phg", mode_BHP, more_RHH[part, ..., None] * mode_BHP[:, None])
        leading_RHP = torch.cat([mode_BHP for _, mode_BHP in blended(basis_PR[:, :n_leading].T)])
        leading_HHRR = rearrange(leading_LL, "(r h) (s g) -> h g r s", h=n_frequencies, g=n_frequencies).float()
        for h, g in itertools.product(range(n_frequencies), repeat=2):
            drawn_PHH[:, h, g] += (leading_RHP[:, h] * (leading_HHRR[h, g] @ leading_RHP[:, g])).sum(0)
        return drawn_PHH


def _left_out_moments(
    batches: Batches,
    white_batches: Batches,
    without: list[Tensor],
    basis_PR: Tensor,
    rest: Rest,
    count_K: Tensor,
    add_up: AddUp,
) -> tuple[_Moments, Rest]:
    """Moments of every subject's values along the basis (P, R) that was found without the subject's fold, and what they say of the rest."""
    n_frequencies, n_varying = rest.scale_HP.shape
    n_kept, count = basis_PR.shape[1], count_K.sum()
    mode_RHH = torch.zeros(n_kept, n_frequencies, n_frequencies, dtype=torch.float64)
    all_HH = torch.zeros(n_frequencies, n_frequencies, dtype=torch.float64)
    own_PHH = torch.zeros(n_varying, n_frequencies, n_frequencies, dtype=torch.float64)
    beside = RestMoments(rest)
    for (values_BHP, fold), (white_BHP, _) in zip(batches, white_batches, strict=True):
        scaled_BHP = values_BHP / rest.scale_HP
        course_BHR = white_BHP @ without[fold]
        mode_RHH += torch.einsum("bgr,bhr->rgh", course_BHR, course_BHR)
        all_HH += torch.einsum("bgp,bhp->gh", white_BHP, white_BHP)
        own_PHH += torch.einsum("bgp,bhp->pgh", scaled_BHP, scaled_BHP)
        beside.add(white_BHP - course_BHR @ without[fold].T, fold)
    for total in (mode_RHH, all_HH, own_PHH):
        add_up(total)
    beside.add_up(add_up)
    rest_HH = (all_HH - mode_RHH.sum(0)) / max(1, n_varying - n_kept) / count
    moments = _Moments(mode_RHH / count, rest_HH, own_PHH / count)
    return moments, beside.update(basis_PR, rest_HH.diagonal(), count_K)


def _aligned(fold_PR: Tensor, basis_PR: Tensor, n_leading: int) -> Tensor:
    """A fold's basis with its leading modes turned towards those of all subjects (Schoenemann 1966): a covariance between modes needs the same ones."""
    turn = torch.linalg.svd(fold_PR[:, :n_leading].T @ basis_PR[:, :n_leading])
    return torch.cat([fold_PR[:, :n_leading] @ (turn.U @ turn.Vh), fold_PR[:, n_leading:]], dim=1)


def _leading_moments(
    white_batches: Batches, without: list[Tensor], n_leading: int, count_K: Tensor, add_up: AddUp
) -> Tensor:
    """Covariance (L, L) of the leading modes' courses in subjects who had no part in finding them, (r h) in order.

    It is shrunk towards modes that are independent of each other, as is best for predicting each fold from the others.
    """
    n_frequencies = white_batches[0][0].shape[1]
    sums_KLL = torch.zeros(N_FOLDS, *[n_leading * n_frequencies] * 2, dtype=torch.float64)
    for white_BHP, fold in white_batches:
        course_BL = rearrange(white_BHP @ without[fold][:, :n_leading], "b h r -> b (r h)").double()
        sums_KLL[fold] += course_BL.T @ course_BL
    add_up(sums_KLL)
    same_mode_LL = torch.block_diag(*[torch.ones(n_frequencies, n_frequencies)] * n_leading)

    def shrunk(total_LL: Tensor, count: Tensor, share: float) -> Tensor:
        covariance_LL = total_LL / count
        floor_LL = 1e-4 * covariance_LL.diagonal().mean() * torch.eye(len(covariance_LL))
        return (1 - share) * covariance_LL + share * covariance_LL * same_mode_LL + floor_LL

    total_LL, count = sums_KLL.sum(0), count_K.sum()
    filled = [k for k in range(N_FOLDS) if 0 < count_K[k] < count]

    def surprise(share: float) -> float:
        """Negative log-likelihood of all folds."""
        total = 0.0
        for k in filled:
            root_LL = torch.linalg.cholesky(shrunk(total_LL - sums_KLL[k], count - count_K[k], share))
            total += float(count_K[k] * root_LL.diagonal().log().sum())
            total += float(torch.cholesky_solve(sums_KLL[k], root_LL).trace()) / 2
        return total

    return shrunk(total_LL, count, min(MODE_SHRINKAGES, key=surprise) if filled else 1.0)


def _white_batches(
    prior: Prior, instances: Instances, varying_P: Tensor, n_frames: int
) -> Iterator[tuple[Tensor, int]]:
    """Values (B, H, P) that varying elements have under a prior without modes, each batch from one fold of subjects."""
    cosines_HT = torch.from_numpy(cosines(n_frames)).float()
    for fold, group in groupby(instances(), key=lambda instance: instance[2] % N_FOLDS):
        while part := list(islice(group, BATCH_INSTANCES)):
            stack_BFXYZ = torch.stack([stack.float() for stack, _, _ in part])
            white_BFXYZ = prior.whiten(stack_BFXYZ, torch.tensor([condition for _, condition, _ in part]))
            yield cosines_HT @ frames_of(white_BFXYZ, n_frames)[:, :, varying_P], fold


def _with_courses_of_latents(
    prior: Prior, found: _Moments, leading_LL: Tensor, basis_PR: Tensor, rest: Rest, count: float
) -> Prior:
    """A prior with R such that draws have the latents' covariance over time in every channel and cell.

    Modes and what they leave nearly give that. R begins with the smallest linear change that turns what is drawn in an element into what was
    found there (shrunk towards the former).
    """
    drawn_PHH = found.drawn_by(leading_LL, basis_PR, rest)
    target_PHH = (count * found.own_PHH + SHRINKAGE_INSTANCES * drawn_PHH) / (count + SHRINKAGE_INSTANCES)
    varying_P = rest.varying_CXYZ.flatten()
    n_frames = len(found.rest_HH)
    matrix_PTT = torch.eye(n_frames).repeat(len(varying_P), 1, 1)
    change_PHH = _transport(drawn_PHH, target_PHH)
    matrix_PTT[varying_P] = _in_time(rest.scale_HP.T[:, :, None] * change_PHH)
    root_PTT = prior.course_root_PTT
    return replace(prior, course_root_PTT=matrix_PTT if root_PTT is None else root_PTT @ matrix_PTT)


def _in_time(matrix_HH: Tensor) -> Tensor:
    """Matrices over frames of matrices over their frequencies."""
    cosines_HT = torch.from_numpy(cosines(matrix_HH.shape[-1])).to(matrix_HH)
    return cosines_HT.T @ matrix_HH @ cosines_HT


def _transport(source: Tensor, target: Tensor) -> Tensor:
    """The symmetric maps (..., T, T), float32, that give Gaussians of one covariance another and move them least (Olkin and Pukelsheim 1982)."""
    root = symmetric_root(source).double()
    inverse = torch.linalg.inv(root)
    return (inverse @ symmetric_root(root @ target @ root).double() @ inverse).float()
