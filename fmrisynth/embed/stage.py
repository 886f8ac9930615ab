"""`fmrisynth embed`: flat maps, an encoder (fitted unless one is given), features, pictures and probes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids.atomic import write_json
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.naming import subject_flatmaps
from fmrisynth.bids.origin import read_origin
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.bids.sources import choose_subjects
from fmrisynth.config.embed import EmbedConfig, ProbeConfig
from fmrisynth.data.blocks import block_files, read_subject, subjects_of, table_rows
from fmrisynth.embed.encoder import Encoder, find_encoder, load_encoder
from fmrisynth.embed.maps import FlatMaps, write_subject
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.device import pick_device
from fmrisynth.models.distributed import World, join_world
from fmrisynth.progress import StageSummary, count, track
from fmrisynth.stage import Stage, Unit

MAPS, RUN, FIGURES = Path("maps"), Path("encoder"), Path("figures")
FEATURES, PROBES = Path("features.tsv"), Path("probes.json")
README = """`maps/` holds every series on the flattened cortex, `encoder/` the masked autoencoder that was fitted to them (if none was
given), `features.tsv` one row per series, `probes.json` what can be told from the features, `figures/` pictures."""


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
    """Map a block dataset to features.

    Parameters
    ----------
    dataset : Path
        Block dataset in MNI space.
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
    known = subjects_of(dataset)
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
            "embed", out, config, sources=[dataset], known=[f"sub-{s}" for s in known], settings=settings, force=force,
            title=f"Flat maps and features of {dataset.resolve().name}", readme=README, origin=read_origin(dataset),
            write=world.is_main,
        )  # fmt: skip
        lines: list[str] = []
        if world.is_main:
            lines += _make_maps(stage, dataset, subjects, config)
        world.barrier()
        if loaded is None:
            lines += _fit(dataset, out, config, world)
            if not world.is_main:
                return StageSummary()
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


def _make_maps(stage: Stage, dataset: Path, subjects: Sequence[str], config: EmbedConfig) -> list[str]:
    def make(subject: str) -> int:
        blocks = read_subject(dataset, subject)
        about = {"blocks": block_files(blocks), "table of blocks": table_rows(blocks)}
        work = Unit(
            f"sub-{subject}", about, lambda: write_subject(stage.out / MAPS, subject, blocks, config.maps),
            MAPS / subject_flatmaps(subject)[1], MAPS,
        )  # fmt: skip
        return int(stage.do(work))

    done = stage.each(subjects, make, "Flat maps")
    if not done:
        raise FmrisynthError(next(iter(stage.failed.values())))
    return [
        f"Flat maps of {sum(done.values())} series of {count(len(done), 'subject')}, {config.maps.pixel_mm:g} mm pixels."
    ]


def _fit(dataset: Path, out: Path, config: EmbedConfig, world: World) -> list[str]:
    from fmrisynth.embed.learning import MaskedLearning
    from fmrisynth.train.loop import Trainer

    run = out / RUN
    config = config.model_copy(update={"probe": ProbeConfig()})  # what is asked of the features is no part of the run
    with exclusive(run, "training", wait=False) if world.is_main else nullcontext():
        learning = MaskedLearning(FlatMaps(out / MAPS, config.maps), read_origin(dataset), config, world)
        return Trainer(learning, run, config, world).run().lines


def mean_features(encoder: Encoder, maps: FlatMaps, instances: Sequence[int] | None = None) -> np.ndarray:
    """One vector per series, the mean of its patches' tokens, (N, D) float32."""
    chosen = range(len(maps.rows)) if instances is None else instances
    clips = (maps.read(i) for i in track(chosen, "Encoding", len(chosen)))
    return np.stack([tokens[1:].mean(0).numpy() for tokens in encoder.tokens(clips)])


def _write_features(maps: FlatMaps, encoder: Encoder, out: Path) -> str:
    features_ND = mean_features(encoder, maps)
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
    found = probe(maps, encoder, dataset, names, config.probe, config.seed)
    write_json(out / PROBES, [result.to_json() for result in found])
    return [result.line for result in found]
