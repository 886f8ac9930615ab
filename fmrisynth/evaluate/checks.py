"""The checks: what each must detect, how it is measured, and the three answers.

Every check compares one number of the samples with what real people give. Two limits are stated before anything is measured: a
difference up to `tolerated` does not matter, one of `alternative` must be found. With a 95 % interval the answer is

- **fails** when the whole interval lies beyond what is tolerated,
- **passes** when the whole interval lies short of the alternative,
- **cannot tell** otherwise: too few people or samples for this question.

So samples as good as tolerated fail in at most 2.5 % of studies, and samples as bad as the alternative pass in at most 2.5 %.

Axis legend: K conditions (or one pooled value), C cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import digamma

from fmrisynth.evaluate.courses import Course, course_pairs, mean_agreement, mean_correlation
from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.response import Timing
from fmrisynth.evaluate.rois import Roi
from fmrisynth.evaluate.scoring import map_scores, sample_hits
from fmrisynth.evaluate.variance import variance_shares
from fmrisynth.glm.map_scores import off_diagonal, pearson

Kind = Literal["ratio", "difference", "share", "distance"]
Answer = Literal["pass", "fail", "unclear", "info"]
ANSWERS = {"pass": "passes", "fail": "fails", "unclear": "cannot tell", "info": "not judged"}

LEAST_CEILING = 0.2
"""A pattern that real data reproduce worse than this is not judged."""


@dataclass(frozen=True)
class Context:
    """What is the same for all datasets of one evaluation.

    Attributes
    ----------
    conditions, candidates : list of str
        Those to compare, and all real ones (the former first).
    rois : sequence of Roi
    timing : dict of str to Timing
        Per condition, the reference people's course as a template; empty without reference people.
    odd_energy : dict of str to float
        How lateralised each condition is in the reference people.
    """

    conditions: list[str]
    candidates: list[str]
    rois: Sequence[Roi]
    timing: dict[str, Timing] = field(default_factory=dict)
    odd_energy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The number in real people and in the samples, and what is judged: one value, or one for each of `names` and their mean."""

    real: float
    other: float
    values_K: np.ndarray
    names: Sequence[str] = ()


Statistic = Callable[[Properties, Properties, Properties | None, Context], Found | None]


@dataclass(frozen=True)
class Check:
    """One check, declared once.

    Attributes
    ----------
    key, title : str
    detects : str
        The stated alternative in words.
    kind : {"ratio", "difference", "share", "distance"}
        The scale of the judged value: natural logarithm of samples / real (ideal 0), samples - real (ideal 0), share of what
        as many real blocks reach (ideal 1, more is no fault), or a distance (ideal 0).
    tolerated, alternative : float
        Limits on that scale; for ratios given as factors.
    what : str
        The number, in words, with its unit.
    statistic : callable, optional
        Of properties, so that it can be jackknifed; without one the check brings its own interval (see `distinguish`).
    """

    key: str
    title: str
    detects: str
    kind: Kind
    tolerated: float
    alternative: float
    what: str
    statistic: Statistic | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """Tolerated and alternative, as distances from the ideal."""
        if self.kind == "ratio":
            return float(np.log(self.tolerated)), float(np.log(self.alternative))
        if self.kind == "share":
            return 1 - self.tolerated, 1 - self.alternative
        return self.tolerated, self.alternative

    @property
    def rule(self) -> str:
        """The limits in words; "surely" is the whole interval."""
        if self.alternative == 0:
            return "passes if none is found beyond chance, fails if any is"
        if self.kind == "share":
            reached = "of what as many real blocks reach"
            return f"passes if surely above {self.alternative:g}, fails if surely below {self.tolerated:g} {reached}"
        size = {"ratio": "a factor of ", "difference": "±"}.get(self.kind, "")
        return f"passes if surely within {size}{self.alternative:g}, fails if surely beyond {size}{self.tolerated:g}"

    def miss(self, value: float) -> float:
        """Signed distance of a judged value from the ideal; of shares only what is lacking."""
        return 1.0 - value if self.kind == "share" else value

    def shown(self, value: float) -> float:
        """A judged value as it is printed: ratios as factors."""
        return float(np.exp(np.clip(value, -20, 20))) if self.kind == "ratio" else value

    def answer(self, low: float, high: float) -> Answer:
        """The answer that an interval gives."""
        tolerated, alternative = self.limits
        ends = sorted((self.miss(low), self.miss(high)))
        one_sided = self.kind in ("share", "distance")
        if ends[0] > tolerated or (not one_sided and ends[1] < -tolerated):
            return "fail"
        if ends[1] < alternative and (one_sided or ends[0] > -alternative):
            return "pass"
        return "unclear"


@dataclass(frozen=True)
class Verdict:
    """A check's answer about one dataset; `value`, `low`, `high` and the value of each of several `parts` (conditions,
    frequencies) as printed.
    """

    check: Check
    answer: Answer
    real: float | None = None
    other: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    parts: dict[str, tuple[float, Answer]] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(
        cls, check: Check, real: float | None, other: float | None, value: float, reach: float, note: str = ""
    ) -> Verdict:
        """The answer that a judged value with its interval gives."""
        low, high = value - reach, value + reach
        ends = check.shown(low), check.shown(high)
        return cls(check, check.answer(low, high), real, other, check.shown(value), *ends, note=note)

    @property
    def detail(self) -> str:
        """One sentence: the numbers, the rule, and why."""
        text = self.check.what
        if self.value is not None:
            both = self.real is not None and self.other is not None
            pair = f"real {self.real:.3g}, samples {self.other:.3g}; " if both else ""
            text += f": {pair}{show(self.value, self.low, self.high)}"
        parts = [text]
        bad = [f"{name} {value:.3g}" for name, (value, answer) in self.parts.items() if answer == "fail"]
        if bad:
            parts.append(f"fails in {', '.join(bad)}")
        parts.append(f"{self.check.rule}; made to find {self.check.detects}")
        return "; ".join(parts) + (f". {self.note}" if self.note else ".")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.check.title, "detects": self.check.detects, "kind": self.check.kind,
            "rule": self.check.rule, "what": self.check.what,
            "real": self.real, "synthetic": self.other, "value": self.value,
            "interval_95": None if self.low is None else [self.low, self.high], "answer": self.answer,
            "parts": {name: {"value": value, "answer": answer} for name, (value, answer) in self.parts.items()},
            "note": self.note,
        }  # fmt: skip


def show(value: float | None, low: float | None = None, high: float | None = None, digits: int = 2) -> str:
    """A number with its interval, or a dash."""
    if value is None:
        return "–"
    numbers = [value] if low is None or high is None else [value, low, high]
    text, *interval = (f"{round(number, digits) + 0.0:.{digits}f}" for number in numbers)  # + 0.0: never "-0.00"
    return f"{text} [{', '.join(interval)}]" if interval else text


# ------------------------------------------------------------------ statistics


def _log(ratio: float) -> float:
    return float(np.log(max(ratio, 1e-6))) if np.isfinite(ratio) else float("nan")


def _ratio(real: float, other: float) -> Found:
    return Found(real, other, np.array([_log(other / real) if real > 0 else np.nan]))


def _difference(real: float, other: float) -> Found:
    return Found(real, other, np.array([other - real]))


def _of_both(measure: Callable[[Properties, Context], float], build: Callable[[float, float], Found]) -> Statistic:
    def statistic(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found:
        key = (measure, *context.conditions)
        return build(*(p.once(key, lambda p=p: measure(p, context)) for p in (real, other)))  # type: ignore[misc]

    return statistic


def _share_of_peer(measure: Callable[[Properties, Properties, Context], float]) -> Statistic:
    """What the samples reach against the real data, as a share of what as many real blocks reach."""

    def statistic(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found:
        best = float("nan")
        if peer is not None:  # the same for every dataset that is judged
            best = real.once((measure, peer.memo, *context.conditions), lambda: measure(real, peer, context))
        own = measure(real, other, context)
        return Found(best, own, np.array([own / best if best > LEAST_CEILING else np.nan]))

    return statistic


def _mean(values: np.ndarray) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else float("nan")


def _of_blocks(properties: Properties, context: Context, name: str) -> np.ndarray:
    return getattr(properties.rows, name)[np.isin(properties.rows.conditions_N, context.conditions)]


def _log_spread(properties: Properties, context: Context) -> float:
    values = _of_blocks(properties, context, "block_variance_N")
    positive = values[values > 0]
    return float(np.log(positive).std(ddof=1)) if positive.size > 1 else float("nan")


def _effect_variance(properties: Properties, context: Context) -> float:
    """Geometric mean over voxels and conditions, with the expectation that the logarithm of a normal variance of so
    many degrees of freedom has.

    Not the median: leaving out one person reorders the voxels near it, which says nothing of how it varies between cohorts.
    """
    found = [(properties.effect_variance(c), properties.n_blocks_apart(c) - 1) for c in context.conditions]
    logs = [
        np.log(v[v > 0]).mean() - digamma(dof / 2) + np.log(dof / 2)
        for v, dof in found
        if v is not None and (v > 0).any()
    ]
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def _within_conditions(properties: Properties, context: Context, values_NX: np.ndarray) -> float:
    """Root of the variance over blocks within conditions, summed over the last axis."""
    rows, total, dof = properties.rows, 0.0, 0
    for condition in context.conditions:
        own = values_NX[rows.conditions_N == condition]
        if len(own) > 1:
            total += float(np.square(own - own.mean(axis=0)).sum(dtype=np.float64))
            dof += len(own) - 1
    return float(np.sqrt(total / dof)) if dof else float("nan")


def _spread_between_people(properties: Properties, features_NC: np.ndarray) -> float:
    """Variance over people of their mean features, averaged over cells."""
    names, person = np.unique(properties.rows.people_N, return_inverse=True)
    if len(names) < 2:
        return float("nan")
    average = csr_matrix((1 / np.bincount(person)[person], (person, np.arange(len(person)))))
    return float((average @ features_NC).var(axis=0, ddof=1).mean())


def _spectrum(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found:
    a_F, b_F = (np.maximum(_of_blocks(p, context, "spectrum_NF").mean(axis=0), 1e-12) for p in (real, other))
    names = [f"{index + 1} per window" for index in range(len(a_F))]
    return Found(float(a_F.sum()), float(b_F.sum()), np.log(b_F / a_F), names)


def _condition_means(properties: Properties, context: Context, name: str) -> np.ndarray:
    rows = properties.rows
    return np.stack([getattr(rows, name)[rows.conditions_N == c].mean(axis=0) for c in context.conditions])


def _gain(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found | None:
    if not context.timing:
        return None
    a_K, b_K = (_condition_means(p, context, "gain_N") for p in (real, other))
    values_K = np.array([_log(b / a) if a > 0 else np.nan for a, b in zip(a_K, b_K, strict=True)])
    return Found(float(a_K.mean()), float(b_K.mean()), values_K, context.conditions)


def _asymmetry(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found | None:
    weights_K = np.array([context.odd_energy.get(c, 0.0) for c in context.conditions])
    if not weights_K.sum() > 0:
        return None
    a, b = (float(np.average(_condition_means(p, context, "odd_gain_N"), weights=weights_K)) for p in (real, other))
    return Found(a, b, np.array([b / a])) if np.isfinite(a) and a > LEAST_CEILING else None


def _timing(which: int) -> Statistic:
    def statistic(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found | None:
        if not context.timing:
            return None
        fits = [context.timing[c] for c in context.conditions]
        means = [_condition_means(p, context, "response_NT") for p in (real, other)]
        a_K, b_K = (np.array([fit(course)[which] for fit, course in zip(fits, of, strict=True)]) for of in means)
        return Found(float(a_K.mean()), float(b_K.mean()), b_K - a_K, context.conditions)

    return statistic


def _phase_encoding(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Found | None:
    if peer is None:
        return None
    maps = []
    for p in (real, other, peer):
        labels = sorted(set(p.rows.phase_encodings_N))
        if len(labels) != 2 or "" in labels:
            return None
        a, b = (p.rows.volume_NC[p.rows.phase_encodings_N == label].mean(axis=0) for label in labels)
        maps.append(b - a)
    norm = float(maps[2] @ maps[2])
    own, best = float(maps[1] @ maps[2]) / norm, float(maps[0] @ maps[2]) / norm
    return Found(best, own, np.array([own / best])) if best > LEAST_CEILING else None


def _task_share(properties: Properties, context: Context) -> float:
    rows = properties.rows
    share = variance_shares(rows.volume_NC - rows.anatomy_NC, list(rows.conditions_N))
    return float("nan") if share is None or len(context.conditions) < 2 else share


def _log_variance_r(real: Properties, other: Properties, context: Context) -> float:
    return float(pearson(*(np.log(np.maximum(p.residual_variance_V, 1e-12)) for p in (real, other))))


def _connectivity_r(real: Properties, other: Properties, context: Context) -> float:
    a, b = off_diagonal(real.connectivity_PP), off_diagonal(other.connectivity_PP)
    return float(pearson(a, b)) if a.size >= 10 else float("nan")


def _courses(compare: Callable[[list[tuple[Course, Course]]], float]) -> Statistic:
    def measure(real: Properties, other: Properties, context: Context) -> float:
        key = ("courses", real.memo, *context.conditions)
        return compare(other.once(key, lambda: course_pairs(real, other, context.conditions, context.rois)))

    return _share_of_peer(measure)


def _score(name: str) -> Statistic:
    def measure(real: Properties, other: Properties, context: Context) -> float:
        key = ("scores", real.memo, *context.conditions)
        value = getattr(other.once(key, lambda: map_scores(real, other, context.conditions, context.candidates)), name)
        return float("nan") if value is None else float(value)

    return _share_of_peer(measure)


def _top1(real: Properties, other: Properties, context: Context) -> float:
    hits = sample_hits(real, other, context.conditions, context.candidates)
    return float("nan") if hits is None else float(hits.mean())


# ------------------------------------------------------------------ the list

CHECKS: tuple[Check, ...] = (
    Check("corr", "Map correlation (Corr)", "maps that miss a quarter of what real blocks share", "share", 0.9, 0.75,
          "mean Pearson r of group maps", _score("corr")),
    Check("rsa", "Representational similarity (RSA)", "another geometry of conditions", "share", 0.9, 0.6,
          "Pearson r of the pairs of conditions", _score("rsa_pearson")),
    Check("top1_per_sample", "Condition specificity (Top-1, single samples)", "shuffled or mixed conditions", "share", 0.9, 0.7,
          "share of blocks nearest to their own real map", _share_of_peer(_top1)),
    Check("gain", "Amplitude of responses", "responses half as strong again, or two thirds", "ratio", 1.15, 1.5,
          "mean gain along the reference people's pattern, samples / real", _gain),
    Check("latency", "Latency of responses", "responses 1.5 s late or early", "difference", 0.5, 1.5,
          "delay against the reference course, s, samples - real", _timing(0)),
    Check("width", "Width of responses", "responses smeared by a kernel of 3 s standard deviation, or as much sharper",
          "difference", 3.0, 9.0, "variance of the response, s², samples - real", _timing(1)),
    Check("asymmetry", "Left-right asymmetry of responses", "flipped or symmetric maps", "share", 0.7, 0.3,
          "gain along the left-right odd part of the reference maps", _asymmetry),
    Check("gain_spread", "Spread of amplitudes", "blocks that all respond alike, or half as differently again", "ratio", 1.25, 1.67,
          "standard deviation over blocks of the gain, samples / real",
          _of_both(lambda p, c: _within_conditions(p, c, p.rows.gain_N[:, None]), _ratio)),
    Check("place_spread", "Spread of places (displacement of the response)", "responses at one place, or scattered", "ratio", 1.15, 1.4,
          "root mean square displacement near the peak, samples / real",
          _of_both(lambda p, c: _within_conditions(p, c, p.rows.place_mm_N3), _ratio)),
    Check("overlap", "Overlap of active voxels between blocks (Dice at equal area)",
          "blocks more, or less, alike in place than people", "ratio", 1.25, 1.67, "mean Dice of pairs, samples / real",
          _of_both(lambda p, c: float(np.mean([p.overlap(k) for k in c.conditions])), _ratio)),
    Check("effect_variance", "Variance of effects between blocks", "effects a third more or less spread", "ratio", 1.25, 1.75,
          "geometric mean over voxels of the variance within conditions, samples / real", _of_both(_effect_variance, _ratio)),
    Check("anatomy_spread", "Spread of anatomies between people", "one anatomy for all", "ratio", 1.4, 2.5,
          "variance over people of the log reference volume, samples / real",
          _of_both(lambda p, c: _spread_between_people(p, p.rows.anatomy_NC), _ratio)),
    Check("volume_subject", "Whole volumes: variance by subject", "volumes that do not differ between people", "ratio", 1.4, 2.5,
          "variance over people of block-mean volumes, samples / real",
          _of_both(lambda p, c: _spread_between_people(p, p.rows.volume_NC), _ratio)),
    Check("volume_phase", "Whole volumes: phase encoding", "no difference between phase encodings", "share", 0.7, 0.3,
          "difference of block-mean volumes along that of the reference people", _phase_encoding),
    Check("volume_task", "Whole volumes: variance by task", "tasks that move the mean volume twice as much", "ratio", 1.4, 2.5,
          "share of the variance of block-mean changes, samples / real", _of_both(_task_share, _ratio)),
    Check("residual_variance", "Voxel variance over time", "noise half as strong again in standard deviation", "ratio", 1.3, 2.0,
          "median over voxels of the variance that the task does not explain, samples / real",
          _of_both(lambda p, c: float(np.median(p.residual_variance_V)), _ratio)),
    Check("variance_spread", "Differences in variance between blocks", "blocks that are all equally noisy", "ratio", 1.4, 2.0,
          "standard deviation over blocks of their log variance, samples / real", _of_both(_log_spread, _ratio)),
    Check("variance_map", "Where in the brain the signal varies", "noise in other places", "share", 0.9, 0.7,
          "Pearson r of log variance maps", _share_of_peer(_log_variance_r)),
    Check("autocorrelation", "Temporal autocorrelation (lag 1)", "another autocorrelation", "difference", 0.05, 0.15,
          "samples - real", _of_both(lambda p, c: _mean(_of_blocks(p, c, "autocorrelation_NL")[:, 0]), _difference)),
    Check("spectrum", "Power spectrum", "power off by three quarters at every frequency, or at one", "ratio", 1.3, 1.8,
          "power, geometric mean over frequencies, samples / real", _spectrum),
    Check("smoothness", "Spatial smoothness", "residuals a quarter smoother or rougher", "ratio", 1.1, 1.25,
          "FWHM of residuals, samples / real", _of_both(lambda p, c: _mean(_of_blocks(p, c, "fwhm_mm_N")), _ratio)),
    Check("connectivity", "Functional connectivity (residuals, parcel pairs)", "other networks", "share", 0.9, 0.7,
          "Pearson r over parcel pairs", _share_of_peer(_connectivity_r)),
    Check("roi_courses", "ROI time courses", "courses of another shape", "share", 0.9, 0.7,
          "mean Pearson r of mean courses", _courses(mean_correlation)),
    Check("roi_agreement", "ROI time courses within sampling error", "courses of another height or shape", "share", 0.85, 0.6,
          "share of frames at which means differ by less than 1.96 standard errors", _courses(mean_agreement)),
    Check("linear_classifier", "A linear classifier tells samples from people", "samples that it recognises", "distance", 0.1, 0.25,
          "AUC above that of real blocks against real blocks"),
    Check("forest_classifier", "A forest tells samples from people", "samples that it recognises", "distance", 0.1, 0.25,
          "AUC above that of real blocks against real blocks"),
    Check("distinct", "Samples that differ from each other", "every sample twice", "share", 0.9, 0.5,
          "effective number of different samples / their number"),
    Check("donors", "Different people behind the samples", "a quarter of as many people as behind as many real blocks", "share", 0.5, 0.25,
          "effective number of different anatomies"),
    Check("copies", "No copies of training blocks (dynamics)", "copies or near copies of single training blocks", "distance", 0.0, 0.0,
          "share of samples that single out a training block, beyond that of training blocks"),
    Check("copied_anatomy", "No copies of training anatomies", "reference volumes of single training people", "distance", 0.0, 0.0,
          "share of samples that single out a training person's reference volume, beyond that of training blocks"),
    Check("utility", "A classifier trained on samples works on people", "half of what it learns from real blocks", "share", 0.8, 0.5,
          "accuracy above chance on real test blocks"),
)  # fmt: skip
"""Every check, in the order of the report."""

BY_KEY = {check.key: check for check in CHECKS}
