"""Estimating a `Prior` from training latents: moments per condition, courses of cells, then modes and what they leave.

A prior has two uses, and they need different estimates. Samples should vary as people do: whatever one measures in them, a variance or a
correlation, should on average be as in new subjects. For that there is the sample covariance, which is unbiased. Whitening should make
unit Gaussians of subjects who are not in the fit. For them the sample covariance is too large along its own modes and too small
elsewhere; there, variances are taken from subjects left out. So `FittedPrior` holds one prior to draw around and some to whiten with.

Axis legend: K conditions or folds, F = C*T, X Y Z latent grid, B batch, N anything, T frames, H temporal frequencies,
P = C*X*Y*Z or those of them that vary, R modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice

import torch
from torch import Tensor

from fmrisynth.data.cosines import cosines
from fmrisynth.diffusion.mode_fit import N_FOLDS, AddUp, Batches, find_modes, mode_covariances, scale_spread
from fmrisynth.diffusion.prior import Prior, frequencies_of, symmetric_inverse, symmetric_root
from fmrisynth.diffusion.response_fit import MeanResponses, ResponseDirections, ResponseMoments, ResponseSpreads
from fmrisynth.diffusion.rest_fit import LEAST_NEW, SHRINKAGE_INSTANCES, Rest, RestMoments

STD_FLOOR = 0.05  # what varies less, in units of the root-mean-square deviation, is held constant
REST_PASSES = 2  # over what is put back of the modes
NEW_PASSES = 2  # over the instances: what is new and what multiplies values along the modes depend on one another
N_PROBES = 512  # frames of random signs from which the variance of blended noise is found
BATCH_INSTANCES = 16  # instances in one matrix product

_OF_FOLD = ("modes", "mode_gain", "unasked", "new", "link", "response_weight", "response_load")
_OF_ALL_FOLDS = ("course_root", "response_gain", "response_spread")

Instances = Callable[[], Iterable[tuple[Tensor, int, int]]]
"""Starts an iteration over normalised latents (F, X, Y, Z), their condition and the number of their subject."""


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
        """Finish the statistics as a `Prior`; ``class_covariance`` has its means, and `add_courses` and `add_modes` give it the rest."""
        if kind == "none":
            return Prior()
        mean = self.mean()
        if kind == "class_mean":
            return Prior(kind, mean.float())
        counts = self._counts()
        variance = self.variance()
        pooled = (counts * variance).sum(0) / counts.sum()
        varying = (pooled > STD_FLOOR**2 * pooled.mean()).float()
        if kind == "class_covariance":
            return Prior(kind, mean.float(), varying_FXYZ=varying)
        shrunk = (counts * variance + SHRINKAGE_INSTANCES * pooled) / (counts + SHRINKAGE_INSTANCES)
        floor = STD_FLOOR * pooled.mean().sqrt().clamp_min(1e-6)
        return Prior(kind, mean.float(), shrunk.sqrt().clamp_min(floor).float(), varying_FXYZ=varying)

    def _counts(self) -> Tensor:
        return self.count_K.clamp_min(1).reshape(-1, *[1] * (self.sum.ndim - 1))


@dataclass(frozen=True)
class FittedPrior:
    """A prior to draw around, and those to whiten with.

    Training latents look whiter under a prior that was fitted to them than new ones do, and a network trained on them would learn to
    undo that. So each subject is whitened with the prior that was fitted without the subject's fold (cross-fitting).

    Attributes
    ----------
    prior : Prior
        Of all training subjects, with their sample covariance.
    without : dict of int to Prior
        The prior without each fold, fitted to describe subjects left out; empty if the kind needs none, or if there is one subject only.
    """

    prior: Prior
    without: dict[int, Prior] = field(default_factory=dict)

    def for_subject(self, number: int) -> Prior:
        """What to whiten a training subject with; ``number`` as given to `add_modes`."""
        return self.without.get(number % N_FOLDS, self.prior)

    def for_new_subjects(self) -> Prior:
        """What to whiten subjects with who are not in training."""
        return next(iter(self.without.values()), self.prior)

    def fold_tensors(self) -> dict[str, Tensor]:
        """What differs from the prior to draw around, to store."""
        return {
            name if name in _OF_ALL_FOLDS else f"{k}.{name}": tensor
            for k, prior in self.without.items()
            for name, tensor in prior.tensors().items()
            if name in _OF_FOLD + _OF_ALL_FOLDS
        }

    @classmethod
    def from_fold_tensors(cls, prior: Prior, tensors: Mapping[str, Tensor]) -> FittedPrior:
        """The inverse of `fold_tensors`; raises ValueError for tensors of another prior."""
        drawing = prior.tensors()
        folds = sorted({name.partition(".")[0] for name in tensors if name not in _OF_ALL_FOLDS})
        shapes = {f"{k}.{name}": drawing[name].shape for k in folds for name in _OF_FOLD if name in drawing}
        shapes |= {name: drawing[name].shape for name in _OF_ALL_FOLDS if folds and name in drawing}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("the modes do not fit the prior")
        shared = drawing | {name: tensors[name] for name in _OF_ALL_FOLDS if name in tensors}
        return cls(
            prior,
            {
                int(k): Prior.from_tensors(prior.kind, shared | {name: tensors[f"{k}.{name}"] for name in _OF_FOLD})
                for k in folds
            },
        )


def add_courses(
    prior: Prior,
    instances: Instances,
    n_frames: int,
    *,
    add_up: AddUp = lambda total: None,
) -> Prior:
    """Give a prior that has means how each condition varies along its response, and the covariance of the frequencies, in each channel and cell.

    Parameters as for `add_modes`, which comes after it. Shapes of covariances are shrunk towards the mean one over all that varies; what does not
    vary gets a little noise.
    """
    assert prior.varying_FXYZ is not None
    varies_P = prior.varying_FXYZ.unflatten(0, (-1, n_frames)).amax(1).flatten() > 0.5
    spreads = ResponseSpreads(prior, n_frames)
    for stack_FXYZ, condition, _ in instances():
        spreads.add(prior.whiten(stack_FXYZ[None].float(), torch.tensor([condition]))[0], condition)
    spreads.add_up(add_up)
    prior = replace(prior, response_course_KT=spreads.course_KT, response_spread_KP=spreads.spread(varies_P))
    sums_PHH: Tensor | None = None
    count = torch.zeros((), dtype=torch.float64)
    for stack_FXYZ, condition, _ in instances():
        values_HP = frequencies_of(prior.whiten(stack_FXYZ[None].float(), torch.tensor([condition])), n_frames)[0]
        if sums_PHH is None:
            sums_PHH = torch.zeros(values_HP.shape[1], n_frames, n_frames)
        sums_PHH += torch.einsum("gp,hp->pgh", values_HP, values_HP)
        count += 1
    assert sums_PHH is not None
    add_up(sums_PHH)
    add_up(count)
    own_PHH = sums_PHH.double() / count
    power_P = own_PHH.diagonal(dim1=1, dim2=2).mean(1)
    shape_PHH = own_PHH / power_P.clamp_min(1e-12)[:, None, None]
    shape_PHH = (count * shape_PHH + SHRINKAGE_INSTANCES * shape_PHH[varies_P].mean(0)) / (count + SHRINKAGE_INSTANCES)
    shrunk_PHH = power_P[:, None, None] * shape_PHH
    shrunk_PHH[~varies_P] = STD_FLOOR**2 * power_P.mean().clamp_min(1e-6) * torch.eye(n_frames, dtype=torch.float64)
    return replace(prior, course_root_PHH=symmetric_root(shrunk_PHH))


def add_modes(
    prior: Prior,
    instances: Instances,
    n_modes: int,
    n_frames: int,
    *,
    add_up: AddUp = lambda total: None,
) -> FittedPrior:
    """Fit K, A and C_k of ``class_covariance`` to a prior that has means.

    Parameters
    ----------
    prior : Prior
        From `MomentAccumulator` and `add_courses`.
    instances : callable
        Returns an iterator over normalised latents (F, X, Y, Z), their condition and the number of their subject.
    n_modes : int
        Principal components; fewer are kept if the latents have fewer dimensions, or there are fewer instances without a fold. The pattern
        of each condition's mean is kept beside them.
    n_frames : int
        T.
    add_up : callable, optional
        Sums a tensor over ranks in place, when each of them iterates over a share of the instances.

    Returns
    -------
    FittedPrior
        Of kind ``class_covariance``.

    Notes
    -----
    Memory is six times P x R, twice the instances' frames, and the products of neighbours: 6 H (4C)^2 numbers for each cell.

    Principal components vary more in the instances they were found in than in new ones, most where subjects are few, and what they
    leave varies less. So for whitening the modes are found again without each of ``N_FOLDS`` groups of subjects, and their covariances are
    those of the left-out subjects' values along them (`mode_fit`; nonlinear shrinkage by cross-validation, Bartz 2016). So is what the
    modes leave, from which K comes (`rest_fit`), and how conditions differ along the modes (`response_fit`). The prior to draw around has the
    covariances of all subjects as they are. Means, and so their patterns among the modes, are always those of all subjects.
    """
    assert prior.varying_FXYZ is not None
    varying_CXYZ = prior.varying_FXYZ.unflatten(0, (-1, n_frames)).amax(1) > 0.5
    varying_P = varying_CXYZ.flatten()
    if prior.course_root_PHH is None:
        prior = replace(prior, course_root_PHH=torch.eye(n_frames).repeat(len(varying_P), 1, 1))
    read = list(_white_batches(prior, instances, varying_P, n_frames))
    batches, conditions = [(values_BHP, fold) for values_BHP, fold, _ in read], [batch[2] for batch in read]
    count_K = torch.zeros(N_FOLDS, dtype=torch.float64)
    for values_BHP, fold in batches:
        count_K[fold] += len(values_BHP)
    add_up(count_K)
    filled = [k for k in range(N_FOLDS) if count_K[k] > 0]
    if len(filled) < 2:  # one subject alone: nobody to leave out
        filled = []

    n_varying = int(varying_P.sum())
    n_fewest = int((count_K.sum() - count_K).min()) if filled else int(count_K.sum())
    n_components = max(1, min(n_modes, n_varying - 1, n_fewest))
    means = MeanResponses.of(prior, varying_P)
    *without, basis_PR = find_modes(batches, n_components, means.patterns(), add_up)
    bases = [*(without if filled else [basis_PR] * N_FOLDS), basis_PR]
    covariances = mode_covariances(batches, bases, count_K, add_up)
    rests = _rests(batches, bases, covariances, Rest.white(varying_CXYZ, n_frames), add_up)
    directions = [ResponseDirections.of(means, *pair) for pair in zip(bases, covariances, strict=True)]
    left_out, sample = (ResponseMoments(len(means.white_KHP), len(directions[0].weight_SHR)) for _ in range(2))
    for (values_BHP, fold), condition_B in zip(batches, conditions, strict=True):
        left_out.add(values_BHP @ bases[fold], directions[fold], condition_B)
        sample.add(values_BHP @ basis_PR, directions[-1], condition_B)
    for moments in (left_out, sample):
        moments.add_up(add_up)

    def whole(basis_PR: Tensor) -> Tensor:
        modes_RP = torch.zeros(basis_PR.shape[1], len(varying_P))
        modes_RP[:, varying_P] = basis_PR.T
        return modes_RP

    def with_modes(k: int, response_gain_KSS: Tensor) -> Prior:
        before_RHP = rests[k].before(bases[k])
        new_HP = torch.ones(n_frames, len(varying_P))
        new_HP[:, varying_P] = rests[k].new_HP
        return replace(
            prior,
            kind="class_covariance",
            modes_RP=whole(bases[k]),
            mode_gain_HRR=_transport(_gram(before_RHP), covariances[k]),
            unasked_RP=whole(_unasked(before_RHP)),
            new_HP=new_HP,
            link_HACCXYZ=rests[k].link_HACDXYZ,
            response_weight_SHR=directions[k].weight_SHR,
            response_load_SHR=directions[k].load_SHR,
            response_gain_KSS=response_gain_KSS,
        )

    fitted = with_modes(-1, sample.gains())
    assert fitted.mode_gain_HRR is not None
    assert fitted.response_gain_KSS is not None
    drawn = _Drawn(
        _drawn(basis_PR, fitted.mode_gain_HRR, rests[-1]).T,
        directions[-1].load_SHR @ basis_PR.T,
        fitted.response_gain_KSS @ fitted.response_gain_KSS - torch.eye(len(directions[-1].load_SHR)),
    )
    fitted = replace(fitted, scale_spread_H=scale_spread(batches, basis_PR, covariances[-1], add_up))
    with_courses = _with_courses_of_latents(fitted, batches, drawn.over_conditions(sample.shares()), varying_P, add_up)
    return FittedPrior(
        _with_spreads_of_latents(with_courses, prior, batches, conditions, drawn, varying_P, add_up),
        {k: with_modes(k, left_out.gains()) for k in filled},
    )


def _rests(batches: Batches, bases: list[Tensor], covariances: list[Tensor], white: Rest, add_up: AddUp) -> list[Rest]:
    """What each basis (P, R) leaves, those without one fold of subjects and the last.

    The last is as in all subjects. For the others, links come from what is beside the modes of subjects who had no part in finding them,
    and what is new is then measured in subjects who had no part in either.
    """
    moments = RestMoments(white, N_FOLDS)
    for values_BHP, fold in batches:
        moments.add(values_BHP, bases[fold], fold)
        moments.add(values_BHP, bases[-1], -1)
    moments.add_up(add_up)
    rests = []
    for k, basis_PR in enumerate(bases):
        fit = moments.sample if k == N_FOLDS else partial(moments.cross_fitted, without=k)
        rest = fit()
        for _ in range(REST_PASSES):
            rest = fit(moments.taken(rest, basis_PR))
        rests.append(rest)
    for _ in range(NEW_PASSES):
        less_KHRR = torch.stack(
            [
                symmetric_inverse(_transport(_gram(rest.before(basis_PR)), covariance_HRR))
                for rest, basis_PR, covariance_HRR in zip(rests[:-1], bases[:-1], covariances[:-1], strict=True)
            ]
        ) - torch.eye(bases[0].shape[1])
        squares_HP, count = torch.zeros_like(white.new_HP, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for values_BHP, fold in batches:
            along_BHR = torch.einsum("hrs,bhs->bhr", less_KHRR[fold], values_BHP @ bases[fold])
            squares_HP += rests[fold].separate(values_BHP + along_BHR @ bases[fold].T).square().sum(0)
            count += len(values_BHP)
        add_up(squares_HP)
        add_up(count)
        new_HP = (squares_HP / count).sqrt().float().clamp_min(LEAST_NEW)
        rests = [*(replace(rest, new_HP=new_HP) for rest in rests[:-1]), rests[-1]]
    return rests


def _gram(before_RHP: Tensor) -> Tensor:
    """Covariance (H, R, R) of sums of white noise."""
    return torch.einsum("rhp,shp->hrs", before_RHP, before_RHP)


def _unasked(before_RHP: Tensor) -> Tensor:
    """The R orthonormal directions (P, R) that hold most of sums of white noise, each frequency's made orthonormal first."""
    sums_NP = torch.linalg.qr(before_RHP.permute(1, 2, 0)).Q.mT.flatten(0, 1)
    values_N, vectors_NN = torch.linalg.eigh(sums_NP @ sums_NP.T)
    n_modes = len(before_RHP)
    return (sums_NP.T @ vectors_NN[:, -n_modes:]) / values_N[-n_modes:].sqrt()


@dataclass(frozen=True)
class _Drawn:
    """Covariance of what C_k A K draws in each element: a variance per frequency, and what the directions of responses add in a condition."""

    variance_PH: Tensor
    load_SHP: Tensor
    more_KSS: Tensor

    def over_conditions(self, share_K: Tensor) -> Tensor:
        """Covariance of the frequencies (P, H, H), over conditions of such shares."""
        more_SS = torch.einsum("k,kst->st", share_K, self.more_KSS)
        more_PHH = torch.einsum("sgp,st,thp->pgh", self.load_SHP, more_SS, self.load_SHP)
        return torch.diag_embed(self.variance_PH) + more_PHH

    def along(self, weight_KHP: Tensor) -> Tensor:
        """Variance (K, P) of sums over frequencies, in each condition with its own weights."""
        along_KSP = torch.einsum("khp,shp->ksp", weight_KHP, self.load_SHP)
        more_KP = torch.einsum("ksp,kst,ktp->kp", along_KSP, self.more_KSS, along_KSP)
        return torch.einsum("khp,ph->kp", weight_KHP.square().to(self.variance_PH), self.variance_PH) + more_KP


def _drawn(basis_PR: Tensor, gain_HRR: Tensor, rest: Rest) -> Tensor:
    """Variance (H, P) of each element in draws, after K and A."""
    generator = torch.Generator().manual_seed(0)
    signs_NP = torch.randint(0, 2, (N_PROBES, len(basis_PR)), generator=generator) * 2.0 - 1
    mode_HRR = gain_HRR @ _gram(rest.before(basis_PR)) @ gain_HRR
    drawn_HP = torch.stack([((basis_PR @ mode_RR) * basis_PR).sum(1) for mode_RR in mode_HRR]).double()
    for part_BP in signs_NP.split(BATCH_INSTANCES):  # signs have the covariance of noise
        noise_BHP = rest.blend(part_BP[:, None].expand(-1, len(gain_HRR), -1))
        along_BHR = noise_BHP @ basis_PR
        beside_BHP = noise_BHP - along_BHR @ basis_PR.T
        more_BHP = torch.einsum("hrs,bhs->bhr", gain_HRR, along_BHR) @ basis_PR.T
        drawn_HP += (beside_BHP * (beside_BHP + 2 * more_BHP)).sum(0) / N_PROBES
    return drawn_HP


def _white_batches(
    prior: Prior, instances: Instances, varying_P: Tensor, n_frames: int
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Values (B, H, P) that varying elements have under a prior without modes, each batch from one fold of subjects; fold, conditions."""
    for fold, group in groupby(instances(), key=lambda instance: instance[2] % N_FOLDS):
        while part := list(islice(group, BATCH_INSTANCES)):
            stack_BFXYZ = torch.stack([stack.float() for stack, _, _ in part])
            condition_B = torch.tensor([condition for _, condition, _ in part])
            yield frequencies_of(prior.whiten(stack_BFXYZ, condition_B), n_frames)[:, :, varying_P], fold, condition_B


def _with_courses_of_latents(
    prior: Prior, batches: Batches, drawn_PHH: Tensor, varying_P: Tensor, add_up: AddUp
) -> Prior:
    """A prior with R such that draws have the latents' covariance of the frequencies in every channel and cell.

    Modes and what they leave nearly give that. R begins with the smallest linear change that turns what is drawn in an element into what
    is found there (shrunk towards the former).
    """
    assert prior.course_root_PHH is not None
    n_varying, n_frequencies, _ = drawn_PHH.shape
    found_PHH = torch.zeros(n_varying, n_frequencies, n_frequencies, dtype=torch.float64)
    count = torch.zeros((), dtype=torch.float64)
    for values_BHP, _ in batches:
        found_PHH += torch.einsum("bgp,bhp->pgh", values_BHP, values_BHP)
        count += len(values_BHP)
    add_up(found_PHH)
    add_up(count)
    target_PHH = (found_PHH + SHRINKAGE_INSTANCES * drawn_PHH) / (count + SHRINKAGE_INSTANCES)
    matrix_PHH = torch.eye(n_frequencies).repeat(len(varying_P), 1, 1)
    matrix_PHH[varying_P] = _transport(drawn_PHH, target_PHH)
    return replace(prior, course_root_PHH=prior.course_root_PHH @ matrix_PHH)


def _with_spreads_of_latents(
    prior: Prior,
    before: Prior,
    batches: Batches,
    conditions: list[Tensor],
    drawn: _Drawn,
    varying_P: Tensor,
    add_up: AddUp,
) -> Prior:
    """A prior with D_k such that draws vary along each condition's course as the latents do in every channel and cell.

    Modes have their own say in how conditions vary there, so D_k of ``before``, which whitened the batches, needs a change.
    """
    if prior.response_course_KT is None or prior.response_spread_KP is None:
        return prior
    assert prior.course_root_PHH is not None
    assert before.course_root_PHH is not None
    course_KH = prior.response_course_KT @ torch.from_numpy(cosines(prior.response_course_KT.shape[1])).float().T
    weight_KHP = torch.einsum("kg,pgh->khp", course_KH, before.course_root_PHH[varying_P])
    squares_KP, count_K = (
        torch.zeros(len(course_KH), int(varying_P.sum()), dtype=torch.float64),
        torch.zeros(len(course_KH), dtype=torch.float64),
    )
    for (values_BHP, _), condition_B in zip(batches, conditions, strict=True):
        along_BP = (weight_KHP[condition_B] * values_BHP).sum(1)
        squares_KP.index_add_(0, condition_B, along_BP.double().square())
        count_K += torch.bincount(condition_B, minlength=len(count_K))
    add_up(squares_KP)
    add_up(count_K)
    drawn_KP = drawn.along(torch.einsum("kg,pgh->khp", course_KH, prior.course_root_PHH[varying_P])).double()
    change_KP = (squares_KP / drawn_KP + SHRINKAGE_INSTANCES) / (count_K[:, None] + SHRINKAGE_INSTANCES)
    spread_KP = prior.response_spread_KP.clone()
    spread_KP[:, varying_P] *= change_KP.sqrt().float()
    return replace(prior, response_spread_KP=spread_KP)


def _transport(source: Tensor, target: Tensor) -> Tensor:
    """The symmetric maps (..., H, H), float32, that give Gaussians of one covariance another and move them least (Olkin and Pukelsheim 1982)."""
    root = symmetric_root(source).double()
    inverse = symmetric_inverse(root)
    return (inverse @ symmetric_root(root @ target @ root).double() @ inverse).float()
