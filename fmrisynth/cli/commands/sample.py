"""``fmrisynth sample``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options
from fmrisynth.cli.options import Checkpoint, ConfigFile, Device, DryRun, Force, Out, Seed, Verbose, overriding, setting
from fmrisynth.config.sample import SampleConfig
from fmrisynth.errors import UsageError

EXAMPLE = "fmrisynth sample synthetic/ --condition gambling_loss --n 100"


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
        float | None,
        setting(
            SampleConfig,
            "duration_s",
            "--duration",
            min=1,
            help="Length of those runs, s.",
            default="16 s after the last event",
        ),
    ] = None,
    n: Annotated[
        int | None, setting(SampleConfig, "n", "--n", "-n", min=1, help="Samples per condition; with --events, people.")
    ] = None,
    subjects: Annotated[
        int | None,
        setting(
            SampleConfig,
            "subjects",
            "--subjects",
            min=1,
            default="none",
            help="In place of --n: people who do every condition.",
        ),
    ] = None,
    blocks: Annotated[
        int | None, setting(SampleConfig, "blocks", "--blocks", min=1, help="Blocks of each condition per person.")
    ] = None,
    anatomy: Annotated[
        Path | None,
        setting(
            SampleConfig,
            "anatomy",
            "--anatomy",
            metavar="DATASET|MODEL|mean",
            default="drawn, where the model can, else the mean",
            help="How people look: as those of a dataset, drawn by a model, or all alike (mean).",
        ),
    ] = None,
    participants: Annotated[
        Path | None,
        setting(
            SampleConfig,
            "participants",
            "--participants",
            metavar="TSV",
            default="attributes as in --set",
            help="Age, sex, ... of each person.",
        ),
    ] = None,
    baselines: Annotated[
        Path | None,
        setting(
            SampleConfig,
            "baselines",
            "--from",
            metavar="DATASET",
            default="nobody",
            help="Forecast how these people will look, --set delta_t=YEARS on.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    sampler: Annotated[str | None, setting(SampleConfig, "sampler", help="How the noise becomes a sample")] = None,
    steps: Annotated[
        int | None,
        setting(SampleConfig, "steps", min=1, help="Solver steps.", default="20; 1000 for ddpm, 100 with --from"),
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
    set_: Annotated[list[str] | None, overriding("guidance=2")] = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Write synthetic subjects: one sample of one task condition each, with --events people who do whole runs, with --from forecasts.

    Start with torchrun or srun to share the samples among many GPUs.
    """
    from fmrisynth.config.train import DELTA_T
    from fmrisynth.data.blocks import ATTRIBUTES

    options.set_verbosity(verbose)
    asked = (*ATTRIBUTES, DELTA_T)
    overrides = [f"attributes.{item}" if item.partition("=")[0] in asked else item for item in set_ or []]
    resolved = options.resolve(
        SampleConfig, "sample", file=config, overrides=overrides, seed=seed, conditions=condition,
        all_conditions=all_conditions, events=events, duration_s=duration, n=n, subjects=subjects, blocks=blocks,
        anatomy=anatomy, participants=participants, baselines=baselines, sampler=sampler, steps=steps,
        guidance=guidance, batch_size=batch_size, start_index=start_index,
        shard=_parse_shard(shard), save_latents=save_latents, report=report,
        format=format_, device=device,
    )  # fmt: skip
    options.check_out(out)
    from fmrisynth.sample import plan_samples, sample_dataset

    call = partial(sample_dataset, out, resolved, checkpoint=checkpoint, force=force)
    if dry_run:
        return options.show_plan(resolved, plan_samples(out, resolved, checkpoint=checkpoint), call)
    return options.finish(call(), out)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    k, separator, n = text.partition("/")
    if not separator or not k.isdigit() or not n.isdigit():
        raise UsageError(f"--shard {text}: expected K/N, for example 3/16.")
    return int(k), int(n)
