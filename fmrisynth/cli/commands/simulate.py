"""``fmrisynth simulate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from fmrisynth.cli import options, plans
from fmrisynth.cli.options import ConfigFile, DryRun, Force, Out, Seed, Verbose, overriding, setting
from fmrisynth.config.simulate import SimulateConfig

EXAMPLE = "fmrisynth simulate phantom/ --layout bids --n-subjects 4 --tasks MOTOR"


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
    set_: Annotated[list[str] | None, overriding("families.size=3")] = None,
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
    from fmrisynth.simulate import simulate_cohort

    call = partial(simulate_cohort, out, resolved, force=force)
    if dry_run:
        return options.show_plan(resolved, plans.simulation(out, resolved), call)
    return options.finish(call(), out)
