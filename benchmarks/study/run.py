"""The study: cohort, tokenizer, every arm trained and scored, docs/study.md. One command, from a seed.

    python benchmarks/study/run.py FOLDER [--tables prior backbones] [--page docs/study.md]

What to do is in study.yaml. Everything is resumable: finished parts are read, not done again, and the page is written from
whatever is there. Scores are those of score.py, on the cohort's test split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from page import write_page
from score import brain, real_maps, sample_effects, score
from torch import nn

from fmrisynth.bids.atomic import write_json
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.latents import LatentDataset
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.train.runlog import read_log

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    table: str
    arm: str
    seed: int
    settings: dict[str, Any]
    score_at: list[int]

    @property
    def key(self) -> str:
        """File name of its result."""
        plain = "".join(c if c.isalnum() else "-" for c in f"{self.table} {self.arm}").lower()
        return f"{plain}-seed{self.seed}"


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge, later ones win; a model of another kind replaces the whole model."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in deepcopy(dict(part)).items():
            old = result.get(key)
            same_kind = (
                isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in (None, old.get("kind"))
            )
            result[key] = merged(old, value) if same_kind and isinstance(old, dict) else value
    return result


def jobs(study: dict[str, Any], tables: list[str] | None) -> Iterator[Job]:
    """All arms, main tables first and seed by seed, so that an interrupted study is a smaller study."""
    every = sorted(set(study["seeds"]) | set(study["main_seeds"]))
    for seed in every:
        for table in study["tables"]:
            if tables and table["name"] not in tables:
                continue
            if seed not in study["main_seeds" if table.get("main") else "seeds"]:
                continue
            for arm, own in table["arms"].items():
                settings = merged(study["base"], table.get("common", {}), own)
                yield Job(table["name"], arm, seed, settings, table.get("score_at", [settings["steps"]]))


def subset(latents: Path, out: Path, n_subjects: int) -> Path:
    """The latents of the first training subjects and of the whole validation split, as hard links."""
    if out.exists():
        return out
    dataset = LatentDataset.open(latents)
    by_split: dict[str | None, list[str]] = {}
    for row in dataset.rows:
        own = by_split.setdefault(row.split, [])
        if row.subject not in own:
            own.append(row.subject)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(latents / "tokenizer", part / "tokenizer")
    for subject in by_split["train"][:n_subjects] + by_split.get("val", []):
        for file in latents.glob(f"sub-{subject}_latents.*"):
            os.link(file.resolve(), part / file.name)
    part.rename(out)
    return out


def run_job(root: Path, study: dict[str, Any], job: Job) -> dict[str, Any]:
    """Train one arm and score its checkpoints."""
    from fmrisynth.tokenize import tokenize_dataset
    from fmrisynth.train import train_denoiser

    settings = dict(job.settings)
    sampling = merged(study["sampling"], settings.pop("sampling", {}))
    tokenize = settings.pop("tokenize", {})
    n_subjects = settings.pop("n_subjects", None)
    latents = root / "latents"
    if tokenize:
        latents = root / f"latents-{'-'.join(map(str, tokenize.values()))}"
        tokenize_dataset(root / "cohort", latents, TokenizeConfig(**merged(study["tokenize"], tokenize)))
    if n_subjects:
        latents = subset(latents, root / f"latents-{n_subjects}-subjects", n_subjects)
    # Arms that train the same model share one run.
    config = TrainConfig(**settings, seed=job.seed)
    run = root / "runs" / f"{latents.name}-{hash_of(config.model_dump(mode='json', exclude_defaults=True))}"
    started, cpu = time.monotonic(), time.process_time()
    train_denoiser(latents, run, config)
    trained_s, trained_cpu_s = time.monotonic() - started, time.process_time() - cpu

    tokenizer = load_tokenizer(latents / "tokenizer")
    mask_XYZ = brain(root / "cohort", tokenizer)
    found: dict[str, Any] = {
        "seed": job.seed, "train_s": trained_s, "train_cpu_s": trained_cpu_s, "scores": {},
        "parameters": sum(p.numel() for p in load_denoiser(run).network.parameters()),
    }  # fmt: skip
    validation = [record for record in read_log(run / "log.jsonl") if record["kind"] == "val"]
    for step in job.score_at:
        if step == 0 and not config.objective.precondition:
            continue
        cache = root / "scores" / f"{run.name}-{step}-{hash_of(sampling)}.json"
        if not cache.exists():
            model = load_denoiser(run / "checkpoints" / f"step-{step or config.steps:08d}")
            if step == 0:
                model = replace(model, network=Silent())
            conditions = list(model.conditions)
            real = real_maps(root / "cohort", "test", conditions, mask_XYZ, root / "real" / f"{latents.name}-test.npz")
            effects = {c: sample_effects(model, tokenizer, c, mask_XYZ, **sampling) for c in conditions}
            write_json(cache, score(effects, real))
        own = json.loads(cache.read_text())
        near = [record for record in validation if record["step"] == step]
        found["scores"][str(step)] = own | {key: near[-1][key] for key in ("loss", "condition_gain") if near}
    return found


class Silent(nn.Module):
    """A network that answers 0: with preconditioning, samples are draws from the prior."""

    def forward(self, noisy: torch.Tensor, time_B: torch.Tensor, labels_BA: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros_like(noisy)


def hash_of(settings: Mapping[str, Any]) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def ceilings(root: Path) -> dict[str, Any]:
    """Real training against real test subjects, and what a tokenizer leaves of the test maps."""
    tokenizer = load_tokenizer(root / "latents" / "tokenizer")
    mask_XYZ = brain(root / "cohort", tokenizer, ("test", "train"))
    conditions = sorted({row.condition for row in LatentDataset.open(root / "latents").rows})
    test, train = (
        real_maps(root / "cohort", split, conditions, mask_XYZ, root / "real" / f"ceiling-{split}.npz")
        for split in ("test", "train")
    )
    from fmrisynth.glm.map_scores import score_maps

    both = np.isfinite(test.z_KV).all(axis=0) & np.isfinite(train.z_KV).all(axis=0)
    scores = score_maps(test.z_KV[:, both], train.z_KV[:, both])
    return {"corr": float(scores.corr), "rsa": float(scores.rsa_pearson), "top1": float(scores.top1)}


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--study", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--tables", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these seeds")
    parser.add_argument("--page", type=Path, help="write the page here")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study, root = yaml.safe_load(arguments.study.read_text()), arguments.root
    _prepare(root, study)
    for job in jobs(study, arguments.tables):
        result = root / "results" / f"{job.key}.json"
        if (arguments.seeds and job.seed not in arguments.seeds) or result.exists():
            continue
        print(f"{job.table}: {job.arm}, seed {job.seed}", flush=True)
        write_json(result, {"table": job.table, "arm": job.arm, **run_job(root, study, job)})
    summary = root / "results" / "ceilings.json"
    if not summary.exists():
        write_json(summary, ceilings(root))
    if arguments.page:
        write_page(arguments.page, study, root / "results")


def _prepare(root: Path, study: dict[str, Any]) -> None:
    from fmrisynth.simulate import simulate_cohort
    from fmrisynth.tokenize import tokenize_dataset

    if not (root / "cohort.done").exists():
        simulate_cohort(root / "cohort", SimulateConfig(layout="blocks", **study["cohort"]))
        (root / "cohort.done").touch()
    if not (root / "latents.done").exists():
        tokenize_dataset(root / "cohort", root / "latents", TokenizeConfig(**study["tokenize"]))
        (root / "latents.done").touch()


if __name__ == "__main__":
    main()
