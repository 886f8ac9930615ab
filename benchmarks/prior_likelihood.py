"""How well each condition prior describes subjects it was not fitted to.

    python benchmarks/prior_likelihood.py LATENTS [--modes 64 512]

Fits every prior to the training split and prints, for the validation split, the negative log-likelihood per latent element (nats,
relative to the unit Gaussian; lower is better) and the mean square of the whitened latents, which is 1 where the prior has
the right variance: over all, and the least and the greatest over channels and temporal frequencies. Only elements that vary count.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fmrisynth.data.cosines import cosines
from fmrisynth.diffusion.prior import Prior
from fmrisynth.diffusion.prior_fit import add_courses, add_modes
from fmrisynth.models.distributed import World
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.loop import class_moments


class Split:
    """Instances of one split, as the fits of priors read them."""

    def __init__(self, latents: TrainingLatents, name: str, vocabulary: dict[str, list[str]]) -> None:
        self.latents, self.numbers, self.vocabulary = latents, latents.select(name), vocabulary

    def __call__(self) -> Iterator[tuple[Tensor, int, int]]:
        """Latents, condition, subject."""
        for i in self.numbers:
            yield self.latents.read(i), self.latents.labels(i, self.vocabulary)[0], self.latents.subject_number(i)


def log_volume(prior: Prior, varying_FXYZ: Tensor, n_frames: int) -> Tensor:
    """Log determinant (K) of what a prior does beside the standard deviations (links have determinant 1)."""
    total = torch.zeros(1 if prior.mean_KFXYZ is None else len(prior.mean_KFXYZ), dtype=torch.float64)
    varying_P = varying_FXYZ.unflatten(0, (-1, n_frames)).amax(1).flatten()
    if prior.response_spread_KP is not None:
        total += prior.response_spread_KP[:, varying_P].double().log().sum(1)
    if prior.course_root_PHH is not None:
        total += float(torch.linalg.slogdet(prior.course_root_PHH[varying_P].double()).logabsdet.sum())
    if prior.new_HP is not None:
        total += float(prior.new_HP.double().log().sum())
    if prior.mode_gain_HRR is not None:
        total += float(torch.linalg.slogdet(prior.mode_gain_HRR.double()).logabsdet.sum())
    if prior.response_gain_KSS is not None:
        total += torch.linalg.slogdet(prior.response_gain_KSS.double()).logabsdet
    return total


def describe(prior: Prior, split: Split, varying_FXYZ: Tensor, n_frames: int) -> tuple[float, Tensor]:
    """Negative log-likelihood per element beyond that of a unit Gaussian's entropy constant, and mean squares of whitened latents (C, T)."""
    n_elements, squares_CT, volumes, count = int(varying_FXYZ.sum()), torch.zeros(()), 0.0, 0
    elements_CT = varying_FXYZ.unflatten(0, (-1, n_frames)).sum((2, 3, 4))
    cosines_HT = torch.from_numpy(cosines(n_frames)).float()
    shared_K = log_volume(prior, varying_FXYZ, n_frames)
    for stack_FXYZ, condition, _ in split():
        white_FXYZ = prior.whiten(stack_FXYZ[None].float(), torch.tensor([condition]))[0] * varying_FXYZ
        white_CHXYZ = torch.einsum("ht,ctxyz->chxyz", cosines_HT, white_FXYZ.unflatten(0, (-1, n_frames)))
        squares_CT = squares_CT + white_CHXYZ.double().square().sum((2, 3, 4))
        volumes += float(shared_K[condition if len(shared_K) > 1 else 0]) / n_elements
        if prior.std_KFXYZ is not None:
            volumes += float(prior.std_KFXYZ[condition][varying_FXYZ].double().log().sum()) / n_elements
        count += 1
    return float(squares_CT.sum()) / n_elements / count / 2 + volumes / count - 0.5, squares_CT / elements_CT / count


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("--modes", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    latents = TrainingLatents(arguments.latents)
    numbers = latents.select("train")
    vocabulary = latents.vocabulary(numbers, ["condition"])
    train, validation = (Split(latents, name, vocabulary) for name in ("train", "val"))
    n_frames = latents.latent_shape[1]
    moments = class_moments(latents, numbers, vocabulary, World(0, 1, torch.device("cpu")))
    gaussian = moments.prior("class_gaussian")
    assert gaussian.varying_FXYZ is not None
    varying_FXYZ = gaussian.varying_FXYZ > 0.5

    print("| prior | nats per element | mean square, whitened | least | greatest |\n|" + " --- |" * 5, flush=True)

    def row(name: str, prior: Prior) -> None:
        nats, squares_CT = describe(prior, validation, varying_FXYZ, n_frames)
        print(
            f"| {name} | {nats:.4f} | {squares_CT.mean():.3f} | {squares_CT.min():.2f} | {squares_CT.max():.2f} |",
            flush=True,
        )

    row("none", Prior())
    row("class mean", moments.prior("class_mean"))
    row("class Gaussian", gaussian)
    courses = add_courses(moments.prior("class_covariance"), train, n_frames)
    row("class mean, how each cell responds, and its covariance over time", courses)
    for n_modes in arguments.modes:
        fitted = add_modes(courses, train, n_modes, n_frames)
        row(f"class covariance, {n_modes} modes, to whiten new subjects", fitted.for_new_subjects())
        row(f"class covariance, {n_modes} modes, to draw around", fitted.prior)


if __name__ == "__main__":
    main()
