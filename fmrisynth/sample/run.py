"""Draw, decode and write synthetic subjects; memory does not grow with their number.

Axis legend: B batch of samples; C latent channels; T frames; X, Y, Z voxel or latent axes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from threadpoolctl import threadpool_limits

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import settle, write_bytes
from fmrisynth.bids.sidecars import read_tsv, write_tsv
from fmrisynth.config.sample import SampleConfig
from fmrisynth.data.blocks import Block, BlockData, finish_subject, read_subject, write_block
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.bundled import bundled_model_dir
from fmrisynth.models.distributed import World, join_world
from fmrisynth.models.tokenizers import Tokenizer
from fmrisynth.parse import read_json
from fmrisynth.progress import StageSummary, count, listed, log, progress_bar
from fmrisynth.sample.anatomy import drawn_anatomy
from fmrisynth.sample.drawer import Drawer, in_order, make_drawer
from fmrisynth.sample.forecast import Forecast, ForecastMaker, begin_forecasts, plan_forecasts
from fmrisynth.sample.gallery import SHOWN, write_gallery
from fmrisynth.sample.plan import SampleRequest, block_of, by_subject
from fmrisynth.sample.preview import write_preview
from fmrisynth.sample.report import write_report
from fmrisynth.sample.runs import PersonRequest, RunMaker, make_people
from fmrisynth.stage import Stage, Unit

Requests = tuple[SampleRequest, ...]

PARTICIPANTS_COLUMNS = ("participant_id", "condition", "seed", "synthetic")

_README = """Every subject of this dataset is synthetic: made by a generative model, measured on no one.
`participants.tsv` lists them with their seeds; each image's sidecar says which model, sampler and guidance.
Intensities are BOLD-like, arbitrary units.

"""
_OF_BLOCKS = """Each image is a sample of one task condition: {n_frames} frames, {tr_s:g} s apart, from the onset of a block.
The event has the duration of the blocks that the model was trained on. Where it is longer than the images, they end first.

"""


def sample_dataset(
    out: Path, config: SampleConfig, *, checkpoint: Path | None = None, force: bool = False
) -> StageSummary:
    """Write synthetic subjects as a block dataset.

    Started by ``torchrun`` or ``srun`` as several processes, each makes its share of the samples on its own device;
    the dataset is the one that a single process would write.

    Parameters
    ----------
    out : Path
        Dataset folder; finished subjects of an earlier, interrupted call are kept.
    config : SampleConfig
        What to sample, and how.
    checkpoint : Path, optional
        A model directory or a training output; default: the bundled model.
    force : bool
        Make the samples anew, also with another model or other settings than the folder was begun with.

    Returns
    -------
    StageSummary

    Raises
    ------
    FmrisynthError
        No usable model; the folder holds samples made with other settings; too little disk space.
    """
    with join_world(config.device) as world:
        drawer = make_drawer(config, checkpoint)
        if config.baselines is not None:
            return _forecast(out, config, drawer, world, force)
        return (_sample_runs if config.events else _sample)(out, config, drawer, world, force)


def _sample_runs(out: Path, config: SampleConfig, drawer: Drawer, world: World, force: bool) -> StageSummary:
    people = make_people(config, drawer.model.conditions, drawer.tokenizer.info.tr_s)
    n_frames = sum(design.n_frames for person in people for design in person.designs)
    stage = _begin(out, drawer, n_frames, force=force, write=world.is_main)
    if world.is_main:
        drawer.anatomies.warn(len(people))
    world.barrier()
    drawer.tokenizer.to(world.device)
    make = RunMaker(out, drawer, world.device)
    todo = [person for person in people if force or not stage.is_finished(make.unit(person))]
    world.barrier()
    mine = todo[world.rank :: world.size]
    with progress_bar("sampling", len(mine)) as bar:

        def work(person: PersonRequest) -> str:
            stage.do(make.unit(person))
            return person.subject

        for subject in drawer.side_by_side(work, mine) if world.device.type == "cpu" else map(work, mine):
            bar.update(1, note=subject)
    world.barrier()
    if not world.is_main:
        return StageSummary()
    write_participants(out)
    n_runs = sum(len(person.designs) for person in people)
    lines = [
        f"{count(n_runs, 'run')} of {_people(len(people))} in {out} ({len(people) - len(todo)} of them there already)."
    ]
    return stage.summary([*lines, drawer.model.card.origin.statement])


def _forecast(out: Path, config: SampleConfig, drawer: Drawer, world: World, force: bool) -> StageSummary:
    plan = plan_forecasts(config, drawer)
    n_all = sum(map(len, plan.values()))
    if not out.exists():
        _check_space(out, n_all, drawer.tokenizer)
    stage = begin_forecasts(out, drawer, force=force, write=world.is_main)
    world.barrier()
    drawer.tokenizer.to(world.device)
    make = ForecastMaker(out, drawer, world.device)
    todo = [own for own in plan.values() if force or not stage.is_finished(make.unit(own))]
    world.barrier()
    mine = todo[world.rank :: world.size]
    with progress_bar("forecasts", sum(map(len, mine))) as bar:

        def work(own: Sequence[Forecast]) -> Sequence[Forecast]:
            stage.do(make.unit(own))
            return own

        for own in drawer.side_by_side(work, mine) if world.device.type == "cpu" else map(work, mine):
            bar.update(len(own), note=own[0].baseline.subject)
    world.barrier()
    if not world.is_main:
        return StageSummary()
    write_participants(out)
    if config.preview:
        blocks = [read_subject(out, own[0].baseline.subject)[-1] for own in list(plan.values())[:SHOWN]]
        write_gallery(blocks)
    lines = [
        f"{count(n_all, 'forecast')} of {len(plan)} {'person' if len(plan) == 1 else 'people'} in {out} "
        f"({n_all - sum(map(len, todo))} there already)."
    ]
    return stage.summary([*lines, drawer.model.card.origin.statement])


def _people(n: int) -> str:
    return f"{n} synthetic {'person' if n == 1 else 'people'}"


def save_samples(out: Path, drawer: Drawer, drawn: Mapping[SampleRequest, np.ndarray], *, force: bool = False) -> None:
    """Write samples that were drawn before: the dataset that `sample_dataset` would write, to the last byte.

    Parameters
    ----------
    out : Path
        Dataset folder.
    drawer : Drawer
        Who drew them.
    drawn : mapping of SampleRequest to array of shape (X, Y, Z, T)
        The samples.
    force : bool
        As in `sample_dataset`.
    """
    make = SampleMaker(_begin(out, drawer, len(drawn) * drawer.tokenizer.info.n_frames, force=force), drawer)
    for own in by_subject(list(drawn)):
        make.stage.do(make.unit(own, bold=[drawn[request] for request in own]))
    _finish(out, drawer, list(drawn))


def _begin(out: Path, drawer: Drawer, n_frames: int, *, force: bool, write: bool = True) -> Stage:
    config = drawer.config
    fixed = drawer.settings | {"Seed": config.seed, "Format": config.format, "SaveLatents": config.save_latents}
    fixed |= {
        name.capitalize(): path.name
        for name in ("anatomy", "participants")
        if (path := getattr(config, name)) is not None
    }
    fixed |= {"SameNoise": True} if config.same_noise else {}
    if not out.exists():  # a model that needs more than there is must not leave a folder
        _check_space(out, n_frames, drawer.tokenizer)
    info = drawer.tokenizer.info
    what = "" if config.events else _OF_BLOCKS.format(n_frames=info.n_frames, tr_s=info.tr_s)
    return Stage.begin(
        "sample", out, config, settings=fixed, force=force, title="Synthetic task-fMRI by fmrisynth",
        readme=_README + what + drawer.anatomies.statement, origin=drawer.model.card.origin, write=write,
    )  # fmt: skip


def _finish(out: Path, drawer: Drawer, asked: Sequence[SampleRequest]) -> None:
    config = drawer.config
    write_participants(out)
    if config.preview and drawer.makes_anatomies:
        write_gallery([block_of(out, request) for request in asked[:SHOWN]], differences=config.same_noise)
    elif config.preview:
        for request in asked:
            if request.index == config.start_index and request.block in (None, 1):
                write_preview(block_of(out, request), None if request.block is None else request.desc)


def _sample(out: Path, config: SampleConfig, drawer: Drawer, world: World, force: bool) -> StageSummary:
    model, tokenizer = drawer.model, drawer.tokenizer
    asked = drawer.requests(config)
    drawer.check_attributes(asked)
    stage = _begin(out, drawer, len(asked) * drawer.tokenizer.info.n_frames, force=force, write=world.is_main)
    world.barrier()  # the folder is begun
    tokenizer.to(world.device)
    make = SampleMaker(stage, drawer)
    subjects = by_subject(asked)
    if world.is_main:
        drawer.anatomies.warn(len({request.index for request in asked}))
    todo = [own for own in subjects if force or not stage.is_finished(make.unit(own))]
    n_todo = sum(len(own) for own in todo)
    _check_space(out, n_todo * tokenizer.info.n_frames, tokenizer)
    world.barrier()  # every process has seen the same samples on disk
    mine = todo[world.rank :: world.size]
    with progress_bar("sampling", sum(len(own) for own in mine)) as bar:
        for own in make.on_cpu(mine) if world.device.type == "cpu" else make.on_gpu(mine, world.device):
            bar.update(len(own), note=own[-1].condition.label)
    world.barrier()
    if not world.is_main:
        return StageSummary()

    _finish(out, drawer, asked)
    what = count(len(asked), "sample")
    if config.subjects is not None:
        what = f"{count(len(asked), 'block')} of {_people(len(subjects))}"
    lines = [f"{what} in {out} ({len(asked) - n_todo} there already)."]
    if config.report:
        whole = asked if config.shard == (1, 1) else drawer.requests(config.model_copy(update={"shard": (1, 1)}))
        write_report(out, whole, config, drawer)
    lines.append(model.card.origin.statement)
    if model.path == bundled_model_dir():
        lines.append("It is the bundled model, for trying the tools; name your own with --checkpoint DIR.")
    return stage.summary(lines)


def plan_samples(out: Path, config: SampleConfig, *, checkpoint: Path | None = None) -> list[str]:
    """Lines for ``--dry-run``: what would be made."""
    drawer = make_drawer(config, checkpoint)
    settings, stage = drawer.settings, Stage("sample", out)
    if config.baselines is not None:
        maker, plan = ForecastMaker(out, drawer, torch.device("cpu")), plan_forecasts(config, drawer)
        units = [
            (f"sub-{subject}  {', '.join(one.name for one in own)}", stage.is_finished(maker.unit(own)))
            for subject, own in plan.items()
        ]
    elif config.events:
        tr_s, runs = drawer.tokenizer.info.tr_s, RunMaker(out, drawer, torch.device("cpu"))
        units = [
            (f"sub-{person.subject}  {', '.join(f'{d.name} {d.n_frames * tr_s:.0f} s' for d in person.designs)}  seed {person.seed}",
             stage.is_finished(runs.unit(person)))
            for person in make_people(config, drawer.model.conditions, tr_s)
        ]  # fmt: skip
    else:
        make = SampleMaker(stage, drawer)
        units = [
            (f"sub-{request.subject}  {request.condition.label}  seed {request.seed}", is_done)
            for own in by_subject(drawer.requests(config))
            for is_done in [stage.is_finished(make.unit(own))]
            for request in own
        ]
    return [
        f"{_counted(config, len(units))} to {out}, {sum(is_done for _, is_done in units)} done",
        f"model {drawer.model.path}, {settings['Sampler']} with {settings['SamplerSteps']} steps",
        *listed([f"{text}  {'done' if is_done else 'to do'}" for text, is_done in units]),
    ]


def _counted(config: SampleConfig, n: int) -> str:
    if config.baselines is not None:
        return f"forecasts of {n} {'person' if n == 1 else 'people'}"
    return _people(n) if config.events else count(n, "sample")


def write_participants(out: Path) -> None:
    """Write ``participants.tsv`` from the finished subjects on disk, whoever made them."""
    settle(
        lambda: sorted(out.glob("sub-*/sub-*_scans.tsv")),
        lambda finished: write_tsv(out / "participants.tsv", PARTICIPANTS_COLUMNS, _participants(finished)),
    )


def _participants(finished: Sequence[Path]) -> list[dict[str, Any]]:
    rows = []
    for scans in finished:
        try:
            found = read_tsv(scans, ("filename", "condition"))
            sidecar = dict(read_json(naming.image_sidecar(scans.parent / found[0]["filename"])))
        except (FmrisynthError, IndexError, OSError, ValueError, TypeError) as error:
            log.warning("%s: left out of participants.tsv until the sample is asked for again (%s)", scans, error)
            continue
        rows.append(
            {
                "participant_id": scans.parent.name,
                # Those of a person who does several blocks stand in scans.tsv and the sidecars.
                "condition": found[0]["condition"] if len(found) == 1 else None,
                "seed": sidecar.get("Seed") if len(found) == 1 else None,
                "synthetic": True,
            }
        )
    return rows


class SampleMaker:
    """Makes and writes samples; on a GPU a thread writes one batch while the next is drawn."""

    def __init__(self, stage: Stage, drawer: Drawer) -> None:
        self.stage, self.drawer = stage, drawer

    def unit(
        self, own: Sequence[SampleRequest], latents: Sequence[torch.Tensor] = (), bold: Sequence[np.ndarray] = ()
    ) -> Unit:
        """The blocks of one subject as a unit of work; drawn and decoded when it is made, if not before."""
        about = {
            "blocks": [[request.condition.label, request.seed, *request.attributes] for request in own],
            "anatomy": self.drawer.anatomies.about(own[0]),
        }
        subject = own[0].subject
        return Unit(
            f"sub-{subject}", about, lambda: self._write(own, latents, bold), naming.subject_scans(subject),
            Path(f"sub-{subject}"),
        )  # fmt: skip

    def on_cpu(self, subjects: Sequence[Requests]) -> Iterator[Requests]:
        """Make subjects side by side, yielding each one as it is on disk, in order."""

        def work(own: Requests) -> Requests:
            self.stage.do(self.unit(own))
            return own

        yield from self.drawer.side_by_side(work, subjects)

    def on_gpu(self, subjects: Sequence[Requests], device: torch.device) -> Iterator[Requests]:
        """Make samples batch by batch, yielding each subject as it is on disk, in order."""
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(1) as writer:
            yield from (
                own
                for few in in_order(writer, self._write_drawn, self._drawn(subjects, device), ahead=2)
                for own in few
            )

    def _drawn(
        self, subjects: Sequence[Requests], device: torch.device
    ) -> Iterator[list[tuple[Requests, list[torch.Tensor]]]]:
        """A few subjects at a time with their latents; those of one condition are drawn together, whoever does them."""
        size = self.drawer.config.batch_size
        for start in range(0, len(subjects), size):
            few = subjects[start : start + size]
            alike = sorted((r for own in few for r in own), key=lambda r: (r.condition.label, r.attributes))
            drawn = dict(pair for batch in self.drawer.batches(alike, device) for pair in batch)
            yield [(own, [drawn[request] for request in own]) for own in few]

    def _write_drawn(self, drawn: Sequence[tuple[Requests, list[torch.Tensor]]]) -> list[Requests]:
        for own, latents in drawn:
            self.stage.do(self.unit(own, latents))
        return [own for own, _ in drawn]

    def _write(self, own: Sequence[SampleRequest], latents: Sequence[torch.Tensor], bold: Sequence[np.ndarray]) -> None:
        config, info = self.drawer.config, self.drawer.tokenizer.info
        grid, anatomy = info.grid, self.drawer.anatomies.load(own[0], dict(own[0].attributes))
        blocks: list[Block] = []
        runs: Counter[str] = Counter()
        kept = []
        for number, request in enumerate(own):
            latent = latents[number] if latents else None
            if latent is None and not bold:
                latent = self.drawer.latents([request], torch.device("cpu"))[0]
            if latent is not None:
                kept.append(latent)
            runs[request.condition.task] += 1
            entities = naming.Entities(
                sub=request.subject, task=request.condition.task, run=request.block and runs[request.condition.task],
                space=grid.space, res=grid.resolution,
            )  # fmt: skip
            onset_s, duration_s = self.drawer.timing(request)
            volumes = bold[number] if bold else self.drawer.volumes(request, latent, anatomy)
            if self.drawer.makes_anatomies:
                anatomy = drawn_anatomy(volumes, info)
            block = write_block(
                self.stage.out, entities, request.desc, BlockData(volumes, anatomy.reference_XYZ, anatomy.mask_XYZ), grid,
                condition=request.condition.label, onset_s=onset_s, duration_s=duration_s, tr_s=info.tr_s,
                attributes=dict(request.attributes),
                sidecar={"Synthetic": True, "Seed": request.seed, "Network": self.drawer.network, **self.drawer.settings,
                         "Attributes": dict(request.attributes), **anatomy.sidecar()},
                origin=self.drawer.model.card.origin, extension=f".{config.format}",
                same_run=blocks[0] if blocks and not self.drawer.makes_anatomies else None,
                reference_is=anatomy.reference_is,
            )  # fmt: skip
            blocks.append(block)
        if config.save_latents and kept:
            shard, _ = naming.subject_latents(own[0].subject)
            write_bytes(self.stage.out / "latents" / shard, save_tensors({"latents": torch.stack(kept).contiguous()}))
        finish_subject(self.stage.out, own[0].subject, blocks)


def _check_space(out: Path, n_frames: int, tokenizer: Tokenizer) -> None:
    info = tokenizer.info
    need = n_frames * int(np.prod(info.grid.shape)) * 2
    place = out
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need > free:
        raise FmrisynthError(
            f"{out}: what was asked for may need {need / 1e9:.2g} GB, the disk has {free / 1e9:.2g} GB free; free space, or ask "
            "for less."
        )
