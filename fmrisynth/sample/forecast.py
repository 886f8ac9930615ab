"""Forecasts: how the people of a dataset will look some years on.

Axis legend: C latent channels, T = 1 frame; X, Y, Z voxel or latent axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fmrisynth.bids import naming
from fmrisynth.bids.digests import files_of
from fmrisynth.bids.origin import read_origin
from fmrisynth.conditions import load_table
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.train import DELTA_T
from fmrisynth.data.blocks import Block, BlockData, anatomies_of, finish_subject, iterate_subjects, write_block
from fmrisynth.data.forecasts import ForecastOf
from fmrisynth.data.normalisation import brain_of, normalise
from fmrisynth.diffusion.generate import Drawing, encode_labels
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.samplers import check_sampler
from fmrisynth.errors import FmrisynthError, UsageError, must_exist
from fmrisynth.progress import log
from fmrisynth.sample.drawer import Drawer
from fmrisynth.stage import Stage, Unit

DESC = "forecast"

_README = """Every image of this dataset is a forecast by a generative model: how a person of {dataset} may look some years after a scan.
None was measured. Each sidecar says of which scan and how many years on (`Forecast`). It is one forecast, near the mean of what may
come, and no diagnosis.{known}
"""


@dataclass(frozen=True)
class Forecast:
    """One volume to be made.

    Attributes
    ----------
    baseline : Block
        The scan that it starts at.
    baseline_age, years : float
        Age there, and how much later the forecast is.
    told : mapping
        Attributes for the network.
    number : int or None
        Number among the forecasts from this scan, from 1; None where there is one.
    """

    baseline: Block
    baseline_age: float
    years: float
    told: Mapping[str, str]
    number: int | None = None

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.baseline_age:g} years + {self.years:g}"

    @property
    def attributes(self) -> dict[str, str]:
        """Of the person at the time of the forecast."""
        return dict(self.baseline.attributes) | {"age": f"{self.baseline_age + self.years:g}"}


def plan_forecasts(config: SampleConfig, drawer: Drawer) -> dict[str, tuple[Forecast, ...]]:
    """Who gets which forecasts, by subject, after sharding; everything that can be refused is refused here.

    Raises
    ------
    FmrisynthError
        Another grid, an age that is not known, or nobody of that split.
    UsageError
        A time that is none, no later sessions where no time is given, a sampler of noise, or an attribute that the model does not know.
    """
    assert config.baselines is not None
    root, model, info = must_exist(config.baselines, "a dataset of anatomies"), drawer.model, drawer.tokenizer.info
    if info.normalisation != "relative":
        raise FmrisynthError(
            f"{model.path}: expected a tokenizer of anatomies (relative normalisation), found {info.normalisation}; train on latents of "
            "`tokenize --preset anatomy`."
        )
    check_sampler(config.sampler, Objective(**model.objective))
    asked = None if DELTA_T not in config.attributes else _years(config.attributes[DELTA_T])
    plan: dict[str, tuple[Forecast, ...]] = {}
    for subject, blocks in iterate_subjects(root):
        sessions = anatomies_of([b for b in blocks if config.baseline_split in (None, b.split)])
        ages = [_age(block) for block in sessions]
        own: list[Forecast] = []
        for block, age in zip(sessions, ages, strict=True):
            later = sorted(other - age for other in ages if other > age) if asked is None else [asked]
            for number, years in enumerate(later, 1):
                told = {name: v for name, v in block.attributes.items() if name in model.labels} | {
                    DELTA_T: repr(years)
                }
                encode_labels(model.labels, block.condition, told, model.always)
                own.append(Forecast(block, age, years, told, number if asked is None else None))
        if own:
            plan[subject] = tuple(own)
    if not plan and asked is None:
        raise UsageError(
            f"{root}: has no later sessions{_of_split(config)} to forecast; say how many years on with --set {DELTA_T}=YEARS."
        )
    if not plan:
        raise FmrisynthError(f"{root}: expected people{_of_split(config)}, found none; leave baseline_split out.")
    first = next(iter(plan.values()))[0].baseline
    grid = first.load_grid()
    if not grid.same_as(info.grid):
        raise FmrisynthError(
            f"{first.mask_path}: expected anatomies on the model's grid {info.grid.shape} with affine {info.grid.affine_rows}, "
            f"found {grid.shape} with affine {grid.affine_rows}; take people on that grid, or train on theirs."
        )
    low, high = seen_years(drawer)
    outside = sorted({one.years for own in plan.values() for one in own if not low <= one.years <= high})
    if outside:
        log.warning(
            "%s years on: training saw %g to %g; the forecasts say so in their sidecars.",
            ", ".join(f"{y:g}" for y in outside),
            low,
            high,
        )
    k, n = config.shard
    return dict(list(plan.items())[k - 1 :: n])


def seen_years(drawer: Drawer) -> tuple[float, float]:
    """The shortest and the longest time between two scans that training saw, years."""
    try:
        low, high = (float(years) for years in drawer.model.card.trained_on[DELTA_T])
    except (KeyError, TypeError, ValueError):
        raise FmrisynthError(
            f"{drawer.model.path}: expected a model of forecasts that says what times it saw, found none; train it again."
        ) from None
    return low, high


def _years(text: str) -> float:
    try:
        years = float(text)
    except ValueError:
        years = math.nan
    if not 0 <= years < math.inf:
        raise UsageError(f"{DELTA_T}: expected a number of years from 0, found {text!r}.")
    return years


def _age(block: Block) -> float:
    try:
        age = float(block.attributes.get("age", ""))
    except ValueError:
        age = math.nan
    if not math.isfinite(age):
        raise FmrisynthError(
            f"{block.root}: expected the age of sub-{block.subject} as a number of years, found "
            f"{block.attributes.get('age', 'none')}; give it in scans.tsv, or leave the person out."
        )
    return age


def _of_split(config: SampleConfig) -> str:
    return "" if config.baseline_split is None else f" in the {config.baseline_split} split"


def begin_forecasts(out: Path, drawer: Drawer, *, force: bool, write: bool) -> Stage:
    """Begin the dataset of the forecasts."""
    config = drawer.config
    assert config.baselines is not None
    known = ""
    if read_origin(config.baselines).kind == "measured":
        known = " These people were measured: whoever they are can be recognised by the anatomy."
    fixed = drawer.settings | {"Format": config.format, "BaselineSplit": config.baseline_split}
    return Stage.begin(
        "sample", out, config, settings=fixed, sources=[config.baselines], force=force, title="Forecasts of anatomies by fmrisynth",
        readme=_README.format(dataset=config.baselines.name, known=known), origin=drawer.model.card.origin, write=write,
    )  # fmt: skip


class ForecastMaker:
    """Makes and writes the forecasts of people; a `Drawer` says with which model and settings.

    One volume is made at a time on any device, so that nothing else can change it.
    """

    def __init__(self, out: Path, drawer: Drawer, device: torch.device) -> None:
        self.out, self.drawer, self.device = out, drawer, device
        self.low, self.high = seen_years(drawer)

    def unit(self, own: Sequence[Forecast]) -> Unit:
        """The forecasts of one person as a unit of work."""
        subject = own[0].baseline.subject
        about = {
            "forecasts": [[one.baseline.bold.as_posix(), one.years, dict(one.told)] for one in own],
            "baselines": files_of(
                [path for one in own for path in (one.baseline.reference_path, one.baseline.mask_path)]
            ),
        }
        return Unit(
            f"sub-{subject}", about, lambda: self._write(own), naming.subject_scans(subject), Path(f"sub-{subject}")
        )

    def anatomy(self, one: Forecast) -> tuple[np.ndarray, np.ndarray]:
        """The forecast volume in units of the brain's mean, float32, and its brain mask.

        The person keeps what the tokenizer does not: the decoded change is added to the scan. Brain is what was brain, but for voxels that
        become or cease to be bright (`fmrisynth.data.normalisation.brain_of`).
        """
        drawer, config, tokenizer, model = self.drawer, self.drawer.config, self.drawer.tokenizer, self.drawer.model
        data = one.baseline.load()
        if data.reference_XYZ.shape != tokenizer.info.grid.shape or not np.isfinite(data.reference_XYZ).all():
            raise FmrisynthError(
                f"{one.baseline.reference_path}: expected finite voxels on the grid {tokenizer.info.grid.shape}, found "
                f"{data.reference_XYZ.shape} or values that are not finite; make the dataset again."
            )
        before_XYZ = normalise(data.reference_XYZ[..., None], data.reference_XYZ, data.mask_XYZ, "relative")[..., 0]
        drawing = Drawing(
            model, encode_labels(model.labels, one.baseline.condition, one.told, model.always),
            sampler=drawer.settings["Sampler"], n_steps=drawer.settings["SamplerSteps"], guidance=config.guidance,
            guidance_interval=config.guidance_interval, eta=config.eta, device=self.device,
        )  # fmt: skip
        latent_1CTxyz = tokenizer.encode(torch.from_numpy(before_XYZ)[None, None])[:, :, None]
        start = drawing.stack(latent_1CTxyz)
        ends = torch.cat([drawing.draw([0], fill=1, start_BFXYZ=start), start])
        decoded = tokenizer.decode(drawing.raw(drawing.standardised(ends))[:, :, 0])[:, 0].cpu().numpy()
        after_XYZ = np.clip(before_XYZ + (decoded[0] - decoded[1]), 0, None)
        was_XYZ, is_XYZ = brain_of(before_XYZ), brain_of(after_XYZ)
        mask_XYZ = (data.mask_XYZ | (is_XYZ & ~was_XYZ)) & ~(was_XYZ & ~is_XYZ)
        return np.where(mask_XYZ, after_XYZ, 0.0).astype(np.float32), mask_XYZ

    def _write(self, own: Sequence[Forecast]) -> None:
        drawer, info = self.drawer, self.drawer.tokenizer.info
        assert drawer.config.baselines is not None
        mean = float(info.reference_XYZ[info.mask_XYZ].mean())  # as drawn anatomies have it
        blocks: list[Block] = []
        for one in own:
            volume_XYZ, mask_XYZ = self.anatomy(one)
            reference_XYZ = volume_XYZ * np.float32(mean)
            said = ForecastOf(
                drawer.config.baselines.name, one.baseline.reference_path.relative_to(one.baseline.root).as_posix(), one.baseline_age,
                one.years, self.low <= one.years <= self.high,
            )  # fmt: skip
            entities = naming.Entities(
                sub=one.baseline.subject, ses=one.baseline.entities.get("ses"), task=load_table().get(one.baseline.condition).task,
                run=one.number, space=info.grid.space, res=info.grid.resolution,
            )  # fmt: skip
            blocks.append(
                write_block(
                    self.out, entities, DESC, BlockData(reference_XYZ[..., None], reference_XYZ, mask_XYZ), info.grid,
                    condition=one.baseline.condition, onset_s=0.0, duration_s=info.tr_s, tr_s=info.tr_s,
                    attributes=one.attributes,
                    sidecar={"Synthetic": True, "Network": drawer.network, **drawer.settings, "Attributes": dict(one.told),
                             **said.sidecar()},
                    origin=drawer.model.card.origin, extension=f".{drawer.config.format}",
                    reference_is=f"Forecast of sub-{one.baseline.subject}, {one.years:g} years after {said.baseline}, as the image",
                )
            )  # fmt: skip
        finish_subject(self.out, own[0].baseline.subject, blocks)
