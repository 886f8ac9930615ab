"""Which check finds which fault: a table *adversary x check*.

    python benchmarks/adversaries.py BLOCKS... [--deals 20] [--subjects 20] [--samples 50] [--out FILE.json]
    python benchmarks/adversaries.py --simulate 80 --seed 2028 ...

BLOCKS are block datasets of real people (or of a phantom, which `--simulate` makes first, in a temporary folder). A
quarter of the people are the reference, whose patterns and regions tell responses. The others are dealt anew each time:
so many are compared with, half of the rest set the ceiling and, with the reference, are the training cohort; the blocks
of the last part are turned into what a bad generator would write. Every adversary goes through the checks of `evaluate`,
and so do the untouched blocks, which should pass. A table cell is the number of deals in which the check failed. Blocks
are read and measured once for each adversary; a deal only adds up. So deals share people, and intervals of shares of
deals are too narrow to the degree that they do. Windows are averaged over cubes of `--coarsen` voxels, which keeps what
is tested here and costs an eighth. The two classifiers, most of the cost, look at every `--classifiers-every`-th deal.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.ndimage import shift
from scipy.sparse import csr_matrix

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.evaluate.analysis import Judge
from fmrisynth.evaluate.checks import CHECKS, Answer, Context
from fmrisynth.evaluate.distinguish import in_turn
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.response import Timing, mirror_index
from fmrisynth.evaluate.rois import peak_rois
from fmrisynth.evaluate.scoring import wilson_interval
from fmrisynth.evaluate.summary import Blocks, Measured, Reference, Summariser, Summary, patterns_of
from fmrisynth.glm.windows import Window, common_mask, iterate_windows, smooth_inside
from fmrisynth.progress import track


@dataclass(frozen=True)
class Source:
    """What a bad generator knows: the people's mean windows and reference volume, and where the voxels are.

    Attributes
    ----------
    mean : dict of str to array
        Mean window of each condition over the reference people, (T, V).
    sd_V, reference_V : arrays
        Standard deviation around these means, and mean reference volume.
    grid, mask_XYZ
        Where the voxels are.
    rng : Generator
    """

    mean: dict[str, np.ndarray]
    sd_V: np.ndarray
    reference_V: np.ndarray
    grid: Grid
    mask_XYZ: np.ndarray
    rng: np.random.Generator

    @classmethod
    def learn(cls, windows: list[Window], grid: Grid, mask_XYZ: np.ndarray) -> Source:
        """Learn from people."""
        conditions = sorted({w.block.condition for w in windows})
        mean = {c: np.mean([w.percent_TV for w in windows if w.block.condition == c], axis=0) for c in conditions}
        variance_V = np.mean([np.square(w.percent_TV - mean[w.block.condition]).mean(axis=0) for w in windows], axis=0)
        reference_V = np.mean([w.reference_V for w in windows], axis=0).astype(np.float32)
        return cls(mean, np.sqrt(variance_V), reference_V, grid, mask_XYZ, np.random.default_rng(0))

    def next_to(self, condition: str) -> str:
        """The condition after this one, round and round."""
        names = list(self.mean)
        return names[(names.index(condition) + 1) % len(names)]


Change = Callable[[Source, Window], Window]


def signal(change: Callable[[Source, Window], np.ndarray]) -> Change:
    """An adversary that changes the signal alone."""
    return lambda source, w: replace(w, percent_TV=change(source, w).astype(np.float32))


def late(delay_s: float) -> Change:
    """The response comes later; the noise stays where it is. Before its first frame a response is what it was then."""

    def change(source: Source, w: Window) -> np.ndarray:
        mean = source.mean[w.block.condition]
        return w.percent_TV + shift(mean, (delay_s / w.block.tr_s, 0), order=1, mode="nearest") - mean

    return signal(change)


@signal
def white_noise(source: Source, w: Window) -> np.ndarray:
    """Class mean plus white noise of the right variance in every voxel."""
    return source.mean[w.block.condition] + source.sd_V * source.rng.standard_normal(w.percent_TV.shape)


def shuffled(source: Source, w: Window) -> Window:
    """Conditions turned one step round."""
    return replace(w, block=replace(w.block, condition=source.next_to(w.block.condition)))


def flipped(source: Source, w: Window) -> Window:
    """Left is right (where a voxel has a mirror image)."""
    mirror = mirror_index(source.mask_XYZ, source.grid.affine)
    index = np.where(mirror >= 0, mirror, np.arange(len(mirror)))
    return replace(w, percent_TV=w.percent_TV[:, index], reference_V=w.reference_V[index])


@signal
def smoothed(source: Source, w: Window) -> np.ndarray:
    """Smoothed by 8 mm FWHM in space, without taking anything from outside the mask."""
    return smooth_inside(w.percent_TV, source.mask_XYZ, source.grid, 8.0)


@signal
def other_autocorrelation(source: Source, w: Window) -> np.ndarray:
    """The frames of the noise in random order: the same values, no correlation between neighbours in time."""
    mean = source.mean[w.block.condition]
    return mean + (w.percent_TV - mean)[source.rng.permutation(len(mean))]


@signal
def mixed(source: Source, w: Window) -> np.ndarray:
    """Half the response of another condition in every sample."""
    own, other = (source.mean[c] for c in (w.block.condition, source.next_to(w.block.condition)))
    return w.percent_TV + 0.5 * (other - own)


def as_it_is(source: Source, w: Window) -> Window:
    """Nothing is changed; what is wrong is which blocks are chosen."""
    return w


REAL, COPIES, ONE_PERSON = "other real people", "copies of training blocks", "one person repeated"

ADVERSARIES: dict[str, tuple[Change, tuple[str, ...]]] = {
    COPIES: (as_it_is, ("copies", "copied_anatomy")),
    ONE_PERSON: (as_it_is, ("donors", "distinct", "anatomy_spread")),
    "class mean + white noise": (white_noise, ("connectivity", "smoothness", "effect_variance")),
    "shuffled labels": (shuffled, ("corr", "top1_per_sample", "utility")),
    "reversed in time": (signal(lambda s, w: w.percent_TV[::-1]), ("corr", "roi_courses", "latency")),
    "left-right flipped": (flipped, ("asymmetry",)),
    "amplitude x 0.67": (signal(lambda s, w: w.percent_TV * 0.67), ("gain",)),
    "amplitude x 1.5": (signal(lambda s, w: w.percent_TV * 1.5), ("gain",)),
    "late by 1.5 s": (late(1.5), ("latency",)),
    "early by 1.5 s": (late(-1.5), ("latency",)),
    "late by 2.9 s": (late(2.9), ("latency",)),
    "early by 2.9 s": (late(-2.9), ("latency",)),
    "over-smoothed (8 mm)": (smoothed, ("smoothness",)),
    "one shared anatomy": (lambda s, w: replace(w, reference_V=s.reference_V), ("anatomy_spread", "volume_subject", "donors")),
    "wrong autocorrelation": (other_autocorrelation, ("autocorrelation",)),
    "mixed conditions": (mixed, ("corr", "rsa", "top1_per_sample", "gain")),
}  # fmt: skip
"""What a bad generator writes, and the checks that were made for it."""

Answers = dict[str, dict[str, list[Answer]]]
"""Dataset -> check -> its answer in each deal that it looked at."""


def coarse_windows(
    roots: Iterable[Path], factor: int, config: EvaluateConfig, per_person: int
) -> tuple[list[Window], Grid, np.ndarray]:
    """At most so many blocks of each person and condition, averaged over cubes of voxels, in memory."""
    seen: Counter[tuple[str, str]] = Counter()
    blocks = []
    for block in (block for root in roots for block in read_blocks(root)):
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


@dataclass
class Deal:
    """People dealt to parts, and who judges."""

    other: list[str]
    peers: list[str]
    judge: Judge
    rng: np.random.Generator


@dataclass
class Bench:
    """Measured blocks of people, dealt again and again.

    Parameters
    ----------
    windows : list of Window
        Of all people.
    grid, mask_XYZ
        Where the voxels are.
    n_subjects, n_samples, n_deals : int
        People to compare with, samples of each condition, and how often people are dealt.
    classifiers_every : int
        The classifiers look at every so many-th deal.
    """

    windows: list[Window]
    grid: Grid
    mask_XYZ: np.ndarray
    n_subjects: int
    n_samples: int
    n_deals: int
    seed: int = 0
    classifiers_every: int = 1
    config: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        people = rng.permutation(sorted({w.block.subject for w in self.windows}))
        known, self.people = set(people[: len(people) // 4]), people[len(people) // 4 :]
        own = [w for w in self.windows if w.block.subject in known]
        self.source = Source.learn(own, self.grid, self.mask_XYZ)
        self.conditions = list(self.source.mean)
        reference, plain = Reference(self.config.glm), Probes(self.grid, self.mask_XYZ, [])
        for _ in reference.watch(own):
            pass
        maps = reference.arrays(plain)
        self.patterns = patterns_of(maps, plain)
        t = {c: e / np.sqrt(v) for c, e, v in zip(self.patterns, maps["effect"], maps["variance"], strict=True)}
        rois = peak_rois(t, self.mask_XYZ, self.grid, "the reference people")
        self.probes = Probes(self.grid, self.mask_XYZ, rois)
        n_voxels = int(self.mask_XYZ.sum())
        self.voxels = np.sort(rng.permutation(n_voxels)[: n_voxels // 3])  # as many as `evaluate` takes of a brain
        tr_s = own[0].block.tr_s
        timing = {c: Timing(course, tr_s) for c, course in zip(self.patterns, maps["course"], strict=True)}
        odd = {c: pattern.odd_energy for c, pattern in self.patterns.items()}
        self.context = Context(self.conditions, self.conditions, rois, timing, odd)
        measure = self.keep().measure
        self.reference = [measure(w) for w in own]
        self.windows = [w for w in self.windows if w.block.subject not in known]
        self.real = [measure(w) for w in track(self.windows, "real blocks", total=len(self.windows))]
        self.deals = [self.deal(np.random.default_rng([self.seed, number])) for number in range(self.n_deals)]

    def keep(self) -> Summariser:
        """An empty summary of samples."""
        return Summariser(self.probes, self.config.glm, self.voxels, self.patterns, as_samples=True)

    def deal(self, rng: np.random.Generator) -> Deal:
        """Deal the people that are not the reference."""
        order = list(rng.permutation(self.people))
        half = (len(order) - self.n_subjects) // 2
        test, peers = order[: self.n_subjects], order[self.n_subjects : self.n_subjects + half]
        real = Summariser(self.probes, self.config.glm, self.voxels, self.patterns, keep_effects=False)
        for one in self.real:
            if one.subject in test:
                real.add(one)
        training = [*self.reference, *(one for one in self.real if one.subject in peers)]
        blocks = Blocks(
            np.stack([one.cells_CT.T.reshape(-1) for one in training]), np.stack([one.anatomy_C for one in training]),
            np.array([one.subject for one in training]), np.array([one.condition for one in training]),
        )  # fmt: skip
        peer = self.summary(self.as_many(self.real, peers, rng))
        judge = Judge(real.finish(), peer, self.context, blocks, self.config)
        return Deal(order[self.n_subjects + half :], peers, judge, rng)

    def as_many(self, measured: list[Measured], people: list[str], rng: np.random.Generator) -> list[Measured]:
        """As many blocks of each condition as there are samples, people in turn (fewer where there are not so many)."""
        found: list[Measured] = []
        names_N = np.array([one.subject for one in measured])
        for condition in self.conditions:
            own = [i for i, one in enumerate(measured) if one.condition == condition and one.subject in people]
            found += [measured[i] for i in in_turn(names_N, rng.permutation(np.array(own)))[: self.n_samples]]
        return found

    def summary(self, chosen: list[Measured]) -> Summary:
        """The summary of samples."""
        keep = self.keep()
        for one in sorted(chosen, key=lambda one: one.subject):
            keep.add(one)
        return keep.finish()

    def samples(self, name: str, measured: list[Measured], deal: Deal) -> list[Measured]:
        """What an adversary hands in."""
        chosen = self.as_many(measured, deal.other, deal.rng)
        pool = measured
        if name == COPIES:
            pool = [one for one in measured if one.subject in deal.peers]
        elif name == ONE_PERSON:
            person = Counter(one.subject for one in chosen).most_common(1)[0][0]
            pool = [one for one in measured if one.subject == person]
        else:
            return chosen
        of = {c: [one for one in pool if one.condition == c] for c in self.conditions}
        drawn = [of[one.condition][int(deal.rng.integers(len(of[one.condition])))] for one in chosen]
        return [replace(new, subject=one.subject) for new, one in zip(drawn, chosen, strict=True)]

    def answers(self, name: str) -> dict[str, list[Answer]]:
        """How each check answers to an adversary in each deal."""
        change = as_it_is if name == REAL else ADVERSARIES[name][0]
        measure = self.keep().measure
        measured = self.real if change is as_it_is else [measure(change(self.source, w)) for w in self.windows]
        found: dict[str, list[Answer]] = {}
        for number, deal in enumerate(self.deals):
            with_classifiers = number % self.classifiers_every == 0
            judged = deal.judge(self.summary(self.samples(name, measured, deal)), classifiers=with_classifiers)
            for verdict in judged.verdicts:
                found.setdefault(verdict.check.key, []).append(verdict.answer)
        return found


def table(answers: Answers) -> str:
    """Markdown: a row for each check, a column for each adversary: in how many deals it failed, of how many where not of all."""
    n_deals = max(len(each) for of in answers.values() for each in of.values())
    lines = ["| check | " + " | ".join(answers) + " |", "| --- |" + " --- |" * len(answers)]
    for check in CHECKS:
        cells = []
        for name, of in answers.items():
            each = of.get(check.key, [])
            n = sum(answer == "fail" for answer in each)
            text = f"{n}" if len(each) == n_deals else f"{n}/{len(each)}"
            cells.append(f"**{text}**" if name in ADVERSARIES and check.key in ADVERSARIES[name][1] else text)
        lines.append(f"| `{check.key}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def power_table(answers: Answers) -> str:
    """Markdown: how often each adversary fails one of the checks made for it, and how the untouched blocks of other people do."""
    lines = [
        "| adversary | made for it | found | 95 % interval | passes | fails | cannot tell |",
        "| --- |" + " --- |" * 6,
    ]
    for name, of in answers.items():
        counts = Counter(answer for each in of.values() for answer in each)
        total = counts.total()
        own = ADVERSARIES[name][1] if name in ADVERSARIES else ()
        hits = np.array([[answer == "fail" for answer in of[key]] for key in own]).any(axis=0) if own else np.zeros(0)
        low, high = wilson_interval(float(hits.mean()), len(hits)) if own else (0.0, 0.0)
        found = f"{int(hits.sum())}/{len(hits)} | {low:.2f} to {high:.2f}" if own else "– | –"
        shares = " | ".join(f"{100 * counts[answer] / total:.0f} %" for answer in ("pass", "fail", "unclear"))
        lines.append(f"| {name} | {', '.join(f'`{key}`' for key in own) or '–'} | {found} | {shares} |")
    return "\n".join(lines)


def real_line(answers: Answers) -> str:
    """Other real people pass m of N checks, and fail how many."""
    each = [answer for of in answers[REAL].values() for answer in of]
    n_deals = max(len(of) for of in answers[REAL].values())
    failed, passed = (sum(answer == kind for answer in each) for kind in ("fail", "pass"))
    low, high = wilson_interval(failed / len(each), len(each))
    return (
        f"Other real people pass {passed} of {len(each)} checks in {n_deals} deals ({100 * passed / len(each):.1f} %) and fail {failed} "
        f"({100 * failed / len(each):.1f} %, Wilson {100 * low:.1f} to {100 * high:.1f} %)."
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("blocks", type=Path, nargs="*")
    parser.add_argument("--simulate", type=int, help="make so many phantom people instead")
    parser.add_argument("--coarsen", type=int, default=2)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--deals", type=int, default=20)
    parser.add_argument("--classifiers-every", type=int, default=5)
    parser.add_argument("--per-person", type=int, default=3, help="blocks read of each person and condition")
    parser.add_argument("--only", nargs="*", help="adversaries; default: all and the other real people")
    parser.add_argument("--seed", type=int, default=0, help="of the deals, and of the phantom")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = EvaluateConfig()
    with TemporaryDirectory() as folder:
        roots = arguments.blocks
        if arguments.simulate is not None:
            from fmrisynth.config.simulate import SimulateConfig
            from fmrisynth.simulate import simulate_blocks

            roots = [Path(folder) / "people"]
            simulate_blocks(roots[0], SimulateConfig(n_subjects=arguments.simulate, seed=arguments.seed))
        if not roots:
            parser.error("give block datasets, or --simulate N")
        windows, grid, mask_XYZ = coarse_windows(roots, arguments.coarsen, config, arguments.per_person)
    bench = Bench(
        windows, grid, mask_XYZ, arguments.subjects, arguments.samples, arguments.deals, arguments.seed,
        arguments.classifiers_every, config,
    )  # fmt: skip
    answers: Answers = {}
    for name in arguments.only or [REAL, *ADVERSARIES]:
        answers[name] = bench.answers(name)
        print(power_table({name: answers[name]}).splitlines()[-1], flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(answers))
    print("\n" + table(answers) + "\n\n" + power_table(answers))
    if REAL in answers:
        print("\n" + real_line(answers))


if __name__ == "__main__":
    main()
