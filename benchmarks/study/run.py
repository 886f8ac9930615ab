"""The study: cohort, tokenizer, every arm trained and scored, docs/study.md. One command, from a seed.

    python benchmarks/study/run.py FOLDER [--study STUDY.yaml] [--tables backbones] [--page docs/study.md]

What to do is in study.yaml (recipe.yaml is how the bundled model's recipe was chosen). Everything is resumable: finished parts are read,
not done again, and the page is written from whatever is there. Scores are those of score.py, on the cohort's test split, at every step of
`score_at`, with the processor seconds of training until then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from page import write_page
from score import RealMaps, brain, equal_number_ceiling, real_maps, sample_effects, score

import fmrisynth
from fmrisynth.bids.atomic import write_json
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.latents import LatentDataset
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.models.tokenizers import Tokenizer, load_tokenizer
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
                settings = merged(preset(study.get("preset")), study["base"], table.get("common", {}), own)
                yield Job(table["name"], arm, seed, settings, table.get("score_at", [settings["steps"]]))


def preset(name: str | None) -> dict[str, Any]:
    """Settings of a training preset of the package, or none."""
    if name is None:
        return {}
    return yaml.safe_load(
        (Path(fmrisynth.__file__).parent / "config" / "presets" / "train" / f"{name}.yaml").read_text()
    )


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
    train_denoiser(latents, run, config)

    tokenizer = load_tokenizer(latents / "tokenizer")
    found: dict[str, Any] = {
        "seed": job.seed, "scores": {}, "parameters": sum(p.numel() for p in load_denoiser(run).network.parameters()),
    }  # fmt: skip
    records = read_log(run / "log.jsonl")
    for step in job.score_at:
        cache = root / "scores" / f"{run.name}-{step}-{hash_of(sampling)}.json"
        if not cache.exists():
            model = load_denoiser(run / "checkpoints" / f"step-{step:08d}")
            real = maps_of_test_split(root, tokenizer, list(model.conditions))
            effects = {c: sample_effects(model, tokenizer, c, real.mask_XYZ, **sampling) for c in real.conditions}
            write_json(cache, score(effects, real))
        own = json.loads(cache.read_text())
        for kind, keys in (("val", ("loss", "condition_gain", "condition_gain_share")), ("train", ("cpu_hours",))):
            near = [record for record in records if record["kind"] == kind and record["step"] <= step]
            own |= {key: near[-1].get(key) for key in keys if near}
        found["scores"][str(step)] = own
    return found


def maps_of_test_split(root: Path, tokenizer: Tokenizer, conditions: list[str]) -> RealMaps:
    """Group maps of the test split, where training and test subjects and the tokenizer have brain."""
    mask_XYZ = brain(root / "cohort", tokenizer, ("train", "test"))
    return real_maps(
        root / "cohort", "test", conditions, mask_XYZ, root / "real" / f"test-{tokenizer.info.sha256[:12]}.npz"
    )


def hash_of(settings: Mapping[str, Any]) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def ceilings(root: Path, n: int) -> dict[str, list[float]]:
    """What `n` real training blocks per condition score in place of samples, in five draws."""
    conditions = sorted({row.condition for row in LatentDataset.open(root / "latents").rows})
    real = maps_of_test_split(root, load_tokenizer(root / "latents" / "tokenizer"), conditions)
    return equal_number_ceiling(root / "cohort", "train", real, n)


def main() -> None:
    """Do what is not done yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--study", type=Path, default=HERE / "study.yaml")
    parser.add_argument("--tables", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, help="only these seeds")
    parser.add_argument("--page", type=Path, help="write the page here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare-only", action="store_true", help="make cohort and latents, train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study, root = yaml.safe_load(arguments.study.read_text()), arguments.root
    _prepare(root, study)
    if arguments.prepare_only:
        return
    summary = root / "results" / "ceilings.json"
    if not summary.exists():
        write_json(summary, ceilings(root, study["sampling"]["n"]))
    for job in jobs(study, arguments.tables):
        result = root / "results" / f"{job.key}.json"
        if (arguments.seeds and job.seed not in arguments.seeds) or result.exists():
            continue
        print(f"{job.table}: {job.arm}, seed {job.seed}", flush=True)
        write_json(result, {"table": job.table, "arm": job.arm, **run_job(root, study, job)})
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
