"""Does how a person looks tell how that person's brain moves? What a network that saw the anatomy could learn from it, at most linearly.

    fmrisynth tokenize BLOCKS latents/
    fmrisynth tokenize BLOCKS anatomy-latents/ --preset anatomy
    python benchmarks/anatomy_tells.py latents/ anatomy-latents/

Kernel ridge regression from the latents of a person's anatomy to two things of the latents of the same person's blocks, for
people whom the fit has not seen: how they differ from the mean block of their condition (all conditions together, and the
response to each), and the logarithm of how strongly they fluctuate, for each channel and cell. R2 is 1 - squared error / squared
error of the mean of the other people, over all values; strength by leave-one-out within the people of the fit; 95 % intervals
over people. Beside it the same with the anatomies of other people, and the share of the variance of blocks that the thing has at
all: what there is to tell, times what is told, is what a network would gain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fmrisynth.data.latents import LatentDataset
from fmrisynth.models.tokenizers import load_tokenizer

STRENGTHS = 10.0 ** np.arange(-2, 5)
LEAST_SHARE = 0.01
"""Fluctuations are compared where nobody's variance is below this share of the typical one: within everybody's brain."""


def blocks_of(latents: LatentDataset, subjects: list[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Of each person the mean block of each condition (P, K, C, T, M), log variance of fluctuations (P, C, M), and their mean variance."""
    inside_xyz = load_tokenizer(latents.tokenizer_dir).info.latent_mask_xyz
    rows: dict[str, dict[str, list[int]]] = {}
    for index, row in enumerate(latents.rows):
        rows.setdefault(row.subject, {}).setdefault(row.condition, []).append(index)
    conditions = sorted(set.intersection(*(set(rows[subject]) for subject in subjects)))
    means, fluctuations, within = [], [], 0.0
    for subject in subjects:
        own_means, squares = [], []
        for condition in conditions:
            x_BCTM = np.stack([latents.load(i)[:, :, inside_xyz].numpy() for i in rows[subject][condition]])
            mean_CTM = x_BCTM.mean(axis=0)
            own_means.append(mean_CTM)
            if len(x_BCTM) > 1:
                squares.append(np.square(x_BCTM - mean_CTM).sum(axis=(0, 2)) / (len(x_BCTM) - 1) / x_BCTM.shape[2])
        means.append(np.stack(own_means).astype(np.float32))
        variance_CM = np.mean(squares, axis=0)
        fluctuations.append(np.log(variance_CM + 1e-6 * variance_CM.mean()).astype(np.float32))
        within += float(variance_CM.mean())
    return np.stack(means), np.stack(fluctuations), within / len(subjects)


def errors_of(kernel_PP: np.ndarray, gram_PP: np.ndarray) -> np.ndarray:
    """Squared error of each person's values as told by the others, by kernel ridge with a constant.

    A prediction is a weighted sum of the others' values, so their scalar products are all that is needed. Strength by leave-one-out
    among the others.
    """
    n = len(gram_PP)
    errors_P = np.empty(n)
    for person in range(n):
        others = np.delete(np.arange(n), person)
        centring_QQ = np.eye(n - 1) - 1 / (n - 1)
        values_Q, vectors_QQ = np.linalg.eigh(centring_QQ @ kernel_PP[np.ix_(others, others)] @ centring_QQ)
        gram_QQ = gram_PP[np.ix_(others, others)]

        def smoother(
            strength: float, values_Q: np.ndarray = values_Q, vectors_QQ: np.ndarray = vectors_QQ
        ) -> np.ndarray:
            return (vectors_QQ / (values_Q + strength * values_Q.mean())) @ vectors_QQ.T

        def left_out(strength: float, values_Q: np.ndarray = values_Q, vectors_QQ: np.ndarray = vectors_QQ,
                     gram_QQ: np.ndarray = gram_QQ) -> float:  # fmt: skip
            hat_QQ = (vectors_QQ * (values_Q / (values_Q + strength * values_Q.mean()))) @ vectors_QQ.T + 1 / (n - 1)
            residual_QQ = (np.eye(n - 1) - hat_QQ) / (1 - np.diag(hat_QQ))[:, None]
            return float(np.einsum("qr,rs,qs->", residual_QQ, gram_QQ, residual_QQ))

        best = min(STRENGTHS, key=left_out)
        k_Q = centring_QQ @ (kernel_PP[person, others] - kernel_PP[np.ix_(others, others)].mean(axis=0))
        weight_P = np.zeros(n)
        weight_P[others] = centring_QQ @ smoother(best) @ k_Q + 1 / (n - 1)
        weight_P[person] = -1
        errors_P[person] = weight_P @ gram_PP @ weight_P
    return errors_P


def told(kernel_PP: np.ndarray, y_PD: np.ndarray, seed: int) -> str:
    """R2 with an interval over people, and with others' anatomies."""
    rng = np.random.default_rng(seed)
    n = len(y_PD)
    gram_PP = (y_PD @ y_PD.T).astype(np.float64)
    constant_PP = np.full((n, n), 1 / (n - 1)) - np.eye(n) * n / (n - 1)  # the mean of the others, minus the person
    null_P = np.diag(constant_PP @ gram_PP @ constant_PP)
    order = rng.permutation(n)
    found = []
    for kernel in (kernel_PP, kernel_PP[np.ix_(order, order)]):
        error_P = errors_of(kernel, gram_PP)
        draws = rng.integers(n, size=(1000, n))
        low, high = np.percentile(1 - error_P[draws].sum(1) / null_P[draws].sum(1), [2.5, 97.5])
        found.append(f"{1 - error_P.sum() / null_P.sum():.3f} [{low:.3f}, {high:.3f}]")
    return " | ".join(found)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("anatomies", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    latents, anatomies = LatentDataset.open(arguments.latents), LatentDataset.open(arguments.anatomies)
    subjects = sorted(set(latents.subjects) & set(anatomies.subjects))
    inside_xyz = load_tokenizer(anatomies.tokenizer_dir).info.latent_mask_xyz
    first = {row.subject: index for index, row in reversed(list(enumerate(anatomies.rows)))}
    looks_PD = np.stack([anatomies.load(first[subject])[:, 0, inside_xyz].numpy().ravel() for subject in subjects])
    looks_PD = (looks_PD - looks_PD.mean(axis=0)) / (looks_PD.std(axis=0) + 1e-6)
    kernel_PP = looks_PD @ looks_PD.T / looks_PD.shape[1]

    means_PKCTM, fluctuation_PCM, within = blocks_of(latents, subjects)
    between_PKCTM = means_PKCTM - means_PKCTM.mean(axis=0)
    total = within + float(between_PKCTM.var(axis=0, ddof=1).mean())
    overall_PD = between_PKCTM.mean(axis=1).reshape(len(subjects), -1)
    own_PD = (between_PKCTM - between_PKCTM.mean(axis=1, keepdims=True)).reshape(len(subjects), -1)
    print(f"{len(subjects)} people; variance of a block around the mean of its condition = 1")
    print(
        "| what of a person | its variance between people | R2, own anatomy | R2, another's |\n| --- | --- | --- | --- |"
    )
    for name, y_PD in (("mean over conditions", overall_PD), ("response to each condition", own_PD)):
        share = float(y_PD.var(axis=0, ddof=1).mean()) / total
        print(f"| {name} | {share:.3f} | {told(kernel_PP, y_PD, arguments.seed)} |", flush=True)
    present_CM = (fluctuation_PCM > np.median(fluctuation_PCM) + np.log(LEAST_SHARE)).all(axis=0)
    y_PD = fluctuation_PCM[:, present_CM]
    sd = float(np.sqrt(y_PD.var(axis=0, ddof=1).mean()))
    print(f"| log variance of fluctuations | SD {sd:.2f} | {told(kernel_PP, y_PD, arguments.seed)} |")


if __name__ == "__main__":
    main()
