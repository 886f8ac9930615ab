"""The BIDS-App call: ``fmrisynth bids_dir out_dir {participant|group}``.

``participant``
    prepare, encode with the chosen or bundled tokenizer, window GLM, one HTML page per participant. The output
    folder itself is the block dataset, so `glm`, `sample --checkpoint` and outside tools can go on from it.
``group``
    group maps of the real cohort, a synthetic cohort from the chosen or bundled model, and the comparison.

::

    out_dir/
      sub-01/func/...        blocks
      latents/               their latents
      glm/                   subject and group maps, sub-01.html
      synthetic/             synthetic subjects, and their maps under synthetic-glm/
      evaluation/            metrics.json and report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fmrisynth.bids.discover import open_source
from fmrisynth.bids.sources import choose_subjects, clean_label
from fmrisynth.conditions import load_table
from fmrisynth.config.app import AppConfig
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.blocks import common_grid, read_blocks, subjects_of
from fmrisynth.errors import FmrisynthError, must_exist
from fmrisynth.evaluate import evaluate_datasets
from fmrisynth.glm import run_glm
from fmrisynth.models.bundled import BUNDLED, tokenizer_dir
from fmrisynth.models.device import pick_device
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.parallel import side_by_side
from fmrisynth.prepare import prepare_dataset
from fmrisynth.progress import StageSummary, log
from fmrisynth.sample import sample_dataset
from fmrisynth.sample.drawer import load_model
from fmrisynth.tokenize import tokenize_dataset


def run_participants(
    bids_dir: Path,
    out: Path,
    config: AppConfig,
    *,
    tokenizer: Path | None = None,
    participant_labels: Sequence[str] | None = None,
    force: bool = False,
    n_processes: int = 1,
) -> StageSummary:
    """Prepare, encode and analyse participants; a bad one does not stop the others.

    Parameters
    ----------
    bids_dir : Path
        HCP tree, BIDS dataset or fMRIPrep derivatives.
    out : Path
        Output folder.
    config : AppConfig
        Seed and options.
    tokenizer : Path, optional
        Tokenizer folder; default: the bundled one, where the grid is the standard one.
    participant_labels : sequence of str, optional
        Participants, with or without ``sub-``; default all.
    force : bool
        Make finished work anew.
    n_processes : int, default 1
        Participants worked on at a time.
    """
    pick_device(config.device)
    chosen = tokenizer_dir(tokenizer or Path(BUNDLED))
    must_exist(chosen, "a tokenizer folder")
    prepare = prepare_config(config)
    if n_processes > 1:
        source = open_source(bids_dir, prepare, load_table(), None, images="native" if config.native else "mni")
        share = partial(_run_share, bids_dir, out, config, tokenizer, force)
        side_by_side(
            share, choose_subjects(bids_dir, source.subjects(), participant_labels), n_processes, "Participants"
        )
        force = False  # it is all anew
    summary = prepare_dataset(bids_dir, out, prepare, participant_labels=participant_labels, force=force)
    asked = {clean_label(label) for label in participant_labels or ()}
    done = [subject for subject in subjects_of(out) if not asked or subject in asked]
    if not done:  # others are, of earlier calls
        return summary
    misfit = _misfit(out, done, chosen)
    if misfit is None:
        encode = TokenizeConfig(seed=config.seed, device=config.device, report=False)
        encoded = tokenize_dataset(out, out / "latents", encode, tokenizer=chosen, participant_labels=done, force=force)
        _add(summary, encoded)
    elif tokenizer is not None:
        raise FmrisynthError(misfit)
    else:
        log.warning("%s The latents are left out.", misfit)
        summary.lines.append(f"Latents were not made: {misfit}")
    maps = run_glm(out, out / "glm", GlmConfig(seed=config.seed), participant_labels=done, group=False, force=force)
    _add(summary, maps)
    return summary


def prepare_config(config: AppConfig) -> PrepareConfig:
    """How the participant level prepares."""
    shared = {name: getattr(config, name) for name in ("seed", "layout", "native", "bids_database_dir")}
    return PrepareConfig.model_validate(shared)


def _run_share(
    bids_dir: Path, out: Path, config: AppConfig, tokenizer: Path | None, force: bool, labels: list[str]
) -> None:
    run_participants(bids_dir, out, config, tokenizer=tokenizer, participant_labels=labels, force=force)


def run_group(
    bids_dir: Path, out: Path, config: AppConfig, *, checkpoint: Path | None = None, force: bool = False
) -> StageSummary:
    """Group maps, a synthetic cohort and the comparison, from the participants already done.

    Parameters
    ----------
    bids_dir : Path
        As in `run_participants`; not read.
    out : Path
        Output folder of the participant level.
    config : AppConfig
        Seed, samples per condition, device.
    checkpoint : Path, optional
        Model for the synthetic cohort; default: the bundled one.
    force : bool
        Make finished work anew.

    Raises
    ------
    FmrisynthError
        No participant is done, or the model knows none of their conditions.
    """
    try:
        blocks = read_blocks(out)
    except FmrisynthError:
        raise FmrisynthError(
            f"{out}: no participant is done; run `fmrisynth {bids_dir} {out} participant` first."
        ) from None
    pick_device(config.device)
    model, _ = load_model(checkpoint)
    wanted = sorted({block.condition for block in blocks} & set(model.conditions))
    if not wanted:
        raise FmrisynthError(
            f"{out}: the model knows {', '.join(model.conditions)}, and the data have none of them; train a model on "
            "them (fmrisynth train) and name it with --checkpoint DIR."
        )
    summary = run_glm(out, out / "glm", GlmConfig(seed=config.seed), force=force)
    sample = SampleConfig(seed=config.seed, conditions=tuple(wanted), n=config.n, device=config.device)
    _add(summary, sample_dataset(out / "synthetic", sample, checkpoint=checkpoint, force=force))
    quiet = GlmConfig(seed=config.seed, reports=False)
    _add(summary, run_glm(out / "synthetic", out / "synthetic-glm", quiet, force=force))
    compared = evaluate_datasets(
        out / "evaluation", real=out, synthetic=out / "synthetic", config=EvaluateConfig(seed=config.seed), force=force
    )
    _add(summary, compared)
    return summary


def _misfit(out: Path, subjects: Sequence[str], tokenizer: Path) -> str | None:
    """Why the tokenizer cannot encode these subjects, or None."""
    grid = common_grid(read_blocks(out, subjects=subjects[:1]))
    own = load_tokenizer(tokenizer).info.grid
    if grid.same_as(own):
        return None
    return (
        f"{tokenizer}: this tokenizer is for the grid {own.shape} in {own.space}, the data are on {grid.shape} in "
        f"{grid.space}; fit one with `fmrisynth tokenize` and name it with --tokenizer DIR."
    )


def _add(summary: StageSummary, other: StageSummary) -> None:
    summary.lines += other.lines
    summary.failed |= other.failed
