"""Which checks passed, in words: the summary a reader sees first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from fmrisynth.evaluate.analysis import Analysis
from fmrisynth.evaluate.realism import Check
from fmrisynth.evaluate.scoring import Score

Outcome = Literal["pass", "warn", "fail", "info"]

SCORE_TITLES = {
    "corr": "Map correlation (Corr)",
    "rsa_pearson": "Representational similarity (RSA, Pearson)",
    "rsa_spearman": "Representational similarity (RSA, Spearman)",
    "top1": "Condition specificity (Top-1, group maps)",
    "top1_per_sample": "Condition specificity (Top-1, single samples)",
}


@dataclass(frozen=True)
class Judgement:
    """One line of the summary."""

    key: str
    outcome: Outcome
    title: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"key": self.key, "outcome": self.outcome, "title": self.title, "detail": self.detail}


def show(score: Score | Check | None, digits: int = 2) -> str:
    """A number with its interval, or a dash."""
    if score is None or score.value is None:
        return "–"
    values = [score.value] if score.low is None or score.high is None else [score.value, score.low, score.high]
    value, *interval = (f"{round(number, digits) + 0.0:.{digits}f}" for number in values)  # + 0.0: never "-0.00"
    return f"{value} [{', '.join(interval)}]" if interval else value


def ceiling_of(analysis: Analysis, name: str) -> tuple[float, str] | None:
    """The best real-against-real value of a score: training against test, else split halves."""
    if analysis.train_ceiling is not None:
        score = analysis.train_ceiling.scores.get(name)
        if score is not None and score.value is not None:
            return score.value, "training against test subjects"
    if name in analysis.split_half and analysis.split_half[name].value is not None:
        return float(analysis.split_half[name].value or 0.0), "split halves of the test subjects"
    if name == "top1_per_sample" and analysis.real_per_block is not None:
        return float(analysis.real_per_block.value or 0.0), "single real blocks, leave-one-subject-out"
    return None


def judge(analysis: Analysis) -> list[Judgement]:
    """The summary, in the order a reader needs it: scores, baselines, realism, privacy, utility."""
    lines = [
        _score_line(analysis, name) for name in SCORE_TITLES
        if name in analysis.comparison.scores and name != "rsa_spearman"
    ]  # fmt: skip
    lines += _baseline_line(analysis)
    for check in analysis.checks:
        if check.value is None:
            detail = check.note or "not computed"
        else:
            pair = ""
            if check.real is not None and check.synthetic is not None and check.synthetic != check.value:
                pair = f"real {check.real:.3g}, synthetic {check.synthetic:.3g}; "
            note = f" ({check.note})" if check.note else ""
            detail = f"{pair}{check.what} {show(check, 3)}{note}; {check.bounds}."
        lines.append(Judgement(f"realism.{check.key}", check.outcome, check.title, detail))
    lines += _rivals_line(analysis)
    for name, audit in analysis.privacy.items():
        sentence = {
            "pass": "no sample singles out a training block more often than chance",
            "warn": "samples lie nearer to the training data than training blocks of different subjects do, but without "
            "singling out one block: over-smooth samples do that",
            "fail": "samples are copies or near copies of single training blocks",
        }[audit.outcome]
        n_samples = len(audit.synthetic_nearest_M)
        samples = f"{n_samples} samples" + (f", {audit.n_distinct} distinct," if audit.n_distinct < n_samples else "")
        outcome: Outcome = audit.outcome  # type: ignore[assignment]
        if name == "anatomy" and audit.outcome == "fail":
            sentence += " (of their reference volume)"
        lines.append(
            Judgement(
                f"privacy.{name}",
                outcome,
                f"Privacy: nearest training neighbours ({name})",
                f"{100 * audit.share_below:.0f} % of {samples} under the threshold, {len(audit.copies)} "
                f"singled out, mean distance {audit.ratio_of_means:.2f} times training to training: {sentence}.",
            )
        )
    lines += _utility_line(analysis)
    return lines


def _score_line(analysis: Analysis, name: str) -> Judgement:
    score = analysis.comparison.scores[name]
    title = SCORE_TITLES[name]
    if score.value is None:
        return Judgement(f"score.{name}", "info", title, score.note)
    ceiling = ceiling_of(analysis, name)
    detail = show(score)
    if score.p is not None:
        detail += f", permutation p {'<' if score.p < 0.001 else '='} {max(score.p, 0.001):.3f}"
    if ceiling is None:
        return Judgement(f"score.{name}", "info", title, f"{detail}; no ceiling to judge it by. {score.note}".strip())
    value, what = ceiling
    detail += f"; real against real {value:.2f} ({what})."
    upper = score.high if score.high is not None else score.value
    if score.value >= 0.9 * value:
        outcome: Outcome = "pass"
    elif upper >= 0.75 * value:
        outcome = "warn"
    else:
        outcome = "fail"
    if score.p is not None and score.p > 0.05 and outcome == "pass":
        outcome = "warn"
        detail += " Shuffled condition labels score as high too often."
    if value <= 0.1:
        outcome = "info"
        detail += " The real data themselves do not reproduce, so this score says nothing."
    return Judgement(f"score.{name}", outcome, title, f"{detail} {score.note}".strip())


def _baseline_line(analysis: Analysis) -> list[Judgement]:
    own = analysis.comparison.scores["corr"].value
    rivals = [
        (b.name, b.comparison.scores["corr"].value) for b in analysis.baselines
        if b.comparison.scores["corr"].value is not None
    ]  # fmt: skip
    if own is None or not rivals:
        return []
    better = [f"{name} {value:.2f}" for name, value in rivals if value is not None and value > own]
    worse = [f"{name} {value:.2f}" for name, value in rivals if value is not None and value <= own]
    if not better:
        return [
            Judgement(
                "baselines", "pass", "Trivial baselines", f"Corr {own:.2f} is above all of them: {', '.join(worse)}."
            )
        ]
    outcome: Outcome = "warn" if worse else "fail"
    return [
        Judgement(
            "baselines",
            outcome,
            "Trivial baselines",
            f"Corr {own:.2f} is below {', '.join(better)}. A high Corr alone proves little: copying the class mean gets it too.",
        )
    ]


def _rivals_line(analysis: Analysis) -> list[Judgement]:
    """Realism against the baselines: a generator worth having is not behind one of them."""
    counts = {b.name: Counter(standing for standing in b.standings.values() if standing) for b in analysis.baselines}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return []
    behind = [name for name, count in counts.items() if count["nearer"] > count["farther"]]
    parts = [
        f"{name}: {count['farther']} of {count.total()} (farther in {count['nearer']}, no difference in {count['even']})"
        for name, count in counts.items()
    ]
    detail = f"Properties in which the samples are nearer to the real data, beyond chance, than {'; '.join(parts)}."
    copying = [
        b.name for b in analysis.baselines if b.name in counts and b.privacy is not None and b.privacy.outcome == "fail"
    ]
    if copying:
        detail += f" Copies of training blocks, by the privacy audit: {', '.join(copying)}."
    outcome: Outcome = "pass" if not behind else "warn" if len(behind) < len(counts) else "fail"
    return [Judgement("realism_baselines", outcome, "Realism against trivial baselines", detail)]


def _utility_line(analysis: Analysis) -> list[Judgement]:
    found = {(t.trained_on, t.tested_on): t for t in analysis.utility}
    main = found.get(("synthetic", "real test"))
    if main is None:
        return []
    best = found.get(("real training", "real test"))
    detail = f"A classifier trained on synthetic blocks names {100 * main.accuracy:.0f} % of real test blocks (chance {100 * main.chance:.0f} %"
    if best is None:
        return [Judgement("utility", "pass" if main.low > main.chance else "fail", "Utility", detail + ").")]
    gain, reach = main.accuracy - main.chance, best.accuracy - best.chance
    outcome: Outcome = "pass" if gain >= 0.8 * reach and gain > 0 else "warn" if main.low > main.chance else "fail"
    return [
        Judgement("utility", outcome, "Utility", f"{detail}; trained on real blocks: {100 * best.accuracy:.0f} %).")
    ]


def headline(lines: list[Judgement]) -> str:
    """One sentence: how many checks passed, and which failed."""
    counted = [line for line in lines if line.outcome != "info"]
    failed = [line.title for line in counted if line.outcome == "fail"]
    looked = [line.title for line in counted if line.outcome == "warn"]
    text = f"{sum(line.outcome == 'pass' for line in counted)} of {len(counted)} checks passed."
    if failed:
        text += f" Failed: {'; '.join(failed)}."
    if looked:
        text += f" Worth a look: {'; '.join(looked)}."
    return text
