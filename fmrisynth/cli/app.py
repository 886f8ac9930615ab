"""The commands. Each one parses, builds a typed configuration, calls one stage function and prints.

Stage modules are imported inside the commands, so that ``fmrisynth --help`` needs neither torch nor nilearn.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth import __version__
from fmrisynth.cli import options, plans
from fmrisynth.cli.options import (
    ConfigFile,
    Device,
    DryRun,
    Force,
    Overrides,
    ParticipantLabels,
    Seed,
    Verbose,
    setting,
)
from fmrisynth.config.app import AppConfig
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.errors import UsageError

app = typer.Typer(
    name="fmrisynth",
    help="Synthesise whole-brain 4D task-fMRI on request, and prove it with GLM maps.",
    epilog="As a BIDS App: fmrisynth BIDS_DIR OUT_DIR {participant|group} [--participant-label 01 02 ...]",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

LEVELS = ("participant", "group")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the result; created, and continued if it exists.")]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"fmrisynth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Synthesise whole-brain 4D task-fMRI on request, and prove it with GLM maps."""


@app.command(
    rich_help_panel="Data", epilog="Example: fmrisynth simulate phantom/ --layout bids --n-subjects 4 --tasks MOTOR"
)
def simulate(
    out: Out,
    layout: Annotated[
        str | None, setting(SimulateConfig, "layout", help="What is written; blocks skips the runs.")
    ] = None,
    n_subjects: Annotated[int | None, setting(SimulateConfig, "n_subjects", min=1, help="Number of subjects.")] = None,
    tasks: Annotated[
        list[str] | None, setting(SimulateConfig, "tasks", help="HCP tasks, for example WM GAMBLING")
    ] = None,
    resolution: Annotated[
        float | None, setting(SimulateConfig, "resolution_mm", help="Voxel side in mm: 2 or 3.")
    ] = None,
    tr: Annotated[float | None, setting(SimulateConfig, "tr_s", help="Repetition time in seconds.")] = None,
    activations: Annotated[
        Path | None,
        setting(
            SimulateConfig, "activations", help="TSV: parcels x conditions, effect sizes.", default="the built-in ones"
        ),
    ] = None,
    atlas: Annotated[
        Path | None, setting(SimulateConfig, "atlas", help="Label image that the parcels refer to (MNI).")
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Write a phantom cohort: realistic task-fMRI whose truth is known, no data-use agreement needed."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        SimulateConfig, "simulate", file=config, overrides=set_, seed=seed, layout=layout, n_subjects=n_subjects,
        tasks=[task.upper() for task in tasks] if tasks else None, resolution_mm=resolution, tr_s=tr,
        activations=activations, atlas=atlas,
    )  # fmt: skip
    options.check_out(out)
    if dry_run:
        return options.show_plan(resolved, plans.simulation(out, resolved))
    from fmrisynth.simulate import simulate_cohort

    return options.finish(simulate_cohort(out, resolved, force=force), out)


@app.command(rich_help_panel="Data", epilog="Example: fmrisynth prepare /data/HCP1200 blocks/")
def prepare(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="HCP tree, BIDS dataset or fMRIPrep derivatives.")],
    out: Out,
    layout: Annotated[str | None, setting(PrepareConfig, "layout", help="Layout of INPUT.")] = None,
    unit: Annotated[
        str | None, setting(PrepareConfig, "unit", help="A window from every block's onset, or whole runs")
    ] = None,
    native: Annotated[
        bool | None, setting(PrepareConfig, "native", "--native", help="Keep each subject's own space (no MNI needed).")
    ] = None,
    condition: Annotated[
        list[str] | None,
        setting(
            PrepareConfig,
            "conditions",
            help="Only these conditions (repeat).",
            default="the paper's seven, or all found",
            autocompletion=options.complete_conditions,
        ),
    ] = None,
    condition_table: Annotated[
        Path | None,
        setting(PrepareConfig, "condition_table", help="Your own condition table (YAML), merged over ours."),
    ] = None,
    bids_database_dir: Annotated[
        Path | None, setting(PrepareConfig, "bids_database_dir", help="A pybids index, built once and read-only.")
    ] = None,
    participant_label: ParticipantLabels = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Cut runs into a block dataset (3 mm, 1.44 s, 12 frames from every block onset), or take them whole with --unit run."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        PrepareConfig, "prepare", file=config, overrides=set_, seed=seed, layout=layout, unit=unit, native=native,
        conditions=condition, condition_table=condition_table, bids_database_dir=bids_database_dir,
    )  # fmt: skip
    options.check_in(source, "an HCP release, a BIDS dataset or fMRIPrep derivatives")
    options.check_out(out)
    from fmrisynth.prepare import plan_prepare, prepare_dataset

    if dry_run:
        return options.show_plan(resolved, plan_prepare(source, resolved, participant_labels=participant_label))
    return options.finish(
        prepare_dataset(source, out, resolved, participant_labels=participant_label, force=force), out
    )


@app.command(rich_help_panel="Model", epilog="Example: fmrisynth tokenize blocks/ latents/")
def tokenize(
    prepared: Annotated[Path, typer.Argument(metavar="PREPARED", help="A block dataset.")],
    out: Out,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Use this tokenizer (a folder, or the word bundled) instead of fitting one.", show_default="fit one"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Kind and size of tokenizer to fit.",
            show_default="patch-overlap",
            autocompletion=options.complete_presets("tokenize"),
        ),
    ] = None,
    init: Annotated[
        Path | None, setting(TokenizeConfig, "init", help="Start the fit from this tokenizer or ALDM state dict.")
    ] = None,
    normalisation: Annotated[str | None, setting(TokenizeConfig, "normalisation", help="Of the intensities")] = None,
    participant_label: ParticipantLabels = None,
    device: Device = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Fit a tokenizer (4x per side) unless one is given, and encode every block to latents."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        TokenizeConfig, "tokenize", preset=preset, file=config, overrides=set_, seed=seed, init=init,
        normalisation=normalisation, device=device,
    )  # fmt: skip
    options.check_in(prepared, "a block dataset, as `fmrisynth prepare` writes it")
    options.check_out(out)
    if dry_run:
        return options.show_plan(resolved, plans.encoding(prepared, out, resolved, tokenizer, participant_label))
    from fmrisynth.tokenize import tokenize_dataset

    summary = tokenize_dataset(
        prepared, out, resolved, tokenizer=tokenizer, participant_labels=participant_label, force=force
    )
    return options.finish(summary, out)


@app.command(rich_help_panel="Model", epilog="Example: fmrisynth train latents/ model/ --preset hybrid-38m")
def train(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="Latents, as `fmrisynth tokenize` writes them.")],
    out: Out,
    preset: Annotated[
        str,
        typer.Option(
            help="Model and recipe: hybrid-38m ... hybrid-463m, unet-41m ..., smoke.",
            autocompletion=options.complete_presets("train"),
        ),
    ] = "hybrid-38m",
    steps: Annotated[
        int | None, setting(TrainConfig, "steps", min=1, help="Optimiser steps.", default="of the preset")
    ] = None,
    batch_size: Annotated[
        int | None,
        setting(TrainConfig, "batch_size", min=1, help="Instances per step, over all ranks.", default="of the preset"),
    ] = None,
    max_hours: Annotated[
        float | None,
        setting(TrainConfig, "max_hours", help="Stop with a checkpoint after this many hours.", default="no limit"),
    ] = None,
    device: Device = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Train the denoiser; the same command resumes. Start with torchrun or srun for many GPUs."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        TrainConfig, "train", preset=preset, file=config, overrides=set_, seed=seed, steps=steps,
        batch_size=batch_size, max_hours=max_hours, device=device,
    )  # fmt: skip
    options.check_in(latents, "latents, as `fmrisynth tokenize` writes them")
    options.check_out(out)
    if dry_run:
        return options.show_plan(resolved, plans.training(latents, out, resolved))
    from fmrisynth.train import train_denoiser

    return options.finish(train_denoiser(latents, out, resolved), out)


@app.command(rich_help_panel="Model", epilog="Example: fmrisynth sample synthetic/ --condition gambling_loss --n 100")
def sample(
    out: Out,
    condition: Annotated[
        list[str] | None,
        setting(
            SampleConfig,
            "conditions",
            help="Condition label, for example gambling_loss (repeat).",
            autocompletion=options.complete_conditions,
        ),
    ] = None,
    all_conditions: Annotated[
        bool | None,
        setting(SampleConfig, "all_conditions", "--all-conditions", help="Every condition the model knows."),
    ] = None,
    events: Annotated[
        list[Path] | None,
        setting(
            SampleConfig, "events", help="Whole runs of a model of runs: events.tsv, or a folder of them (repeat)."
        ),
    ] = None,
    duration: Annotated[
        float | None, setting(SampleConfig, "duration_s", "--duration", min=1, help="Length of those runs, s.")
    ] = None,
    n: Annotated[
        int | None, setting(SampleConfig, "n", "--n", "-n", min=1, help="Samples per condition; with --events, people.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Your own model.", show_default="the bundled one, trained on phantom data")
    ] = None,
    sampler: Annotated[str | None, setting(SampleConfig, "sampler", help="How the noise becomes a sample")] = None,
    steps: Annotated[
        int | None, setting(SampleConfig, "steps", min=1, help="Solver steps.", default="20; 1000 for ddpm")
    ] = None,
    guidance: Annotated[
        float | None, setting(SampleConfig, "guidance", min=0, help="1 conditional; above 1 sharper; 0 unconditional.")
    ] = None,
    batch_size: Annotated[
        int | None, setting(SampleConfig, "batch_size", min=1, help="Samples denoised together; never changes them.")
    ] = None,
    start_index: Annotated[
        int | None, setting(SampleConfig, "start_index", min=0, help="Number of the first sample.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Make the k-th of n shares (job arrays).", show_default="1/1")
    ] = None,
    save_latents: Annotated[
        bool | None, setting(SampleConfig, "save_latents", "--save-latents", help="Keep latents too.")
    ] = None,
    report: Annotated[
        bool | None, setting(SampleConfig, "report", "--report", help="Write report.html: maps, courses, settings.")
    ] = None,
    format_: Annotated[str | None, setting(SampleConfig, "format", "--format", help="Of the images")] = None,
    device: Device = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Write synthetic subjects: one sample of one task condition each, or with --events people who do whole runs.

    Start with torchrun or srun to share the samples among many GPUs.
    """
    from fmrisynth.data.blocks import ATTRIBUTES

    options.set_verbosity(verbose)
    overrides = [f"attributes.{item}" if item.partition("=")[0] in ATTRIBUTES else item for item in set_ or []]
    resolved = options.resolve(
        SampleConfig, "sample", file=config, overrides=overrides, seed=seed, conditions=condition,
        all_conditions=all_conditions, events=events, duration_s=duration, n=n, sampler=sampler, steps=steps,
        guidance=guidance, batch_size=batch_size, start_index=start_index,
        shard=_parse_shard(shard), save_latents=save_latents, report=report,
        format=format_, device=device,
    )  # fmt: skip
    options.check_out(out)
    from fmrisynth.sample import plan_samples, sample_dataset

    if dry_run:
        return options.show_plan(resolved, plan_samples(out, resolved, checkpoint=checkpoint))
    return options.finish(sample_dataset(out, resolved, checkpoint=checkpoint, force=force), out)


@app.command(rich_help_panel="Proof", epilog="Example: fmrisynth glm blocks/ maps/ --contrast 'motor_rh - motor_lh'")
def glm(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A block dataset, or BIDS with --unit run.")],
    out: Out,
    unit: Annotated[str | None, setting(GlmConfig, "unit", help="One window per block, or whole runs")] = None,
    contrast: Annotated[
        list[str] | None,
        setting(
            GlmConfig,
            "contrasts",
            help="Formula, for example 'motor_rh - motor_lh' (repeat).",
            default="each condition",
        ),
    ] = None,
    task: Annotated[
        str | None, setting(GlmConfig, "task", help="Only this BIDS task (unit run).", default="all")
    ] = None,
    split: Annotated[str | None, setting(GlmConfig, "split", help="Only this split", default="all")] = None,
    participant_label: ParticipantLabels = None,
    group: Annotated[
        bool, typer.Option("--group/--no-group", help="Leave the group maps to a later call (job arrays).")
    ] = True,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Subject and group activation maps, of real or synthetic data alike."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        GlmConfig,
        "glm",
        file=config,
        overrides=set_,
        seed=seed,
        unit=unit,
        contrasts=contrast,
        task=task,
        split=split,
    )
    options.check_in(dataset, "a block dataset (or a BIDS dataset with --unit run)")
    options.check_out(out)
    if dry_run:
        return options.show_plan(resolved, plans.maps(dataset, out, resolved, participant_label))
    from fmrisynth.glm import run_glm

    return options.finish(
        run_glm(dataset, out, resolved, participant_labels=participant_label or None, group=group, force=force), out
    )


@app.command(
    rich_help_panel="Proof", epilog="Example: fmrisynth evaluate report/ --real blocks/ --synthetic synthetic/"
)
def evaluate(
    out: Out,
    real: Annotated[Path, typer.Option(help="Block dataset of real (or phantom) blocks, or of runs with --unit run.")],
    synthetic: Annotated[Path, typer.Option(help="Block dataset of synthetic blocks or runs.")],
    unit: Annotated[
        str | None, setting(EvaluateConfig, "unit", help="Compare windows of blocks, or whole runs")
    ] = None,
    tokenizer: Annotated[
        Path | None, setting(EvaluateConfig, "tokenizer", help="Tokenizer folder, for the ceiling it sets.")
    ] = None,
    truth: Annotated[
        Path | None, setting(EvaluateConfig, "truth", help="Phantom cohort, to compare with its planted truth.")
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Compare synthetic with real: metrics.json, figures and one HTML report."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        EvaluateConfig, "evaluate", file=config, overrides=set_, seed=seed, unit=unit, tokenizer=tokenizer, truth=truth
    )
    options.check_in(real, "a block dataset")
    options.check_in(synthetic, "a block dataset")
    options.check_out(out)
    if dry_run:
        return options.show_plan(resolved, plans.comparison(real, synthetic, resolved))
    from fmrisynth.evaluate import evaluate_datasets

    return options.finish(evaluate_datasets(out, real=real, synthetic=synthetic, config=resolved, force=force), out)


@app.command(rich_help_panel="Proof", epilog="Example: fmrisynth check blocks/ --checkpoint model/")
def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A block dataset.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Your own model.", show_default="the bundled one, trained on phantom data")
    ] = None,
    n_blocks: Annotated[int, typer.Option(min=1, help="Blocks to read, evenly spread.")] = 40,
    verbose: Verbose = 0,
) -> int:
    """Is a dataset like the one that a model was trained on? Exit status 1 where a difference matters."""
    options.set_verbosity(verbose)
    options.check_in(data, "a block dataset, as `fmrisynth prepare` writes it")
    from fmrisynth.check import check_dataset

    rows = check_dataset(data, checkpoint=checkpoint, n_blocks=n_blocks)
    options.show_table(
        ("", "model", "data", "matters"),
        [(row.what, row.model, row.data, "yes" if row.differs else "no") for row in rows],
    )
    differing = [row for row in rows if row.differs]
    for row in differing:
        typer.echo(f"{row.what}: {row.advice}.")
    if not differing:
        typer.echo("There is nothing that matters between the dataset and the model's training data.")
    return 1 if differing else 0


@app.command(rich_help_panel="Data", epilog="Example: fmrisynth conditions --checkpoint model/")
def conditions(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Mark the conditions that this model knows.", show_default="the bundled model")
    ] = None,
    condition_table: Annotated[
        Path | None,
        setting(PrepareConfig, "condition_table", help="Your own condition table (YAML), merged over ours."),
    ] = None,
    verbose: Verbose = 0,
) -> int:
    """List the task conditions: label, task and trial type, and which of them a model can draw."""
    options.set_verbosity(verbose)
    options.show_table(plans.CONDITION_COLUMNS, plans.condition_rows(checkpoint, condition_table))
    return 0


@app.command(
    "bids-app", hidden=True, epilog="Example: fmrisynth /data/bids out/ participant --participant-label 01 02"
)  # fmt: skip
def bids_app(
    bids_dir: Annotated[Path, typer.Argument(help="BIDS dataset, fMRIPrep derivatives or HCP tree.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder for the result.")],
    level: Annotated[str, typer.Argument(help="participant or group.")],
    participant_label: ParticipantLabels = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder.", show_default="the bundled one")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Model for the synthetic cohort.", show_default="the bundled one, trained on phantom data"),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Synthetic samples per condition (group).")] = 20,
    native: Annotated[bool, typer.Option("--native", help="Keep each subject's own space.")] = False,
    bids_database_dir: Annotated[
        Path | None, setting(PrepareConfig, "bids_database_dir", help="A pybids index, built once and read-only.")
    ] = None,
    set_: Overrides = None,
    seed: Seed = 0,
    device: Device = None,
    n_processes: Annotated[
        int, typer.Option("--nprocs", "--n-cpus", min=1, help="Participants worked on at a time (participant).")
    ] = 1,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            "-w",
            "--work-dir",
            help="Folder for the index of the input and temporary files.",
            show_default="none, and the system's",
        ),
    ] = None,
    skip_bids_validation: Annotated[bool, typer.Option("--skip-bids-validation", hidden=True)] = False,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """BIDS App: participant (prepare, encode, GLM, report) and group (maps, synthetic cohort, evaluation)."""

    options.set_verbosity(verbose)
    if level not in LEVELS:
        near = get_close_matches(level, LEVELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UsageError(f"{level!r} is not an analysis level: expected participant or group{hint}")
    resolved = options.resolve(
        AppConfig, "app", overrides=set_, seed=seed, n=n, native=native or None, device=device,
        bids_database_dir=bids_database_dir,
    )  # fmt: skip
    options.check_in(bids_dir, "a BIDS dataset, fMRIPrep derivatives or an HCP release")
    options.check_out(output_dir)
    if dry_run:
        lines = (
            plans.participants(bids_dir, output_dir, resolved, tokenizer, participant_label)
            if level == "participant"
            else plans.group(output_dir, resolved, checkpoint)
        )
        return options.show_plan(resolved, lines)
    if work_dir is not None:
        resolved = options.use_work_dir(work_dir, resolved)
    from fmrisynth.app import run_group, run_participants

    if level == "participant":
        return options.finish(
            run_participants(
                bids_dir,
                output_dir,
                resolved,
                tokenizer=tokenizer,
                participant_labels=participant_label,
                force=force,
                n_processes=n_processes,
            ),
            output_dir,
        )
    return options.finish(run_group(bids_dir, output_dir, resolved, checkpoint=checkpoint, force=force), output_dir)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, separator, n = text.partition("/")
    if not separator or not k.isdigit() or not n.isdigit():
        raise UsageError(f"--shard {text}: expected K/N, for example 3/16.")
    return int(k), int(n)
