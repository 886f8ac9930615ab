"""Which check finds which fault: a table *adversary x check*.

    python benchmarks/adversaries.py BLOCKS [--coarsen 2] [--samples 50] [--subjects 20] [--repeats 1] [--out FILE.json]

BLOCKS is a block dataset of real people (or of a phantom). Its people are dealt anew in every repeat: some are compared
with, some are the training cohort, and the blocks of the rest are turned into what a bad generator would write. Every
adversary goes through the checks of `evaluate`, and so do the untouched blocks of the rest, which should pass. With
several repeats the table holds shares: the power of each check against each adversary. Windows are averaged over cubes
of `--coarsen` voxels, which keeps what is tested here and costs an eighth.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, shift
from scipy.sparse import csr_matrix

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.evaluate.analysis import Judge
from fmrisynth.evaluate.checks import CHECKS, Context
from fmrisynth.evaluate.distinguish import in_turn
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.response import Timing, mirror_index
from fmrisynth.evaluate.rois import Roi, peak_rois
from fmrisynth.evaluate.summary import Reference, Summariser, Summary, WindowStore, patterns_of, summarise
from fmrisynth.glm.windows import Window, common_mask, iterate_windows
from fmrisynth.progress import track


@dataclass(frozen=True)
class Source:
    """Real blocks of other people, as an adversary gets them.

    Attributes
    ----------
    windows : list of Window
        As many per condition as there are samples, each as a sample of its own.
    training : list of Window
        Blocks of the training people.
    mean : dict of str to array
        Mean window of each condition over the training people, (T, V).
    grid, mask_XYZ
        Where the voxels are.
    rng : Generator
    """

    windows: list[Window]
    training: list[Window]
    mean: dict[str, np.ndarray]
    grid: Grid
    mask_XYZ: np.ndarray
    rng: np.random.Generator

    def each(self, change: Callable[[Window], np.ndarray]) -> list[Window]:
        """All windows with a new signal."""
        return [replace(w, percent_TV=change(w).astype(np.float32)) for w in self.windows]


def late(source: Source, delay_s: float) -> list[Window]:
    """The response comes later; the noise stays where it is. Before its first frame a response is what it was then."""
    moved = {
        c: shift(m, (delay_s / source.windows[0].block.tr_s, 0), order=1, mode="nearest") - m
        for c, m in source.mean.items()
    }
    return source.each(lambda w: w.percent_TV + moved[w.block.condition])


def copies(source: Source) -> list[Window]:
    """Blocks of training people, written out again."""
    found = []
    for w in source.windows:
        pool = [t for t in source.training if t.block.condition == w.block.condition]
        copied = pool[int(source.rng.integers(len(pool)))]
        found.append(replace(copied, block=w.block))
    return found


def one_person(source: Source) -> list[Window]:
    """The blocks of one person, again and again."""
    people = Counter(w.block.subject for w in source.windows)
    person = people.most_common(1)[0][0]
    found = []
    for w in source.windows:
        pool = [o for o in source.windows if o.block.subject == person and o.block.condition == w.block.condition]
        found.append(replace(pool[int(source.rng.integers(len(pool)))], block=w.block))
    return found


def white_noise(source: Source) -> list[Window]:
    """Class mean plus white noise of the right variance in every voxel."""
    sd_V = np.sqrt(
        np.mean([np.square(w.percent_TV - source.mean[w.block.condition]).mean(axis=0) for w in source.windows], axis=0)
    )
    return source.each(lambda w: source.mean[w.block.condition] + sd_V * source.rng.standard_normal(w.percent_TV.shape))


def shuffled(source: Source) -> list[Window]:
    """Conditions turned one step round."""
    names = list(source.mean)
    other = dict(zip(names, np.roll(names, 1).tolist(), strict=True))
    return [replace(w, block=replace(w.block, condition=other[w.block.condition])) for w in source.windows]


def flipped(source: Source) -> list[Window]:
    """Left is right (where a voxel has a mirror image)."""
    mirror = mirror_index(source.mask_XYZ, source.grid.affine)
    index = np.where(mirror >= 0, mirror, np.arange(len(mirror)))
    return [replace(w, percent_TV=w.percent_TV[:, index], reference_V=w.reference_V[index]) for w in source.windows]


def smoothed(source: Source) -> list[Window]:
    """Smoothed by 8 mm FWHM in space, and scaled back to the variance it had."""
    sigma = 8.0 / np.sqrt(8 * np.log(2)) / np.array(source.grid.voxel_mm)
    weight_V = gaussian_filter(source.mask_XYZ.astype(np.float32), sigma)[source.mask_XYZ]

    def change(w: Window) -> np.ndarray:
        volume = np.zeros(source.mask_XYZ.shape, np.float32)
        out = np.empty_like(w.percent_TV)
        for t, values in enumerate(w.percent_TV):
            volume[source.mask_XYZ] = values
            out[t] = gaussian_filter(volume, sigma)[source.mask_XYZ] / weight_V
        return out

    return source.each(change)


def one_anatomy(source: Source) -> list[Window]:
    """Everybody's reference volume is the mean."""
    mean_V = np.mean([w.reference_V for w in source.training], axis=0).astype(np.float32)
    return [replace(w, reference_V=mean_V) for w in source.windows]


def other_autocorrelation(source: Source) -> list[Window]:
    """The frames of the noise in random order: the same values, no correlation between neighbours in time."""

    def change(w: Window) -> np.ndarray:
        mean = source.mean[w.block.condition]
        return mean + (w.percent_TV - mean)[source.rng.permutation(len(mean))]

    return source.each(change)


def mixed(source: Source) -> list[Window]:
    """Half the response of another condition in every sample."""
    names = list(source.mean)
    other = dict(zip(names, np.roll(names, 1).tolist(), strict=True))
    return source.each(
        lambda w: w.percent_TV + 0.5 * (source.mean[other[w.block.condition]] - source.mean[w.block.condition])
    )


ADVERSARIES: dict[str, tuple[Callable[[Source], list[Window]], tuple[str, ...]]] = {
    "copies of training blocks": (copies, ("copies", "copied_anatomy")),
    "one person repeated": (one_person, ("donors", "distinct", "anatomy_spread")),
    "class mean + white noise": (white_noise, ("connectivity", "smoothness", "effect_variance")),
    "shuffled labels": (shuffled, ("corr", "top1_per_sample", "utility")),
    "reversed in time": (lambda s: s.each(lambda w: w.percent_TV[::-1]), ("corr", "roi_courses", "latency")),
    "left-right flipped": (flipped, ("asymmetry",)),
    "amplitude x 0.67": (lambda s: s.each(lambda w: w.percent_TV * 0.67), ("gain",)),
    "amplitude x 1.5": (lambda s: s.each(lambda w: w.percent_TV * 1.5), ("gain",)),
    "late by 1.5 s": (lambda s: late(s, 1.5), ("latency",)),
    "early by 1.5 s": (lambda s: late(s, -1.5), ("latency",)),
    "late by 2.9 s": (lambda s: late(s, 2.9), ("latency",)),
    "early by 2.9 s": (lambda s: late(s, -2.9), ("latency",)),
    "over-smoothed (8 mm)": (smoothed, ("smoothness",)),
    "one shared anatomy": (one_anatomy, ("anatomy_spread", "volume_subject", "donors")),
    "wrong autocorrelation": (other_autocorrelation, ("autocorrelation",)),
    "mixed conditions": (mixed, ("corr", "rsa", "top1_per_sample", "gain")),
}  # fmt: skip
"""What a bad generator writes, and the checks that were made for it."""

REAL = "other real people"

Study = dict[str, dict[str, tuple[str, float | None]]]
"""Dataset -> check -> answer and judged number."""


def coarse_windows(
    root: Path, factor: int, config: EvaluateConfig, per_person: int
) -> tuple[list[Window], Grid, np.ndarray]:
    """At most so many blocks of each person and condition, averaged over cubes of voxels, in memory."""
    seen: Counter[tuple[str, str]] = Counter()
    blocks = []
    for block in read_blocks(root):
        seen[block.subject, block.condition] += 1
        if seen[block.subject, block.condition] <= per_person:
            blocks.append(block)
    grid = common_grid(blocks)
    mask_XYZ = common_mask(list({b.subject: b for b in blocks}.values()), grid, config.glm.min_reference_fraction)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    affine[:3, :3] *= factor
    sides = tuple(-(-n // factor) for n in mask_XYZ.shape)
    coarse = make_grid(sides, affine, grid.space)
    flat = np.asarray(np.ravel_multi_index(tuple(np.argwhere(mask_XYZ).T // factor), sides))
    count = np.bincount(flat, minlength=int(np.prod(sides)))
    inside = count >= factor**3 / 2

    kept = np.flatnonzero(inside[flat])
    rows = (np.cumsum(inside) - 1)[flat[kept]]
    average = csr_matrix(
        ((1 / count[flat[kept]]).astype(np.float32), (rows, kept)), shape=(int(inside.sum()), len(flat))
    )
    windows = []
    for w in track(iterate_windows(blocks, mask_XYZ, grid, config.glm), "blocks", total=len(blocks)):
        percent_TV = np.ascontiguousarray((average @ np.ascontiguousarray(w.percent_TV.T)).T)
        windows.append(Window(w.block, percent_TV, average @ w.reference_V))
    return windows, coarse, inside.reshape(sides)


def study(
    windows: list[Window], grid: Grid, mask_XYZ: np.ndarray, n_samples: int, n_subjects: int, seed: int,
    config: EvaluateConfig, names: list[str],
) -> Study:  # fmt: skip
    """Deal the people anew and judge every adversary: name -> check -> (answer, value)."""
    rng = np.random.default_rng(seed)
    people = rng.permutation(sorted({w.block.subject for w in windows}))
    third = (len(people) - n_subjects) // 2
    test, other, training = (
        set(people[:n_subjects]),
        set(people[n_subjects : n_subjects + third]),
        set(people[n_subjects + third :]),
    )
    by = {
        name: [w for w in windows if w.block.subject in group]
        for name, group in (("test", test), ("other", other), ("training", training))
    }
    conditions = sorted({w.block.condition for w in windows})

    def as_many(pool: list[Window]) -> list[Window]:
        found: list[Window] = []
        names_N = np.array([w.block.subject for w in pool])
        for condition in conditions:
            own = rng.permutation(np.array([i for i, w in enumerate(pool) if w.block.condition == condition]))
            found += [pool[i] for i in in_turn(names_N, own)[:n_samples]]
        return sorted(found, key=lambda w: w.block.subject)

    plain = Probes(grid, mask_XYZ, [])
    voxels = np.arange(int(mask_XYZ.sum()))
    training_store, reference = WindowStore(plain), Reference(config.glm)
    for w in reference.watch(by["training"]):
        training_store.add(w)
    maps = reference.arrays(plain)
    patterns = patterns_of(maps, plain)
    t = {c: e / np.sqrt(v) for c, e, v in zip(patterns, maps["effect"], maps["variance"], strict=True)}
    rois: list[Roi] = peak_rois(t, mask_XYZ, grid, "the training people")
    probes = Probes(grid, mask_XYZ, rois)
    mean = {c: np.mean([w.percent_TV for w in by["training"] if w.block.condition == c], axis=0) for c in conditions}
    timing = {c: Timing(course, windows[0].block.tr_s) for c, course in zip(patterns, maps["course"], strict=True)}
    context = Context(conditions, conditions, rois, timing, {c: p.odd_energy for c, p in patterns.items()})

    def summary(own: list[Window], *, samples: bool = True) -> Summary:
        keep = Summariser(probes, config.glm, voxels, patterns, as_samples=samples, keep_effects=samples)
        return summarise(own, keep)

    peer = summary(as_many(by["training"]))
    judge = Judge(summary(by["test"], samples=False), peer, context, training_store.blocks(), config)
    source = Source(as_many(by["other"]), by["training"], mean, grid, mask_XYZ, rng)
    found: Study = {}
    for name in names:
        own = source.windows if name == REAL else ADVERSARIES[name][0](source)
        verdicts = judge(summary(sorted(own, key=lambda w: w.block.subject))).verdicts
        found[name] = {v.check.key: (v.answer, v.value) for v in verdicts}
    return found


def table(studies: list[Study], names: list[str]) -> str:
    """Markdown: a row for each check, a column for each adversary; F fails, p passes, ? cannot tell.

    With several repeats, the shares of fails."""
    letters = {"fail": "**F**", "pass": "p", "unclear": "?", "info": ""}
    lines = ["| check | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for check in CHECKS:
        cells = []
        for name in names:
            answers = [s[name][check.key][0] for s in studies if check.key in s[name]]
            share = sum(a == "fail" for a in answers) / max(len(answers), 1)
            cells.append(letters[answers[0]] if len(studies) == 1 and answers else f"{share:.2f}")
        lines.append(f"| {check.key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_lines(studies: list[Study], names: list[str]) -> list[str]:
    """Per adversary: passed, failed, cannot tell, and the power of the checks made for it."""
    lines = []
    for name in names:
        answers = Counter(answer for s in studies for answer, _ in s[name].values())
        n = len(studies)
        text = f"{name}: passes {answers['pass'] / n:.1f}, fails {answers['fail'] / n:.1f}, cannot tell {answers['unclear'] / n:.1f}"
        if name in ADVERSARIES:
            own = ADVERSARIES[name][1]
            power = np.mean([any(s[name][key][0] == "fail" for key in own) for s in studies])
            text += f"; found by a check made for it ({', '.join(own)}) in {power:.0%} of {n}"
        lines.append(text)
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", type=Path)
    parser.add_argument("--coarsen", type=int, default=2)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--per-person", type=int, default=3, help="blocks read of each person and condition")
    parser.add_argument("--only", nargs="*", help="adversaries; default: all and the other real people")
    parser.add_argument("--seed", type=int, default=0, help="of the first deal")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = EvaluateConfig()
    names = arguments.only or [REAL, *ADVERSARIES]
    windows, grid, mask_XYZ = coarse_windows(arguments.blocks, arguments.coarsen, config, arguments.per_person)
    studies = []
    for repeat in range(arguments.repeats):
        studies.append(
            study(
                windows, grid, mask_XYZ, arguments.samples, arguments.subjects, arguments.seed + repeat, config, names
            )
        )
        print(f"\nAfter {count_of(repeat + 1)}:\n" + "\n".join(summary_lines(studies, names)), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(studies))
    print("\n" + table(studies, names))


def count_of(n: int) -> str:
    """A number of repeats in words."""
    return f"{n} repeat{'s' if n != 1 else ''}"


if __name__ == "__main__":
    main()
