"""Statistics of the training latents: their whitening; mean and variance per condition, and what a network can gain from the right label.

Axis legend: K conditions, F = C*T, X Y Z latent grid, B instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fmrisynth.data.attributes import Vocabulary, n_labels
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.models.distributed import World
from fmrisynth.models.whitening import LEAST_SCALE, Whitening, whitening_map
from fmrisynth.progress import log, progress_bar
from fmrisynth.train.dataset import TrainingLatents

LOUD = 10
"""Times the median person's mean square of latents, from which on a person is named in a warning."""
MAX_INSTANCES = 4096
"""At most so many training instances, evenly spread, are read for the moments."""


@dataclass(frozen=True)
class ClassMoments:
    """Moments of latents as the network sees them, 0 in cells without brain.

    Attributes
    ----------
    count_K : Tensor
        Instances per condition.
    mean_KFXYZ : Tensor, float32
    variance_FXYZ : Tensor, float32
        Within conditions, pooled.
    """

    count_K: Tensor
    mean_KFXYZ: Tensor
    variance_FXYZ: Tensor

    def attainable_gain(self, objective: Objective, time_B: Tensor, right_B: Tensor, wrong_B: Tensor) -> Tensor:
        """How much a wrong label would raise the loss of a network that knew these moments, (B,), float64.

        If elements were independent Gaussians with means m_k and variances s^2, the best guess of x_0 would be

            E[x_0 | x_t, k] = m_k + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha m_k),

        so that labels k and j differ by (m_k - m_j) sigma^2 / (alpha^2 s^2 + sigma^2), times what the target changes with x_0; the loss
        rises by the mean square of that. Squared differences of means are cleared of what chance adds to them. Where noise is far
        above the latents (sigma much larger than alpha s) their correlations do not matter and this is what is attainable; with less noise
        it is too much.
        """
        gains = []
        for time, right, wrong in zip(time_B, right_B.tolist(), wrong_B.tolist(), strict=True):
            alpha, sigma = (float(c) for c in objective.path.alpha_sigma(time[None]))
            chance = self.variance_FXYZ * (1 / self.count_K[right] + 1 / self.count_K[wrong])
            squared = (self.mean_KFXYZ[right] - self.mean_KFXYZ[wrong]).square() - chance
            kept = sigma**2 / (alpha**2 * self.variance_FXYZ + sigma**2)
            gains.append(objective.slope(alpha, sigma) ** 2 * float((squared * kept.square()).double().mean()))
        return torch.tensor(gains, dtype=torch.float64)


def class_moments(
    latents: TrainingLatents, instances: Sequence[int], vocabulary: Vocabulary, world: World
) -> ClassMoments:
    """Moments of the training latents, one instance at a time; the ranks share the reading."""
    shape = (latents.channels, *latents.latent_shape[2:])
    chosen = _spread(instances)
    count_K = torch.zeros(n_labels(vocabulary)[0], dtype=torch.float64)
    sum_KFXYZ = torch.zeros(len(count_K), *shape, dtype=torch.float64)
    squares_FXYZ = torch.zeros(shape, dtype=torch.float64)
    with progress_bar("condition statistics", len(chosen)) as bar:
        for instance in chosen[world.rank :: world.size]:
            stack_FXYZ = latents.read(instance).double()
            k = int(latents.labels(instance, vocabulary)[0])
            count_K[k] += 1
            sum_KFXYZ[k] += stack_FXYZ
            squares_FXYZ += stack_FXYZ.square()
            bar.update(world.size)
    for total in (count_K, sum_KFXYZ, squares_FXYZ):
        world.sum(total)
    mean_KFXYZ = sum_KFXYZ / count_K.clamp_min(1).reshape(-1, 1, 1, 1, 1)
    between_FXYZ = torch.einsum("k,kfxyz->fxyz", count_K, mean_KFXYZ.square())
    variance_FXYZ = (squares_FXYZ - between_FXYZ) / (count_K.sum() - len(count_K)).clamp_min(1)
    return ClassMoments(count_K.clamp_min(1), mean_KFXYZ.float(), variance_FXYZ.clamp_min(0).float())


def fit_whitening(latents: TrainingLatents, instances: Sequence[int], world: World) -> Whitening:
    """Whitening of standardised training latents, in two passes over the instances; the ranks share the reading.

    ``latents.whitening`` must still be None. The small mean of the standardised latents counts as variance.
    """
    brain_XYZ, (n_channels, n_frames, *grid) = latents.brain_XYZ, latents.latent_shape
    chosen = _spread(instances)
    own = chosen[world.rank :: world.size]
    power_CXYZ = torch.zeros(n_channels, *grid, dtype=torch.float64)
    people = {subject: number for number, subject in enumerate(sorted({latents.row(i).subject for i in chosen}))}
    power_S, count_S = torch.zeros(2, len(people), dtype=torch.float64)
    products_FF = torch.zeros(n_channels * n_frames, n_channels * n_frames, dtype=torch.float64)
    with progress_bar("whitening", 2 * len(chosen)) as bar:
        for instance in own:
            own_CXYZ = latents.read(instance).unflatten(0, (n_channels, n_frames)).double().square().mean(1)
            power_CXYZ += own_CXYZ
            person = people[latents.row(instance).subject]
            power_S[person] += own_CXYZ.mean()
            count_S[person] += 1
            bar.update(world.size)
        for total in (power_CXYZ, power_S, count_S):
            world.sum(total)
        if world.is_main:
            _warn_of_loud_people(latents, list(people), power_S / count_S)
        scale_CXYZ = (power_CXYZ / len(chosen)).sqrt().clamp_min(LEAST_SCALE).float()
        scale_CXYZ[:, ~brain_XYZ] = 1
        scale_FXYZ = scale_CXYZ.repeat_interleave(n_frames, dim=0)
        for instance in own:
            scaled_FV = (latents.read(instance) / scale_FXYZ)[:, brain_XYZ]
            products_FF += scaled_FV @ scaled_FV.T
            bar.update(world.size)
        world.sum(products_FF)
    return Whitening(scale_CXYZ, whitening_map(products_FF / (len(chosen) * int(brain_XYZ.sum()))))


def _warn_of_loud_people(latents: TrainingLatents, people: Sequence[str], power_S: Tensor) -> None:
    """Name those whose latents vary much more than the median person's."""
    ratio_S = power_S / power_S.median()
    loud = [(label, float(ratio)) for label, ratio in zip(people, ratio_S, strict=True) if ratio > LOUD]
    if loud:
        log.warning(
            "%s: %s as much as the median person, perhaps by head motion, and count that much more in what is learnt; look at them, and "
            "leave them out with --set leave_out=[%s], of `tokenize` too.",
            latents.root, ", ".join(f"sub-{label} varies {ratio:.0f} times" for label, ratio in loud),
            ",".join(f"sub-{label}" for label, _ in loud),
        )  # fmt: skip


def _spread(instances: Sequence[int]) -> list[int]:
    """At most `MAX_INSTANCES` of them, evenly spread."""
    return list(instances)[:: -(-len(instances) // MAX_INSTANCES)]
