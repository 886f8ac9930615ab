"""The summary a reader sees first: every check's answer, the same of real people, and how the samples stand against baselines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fmrisynth.evaluate import checks
from fmrisynth.evaluate.analysis import Analysis
from fmrisynth.evaluate.checks import Answer
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
    outcome: Answer
    title: str
    detail: str
    control: Answer | None = None
    counted: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "key": self.key, "answer": self.outcome, "control": self.control, "title": self.title, "detail": self.detail, "counted": self.counted,
        }  # fmt: skip


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
    return lines + _against_baselines(analysis)


def _against_baselines(analysis: Analysis) -> list[Judgement]:
    if not analysis.baselines:
        return []
    corr = {b.name: b.standings["corr"] for b in analysis.baselines}
    counts = {b.name: Counter(s for s in b.standings.values() if s) for b in analysis.baselines}
    # What writes training data out again is as real as real data: no sample can be nearer, and none should want to be.
    copying = [
        b.name
        for b in analysis.baselines
        if any(v.check.key == "copies" and v.answer == "fail" for v in b.judged.verdicts)
    ]
    rivals = [name for name in counts if name not in copying]
    text = [
        f"{name} {show(b.judged.comparison.scores['corr'])} ({'not known' if standing is None else 'no difference beyond chance' if standing == 'even' else standing})"
        for b, (name, standing) in zip(analysis.baselines, corr.items(), strict=True)
    ]
    lines = [
        Judgement(
            "baselines", _won([corr[name] for name in rivals]), "Map correlation against trivial baselines",
            f"Corr {show(analysis.comparison.scores['corr'])}; baselines, and whether they are nearer to the real data or farther than the samples: "
            f"{', '.join(text)}.", counted=False,
        )
    ]  # fmt: skip
    standing = {
        n: "nearer" if c["nearer"] > c["farther"] else "farther" if c["farther"] > c["nearer"] else "even"
        for n, c in counts.items()
    }
    detail = "; ".join(
        f"{n}: {c['farther']} farther, {c['nearer']} nearer, {c['even']} even of {c.total()}" for n, c in counts.items()
    )
    lines.append(
        Judgement(
            "realism_baselines", _won([standing[n] if counts[n] else None for n in rivals]), "All properties against trivial baselines",
            f"In how many properties a baseline is, beyond chance, farther from the real data than the samples, or nearer: {detail}."
            + (f" Copies of training blocks, by the privacy audit, and not counted as rivals: {', '.join(copying)}." if copying else ""),
            counted=False,
        )
    )  # fmt: skip
    return lines


def _won(standings: list[str | None]) -> Answer:
    """A pass is a win against every rival beyond chance; a fail is a defeat by any."""
    known = [s for s in standings if s is not None]
    if "nearer" in known:
        return "fail"
    return "pass" if known and len(known) == len(standings) and set(known) == {"farther"} else "unclear"


def headline(lines: list[Judgement]) -> str:
    """The samples pass n of N checks, as many real blocks of other people pass m; and what fails."""
    counted = [line for line in lines if line.counted and line.outcome != "info"]
    text = f"The samples pass {sum(line.outcome == 'pass' for line in counted)} of {len(counted)} checks"
    if any(line.control is not None for line in counted):
        text += f"; as many real blocks of other people pass {sum(line.control == 'pass' for line in counted)}"
    text += "."
    failed = [line.title for line in counted if line.outcome == "fail"]
    unclear = sum(line.outcome == "unclear" for line in counted)
    if failed:
        text += f" They fail {len(failed)}: {'; '.join(failed)}."
    if unclear:
        text += f" {unclear} cannot be told from these data."
    return text
