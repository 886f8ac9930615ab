"""The summary a reader sees first: every check's answer, the same of real people, and how the samples stand against baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fmrisynth.evaluate import checks
from fmrisynth.evaluate.analysis import Analysis
from fmrisynth.evaluate.checks import Answer
from fmrisynth.evaluate.jackknife import MIN_SUBJECTS
from fmrisynth.evaluate.scoring import Score

SCORE_TITLES = {
    "corr": "Map correlation (Corr)",
    "rsa_pearson": "Representational similarity (RSA, Pearson)",
    "rsa_spearman": "Representational similarity (RSA, Spearman)",
    "top1": "Condition specificity (Top-1, group maps)",
    "top1_per_sample": "Condition specificity (Top-1, single samples)",
}


@dataclass(frozen=True)
class Judgement:
    """One line of the summary; `control` is the answer that as many real blocks of other people get, None where there is none."""

    key: str
    answer: Answer
    title: str
    detail: str
    control: Answer | None = None
    counted: bool = True


def show(score: Score | None, digits: int = 2) -> str:
    """A number with its interval, or a dash."""
    return "–" if score is None else checks.show(score.value, score.low, score.high, digits)


def judge(analysis: Analysis) -> list[Judgement]:
    """All checks in the order of their list, then the comparison with the baselines, which is not counted."""
    control = {v.check.key: v.answer for v in analysis.control.verdicts} if analysis.control is not None else {}
    lines = [
        Judgement(v.check.key, v.answer, v.check.title, v.detail, control.get(v.check.key))
        for v in analysis.own.verdicts
    ]
    if analysis.reliability["synthetic"].value is not None:
        title = "Effects of a person in two blocks (intraclass correlation)"
        lines.append(Judgement("reliability", "info", title, reliability_sentence(analysis), counted=False))
    if analysis.embedding is not None:
        title = "Distance in the features of an encoder of flat maps"
        lines.append(Judgement("embedding", "info", title, analysis.embedding.sentence, counted=False))
    return lines + (_against_baselines(analysis) if analysis.baselines else [])


def reliability_sentence(analysis: Analysis) -> str:
    """How alike the effects of a person's blocks are, in real people, samples and other real people, in words."""
    names = {"real": "real people", "synthetic": "samples", "control": "as many real blocks of other people"}
    found = "; ".join(
        f"{names[name]} {show(score)}" + (f" ({score.note})" if score.note else "")
        for name, score in analysis.reliability.items()
    )
    return (
        f"ICC(1,1) of effects on cells, between blocks of one person and condition: {found}. At 0 a person's blocks are no more alike than "
        "those of different people."
    )


def _against_baselines(analysis: Analysis) -> list[Judgement]:
    by_corr, overall, corr_text, counts_text, copying = [], [], [], [], []
    for b in analysis.baselines:
        corr, counts = b.standings["corr"], Counter(s for s in b.standings.values() if s)
        words = {None: "not known", "even": "no difference beyond chance"}.get(corr, corr)
        corr_text.append(f"{b.name} {show(b.judged.comparison.scores['corr'])} ({words})")
        counts_text.append(
            f"{b.name}: {counts['farther']} farther, {counts['nearer']} nearer, {counts['even']} even of {counts.total()}"
        )
        # What writes training data out again is as real as real data: no sample can be nearer, and none should want to be.
        if any(v.check.key == "copies" and v.answer == "fail" for v in b.judged.verdicts):
            copying.append(b.name)
            continue
        lead = counts["nearer"] - counts["farther"]
        by_corr.append(corr)
        overall.append(None if not counts else "nearer" if lead > 0 else "farther" if lead < 0 else "even")
    corr_detail = (
        f"Corr {show(analysis.comparison.scores['corr'])}; baselines, and whether they are nearer to the real data "
        f"or farther than the samples: {', '.join(corr_text)}."
    )
    detail = (
        "In how many properties a baseline is, beyond chance, farther from the real data than the samples, or nearer: "
        f"{'; '.join(counts_text)}."
    )
    if copying:
        detail += f" Copies of training blocks, by the privacy audit, and not counted as rivals: {', '.join(copying)}."
    return [
        Judgement("baselines", _won(by_corr), "Map correlation against trivial baselines", corr_detail, counted=False),
        Judgement(
            "realism_baselines", _won(overall), "All properties against trivial baselines", detail, counted=False
        ),
    ]


def _won(standings: Sequence[str | None]) -> Answer:
    """A pass is a win against every rival beyond chance; a fail is a defeat by any."""
    if "nearer" in standings:
        return "fail"
    return "pass" if set(standings) == {"farther"} else "unclear"


def headline(lines: list[Judgement], fewest: int) -> str:
    """The samples pass n of N checks, as many real blocks of other people pass m; and what fails.

    `fewest` is the number of people or samples in the condition that has fewest.
    """
    counted = [line for line in lines if line.counted and line.answer != "info"]
    if fewest < MIN_SUBJECTS and all(line.answer == "unclear" for line in counted):
        return (
            f"Too few people: none of the {len(counted)} checks could be decided (most need {MIN_SUBJECTS} people and "
            f"{MIN_SUBJECTS} samples in every condition, the fewest are {fewest})."
        )
    text = f"The samples pass {sum(line.answer == 'pass' for line in counted)} of {len(counted)} checks"
    if any(line.control is not None for line in counted):
        text += f"; as many real blocks of other people pass {sum(line.control == 'pass' for line in counted)}"
    text += "."
    failed = [line.title for line in counted if line.answer == "fail"]
    unclear = sum(line.answer == "unclear" for line in counted)
    if failed:
        text += f" They fail {len(failed)}: {'; '.join(failed)}."
    if unclear:
        text += f" On {unclear} these data cannot tell."
    return text
