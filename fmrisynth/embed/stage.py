"""`fmrisynth embed`: flat maps, an encoder (fitted unless one is given), features, pictures and probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fmrisynth.bids.atomic import write_bytes, write_json
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.naming import subject_flatmaps
from fmrisynth.bids.origin import read_origin
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.bids.sources import choose_subjects
from fmrisynth.config.embed import EmbedConfig, ProbeConfig
from fmrisynth.embed.encoder import Encoder, find_encoder, load_encoder
from fmrisynth.embed.maps import FlatMaps, write_subject
from fmrisynth.embed.series import Participant, open_series
from fmrisynth.embed.surface import KINDS, surface_files
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.device import pick_device
from fmrisynth.models.distributed import World, join_world
from fmrisynth.progress import StageSummary, count, track
from fmrisynth.stage import Stage, Unit

MAPS, RUN, FIGURES = Path("maps"), Path("encoder"), Path("figures")
FEATURES, TOKENS, PROBES = Path("features.tsv"), Path("tokens.safetensors"), Path("probes.json")
README = """`maps/` holds every series on the flattened cortex, `encoder/` the masked autoencoder that was fitted to them (if none was
given), `features.tsv` one row per series (the mean token), `tokens.safetensors` the tokens of all places of these series,
`probes.json` what can be told from them, `figures/` pictures."""


def embed_dataset(
    dataset: Path,
    out: Path,
    config: EmbedConfig,
    *,
    encoder: Path | None = None,
    probes: Sequence[str] = (),
    participant_labels: Sequence[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Map a dataset to features.

    Parameters
    ----------
    dataset : Path
        Block or run dataset in MNI space, or a dataset of CIFTI series.
    out : Path
        Output folder; continued where an earlier call stopped.
    config : EmbedConfig
        Of the maps, the network, its training and the probes. With a given encoder its own settings of the maps hold.
    encoder : Path, optional
        Use this encoder instead of fitting one to the training split.
    probes : sequence of str
        What to tell from the features: ``condition``, ``subject``, or a column of ``participants.tsv``.
    participant_labels : sequence of str, optional
        These subjects only.
    force : bool
        Make everything anew, also with other settings.

    Returns
    -------
    StageSummary
    """
    sources = open_series(dataset, config.seed)
    known = list(sources)
    subjects = choose_subjects(dataset, known, participant_labels)
    if probes:
        from fmrisynth.embed.probes import check_targets

        check_targets(dataset, probes, len(subjects), config.probe)
    given = None if encoder is None else find_encoder(encoder)
    loaded = None if given is None else load_encoder(given, pick_device(config.device))
    if loaded is not None:
        config = config.model_copy(update={"maps": loaded.maps})
    settings: dict[str, Any] = {"maps": config.maps.model_dump(mode="json")}
    settings["encoder"] = "fitted here" if loaded is None else loaded.sha256
    with join_world(config.device) as world:
        stage = Stage.begin(
            "embed", out, config, version=2, sources=[dataset], known=[f"sub-{s}" for s in known], settings=settings, force=force,
            title=f"Flat maps and features of {dataset.resolve().name}", readme=README, origin=read_origin(dataset),
            write=world.is_main,
        )  # fmt: skip
        lines: list[str] = []
        if world.is_main:
            lines += _make_maps(stage, {subject: sources[subject] for subject in subjects}, config)
        if (
            world.any(bool(stage.failed)) and loaded is None
        ):  # a fit to a part of the people could not go on with all of them
            hint = "Nothing was fitted: repair what failed, or name the other participants with --participant-label."
            return stage.summary([*lines, hint]) if world.is_main else StageSummary()
        if loaded is None:
            told, is_done = _fit(dataset, out, config, world)
            if not world.is_main:
                return StageSummary()
            if not is_done:
                return stage.summary([*lines, *told])
            lines += told
            loaded = load_encoder(out / RUN, world.device)
        elif not world.is_main:
            return StageSummary()
    maps = FlatMaps(out / MAPS, config.maps, subjects)
    about: dict[str, Any] = {"encoder": loaded.sha256, "maps": maps.digest}
    lines.append(stage.do(Unit("features", about, lambda: _write_features(maps, loaded, out), FEATURES)))
    from fmrisynth.embed.pictures import draw_pictures

    lines += stage.do(
        Unit("figures", about, lambda: draw_pictures(maps, loaded, out / FIGURES, out / RUN), FIGURES / "flatmap.png")
    )
    if probes:
        from fmrisynth.embed.probes import probe

        about |= {"probes": list(probes), "settings": config.probe, "seed": config.seed, "traits": _traits(dataset)}
        lines += stage.do(
            Unit("probes", about, lambda: _probe(probe, maps, loaded, dataset, probes, config, out), PROBES)
        )
    return stage.summary(lines)


def _make_maps(stage: Stage, sources: Mapping[str, Callable[[], Participant]], config: EmbedConfig) -> list[str]:
    surfaces = {} if config.maps.surfaces is None else {"surfaces": _surface_files(config.maps.surfaces)}

    def make(subject: str) -> int:
        found = sources[subject]()
        about: dict[str, Any] = {
            "blocks": [path for one in found.series for path in one.files], "table of blocks": found.table,
            "splits": [one.split for one in found.series], **surfaces,
        }  # fmt: skip
        work = Unit(
            f"sub-{subject}", about, lambda: write_subject(stage.out / MAPS, subject, found.series, config.maps),
            MAPS / subject_flatmaps(subject)[1], MAPS,
        )  # fmt: skip
        return int(stage.do(work))

    done = stage.each(list(sources), make, "Flat maps")
    if not done:
        raise FmrisynthError(next(iter(stage.failed.values())))
    return [
        f"Flat maps of {sum(done.values())} series of {count(len(done), 'subject')}, {config.maps.pixel_mm:g} mm pixels."
    ]


def _fit(dataset: Path, out: Path, config: EmbedConfig, world: World) -> tuple[list[str], bool]:
    """Train; returns what is to be said, and whether the last step is done."""
    from fmrisynth.embed.learning import MaskedLearning
    from fmrisynth.train.loop import Trainer

    run = out / RUN
    config = config.model_copy(update={"probe": ProbeConfig()})  # what is asked of the features is no part of the run
    with exclusive(run, "training", wait=False) if world.is_main else nullcontext():
        learning = MaskedLearning(FlatMaps(out / MAPS, config.maps), read_origin(dataset), config, world)
        trainer = Trainer(learning, run, config, world)
        return trainer.run().lines, trainer.run_state.progress.step >= config.steps


def _surface_files(folder: Path) -> list[Path]:
    """The flat surfaces and those of the others that are there: volumes need them, dense series do not."""
    found = [*surface_files(folder, "flat")]
    for kind in KINDS[1:]:
        with suppress(FmrisynthError):
            found += surface_files(folder, kind)
    return found


def _write_features(maps: FlatMaps, encoder: Encoder, out: Path) -> str:
    chosen = range(len(maps.rows))
    series = (maps.read(i, None) for i in track(chosen, "Encoding", len(chosen)))
    tokens_NMD = np.stack([tokens_MD.astype(np.float16) for tokens_MD in encoder.places(series)])
    write_bytes(out / TOKENS, save({"tokens": tokens_NMD}))
    features_ND = tokens_NMD.mean(axis=1, dtype=np.float32)
    names = [f"feature{i:04d}" for i in range(features_ND.shape[1])]
    rows = [
        {"participant_id": f"sub-{r.subject}", "filename": r.filename, "condition": r.condition, "split": r.split}
        | dict(zip(names, (f"{value:.6g}" for value in feature_D), strict=True))
        for r, feature_D in zip(maps.rows, features_ND, strict=True)
    ]
    write_tsv(out / FEATURES, ("participant_id", "filename", "condition", "split", *names), rows, last=True)
    return f"Features of {len(rows)} series, {len(names)} numbers each: {out / FEATURES}"


def _traits(dataset: Path) -> list[Path]:
    table = dataset / "participants.tsv"
    return [table] if table.is_file() else []


def _probe(
    probe: Any, maps: FlatMaps, encoder: Encoder, dataset: Path, names: Sequence[str], config: EmbedConfig, out: Path
) -> list[str]:
    tokens_NMD = load_file(out / TOKENS)["tokens"]
    found = probe(maps, encoder, tokens_NMD, dataset, names, config.probe, config.seed)
    write_json(out / PROBES, [result.to_json() for result in found])
    return [result.line for result in found]
