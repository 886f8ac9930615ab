"""`fmrisynth tokenize`: fit unless a tokenizer is given, encode subject by subject, decode and report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmrisynth.bids.naming import Entities, parse_entities, subject_latents, subject_scans
from fmrisynth.bids.origin import read_origin
from fmrisynth.bids.sources import choose_subjects
from fmrisynth.config.tokenize import NETWORKS, TokenizeConfig
from fmrisynth.data.blocks import (
    Block,
    BlockData,
    anatomies_of,
    block_files,
    finish_subject,
    read_subject,
    subjects_of,
    table_rows,
    write_block,
)
from fmrisynth.data.latents import TOKENIZER_FOLDER, LatentDataset, read_run_events, write_runs, write_subject
from fmrisynth.data.normalisation import Normalisation
from fmrisynth.errors import FmrisynthError, must_exist
from fmrisynth.models.bundled import tokenizer_dir
from fmrisynth.models.device import pick_device
from fmrisynth.models.tokenizers import Tokenizer, load_tokenizer
from fmrisynth.models.tokenizers.base import TOKENIZER_JSON
from fmrisynth.progress import StageSummary, log
from fmrisynth.stage import Stage, Unit
from fmrisynth.tokenize.fit import fit_tokenizer
from fmrisynth.tokenize.gradient import move
from fmrisynth.tokenize.report import METRICS_JSON, held_out_subjects, make_report
from fmrisynth.tokenize.source import BlockSource, load_on_grid, to_frames

FIT_FOLDER = "fit"
RECONSTRUCTED_FOLDER = "reconstructed"
README = "Latents for `fmrisynth train`: `sub-*_latents.tsv` lists the blocks, `tokenizer/` decodes them."
FIT_KEYS = ("seed", "normalisation", "model", "fit", "max_fit_blocks", "statistics_blocks", "init")
OPERATIONAL_KEYS = ("checkpoint_every", "log_every")


def tokenize_dataset(
    prepared: Path,
    out: Path,
    config: TokenizeConfig,
    *,
    tokenizer: Path | None = None,
    participant_labels: Sequence[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Turn a block dataset into latents.

    Parameters
    ----------
    prepared : Path
        Block dataset.
    out : Path
        Latents directory; continued where an earlier call stopped.
    config : TokenizeConfig
        Kind of tokenizer, fit, encoding.
    tokenizer : Path, optional
        Use this tokenizer's folder (or ``bundled``) instead of fitting one.
    participant_labels : sequence of str, optional
        Encode these subjects only. The fit always takes the whole training split, but for `config.leave_out`.
    force : bool
        Fit and encode anew, also with other settings than the folder was begun with.

    Returns
    -------
    StageSummary
        Subjects that could not be encoded are in `failed`.

    Raises
    ------
    FmrisynthError
        Nothing to do: no dataset, a wrong grid, another tokenizer's latents in `out`.
    """
    known = subjects_of(prepared)
    subjects = choose_subjects(prepared, known, participant_labels)
    left_out = set(choose_subjects(prepared, known, config.leave_out)) if config.leave_out else set()
    fitted_to = [subject for subject in known if subject not in left_out]
    given = None if tokenizer is None else tokenizer_dir(tokenizer)
    pick_device(config.device)
    if config.init is not None:
        must_exist(config.init, "a tokenizer or state dict to start the fit from")
    settings = {"tokenizer": "fitted here"} | _fit_settings(config)
    if given is not None:
        settings = {"tokenizer": load_tokenizer(given).info.sha256}
    stage = Stage.begin(
        "tokenize", out, config, sources=[prepared], known=[f"sub-{subject}" for subject in known], settings=settings,
        title=f"Latents of {prepared.resolve().name}", readme=README, origin=read_origin(prepared), force=force,
    )  # fmt: skip
    try:
        found = stage.do(_given(stage, given) if given is not None else _fitted(stage, prepared, fitted_to, config))
    except FmrisynthError:
        stage.withdraw()
        raise
    loaded = move(load_tokenizer(out / TOKENIZER_FOLDER), config)
    info = loaded.info
    lines = [f"Used the {info.kind} tokenizer {tokenizer}."] if given is not None else [_about_fit(stage, found)]

    encoded = stage.each(
        subjects, lambda subject: stage.do(_latents(prepared, out, subject, loaded, config)), "Encoding"
    )
    if not encoded:
        if given is not None:  # a tokenizer that was fitted here is worth keeping
            stage.withdraw("tokenizer")
            lines = []
        return stage.summary(lines)
    lines.append(
        f"Encoded {sum(encoded.values())} blocks of {len(encoded)} subjects to latents of shape "
        f"{info.latent_channels} x {info.n_frames} x {' x '.join(map(str, info.latent_grid))} in {out}."
    )
    if info.normalisation == "relative":
        return stage.summary([*lines, "No tokenizer report: it is about what people do, not about how they look."])
    held_out = held_out_subjects(prepared, subjects, config.report_split) if config.report else []
    if held_out and read_subject(prepared, held_out[0])[0].is_run:
        return stage.summary([*lines, "No tokenizer report: it is made of blocks, this dataset holds whole runs."])
    if held_out:
        about = {"tokenizer": info.sha256, "split": config.report_split, **_blocks_of(prepared, held_out)}
        report = Unit("report", about, lambda: make_report(prepared, out, held_out, loaded, config), Path(METRICS_JSON))
        lines += stage.do(report)
    elif config.report:
        lines.append(f"No tokenizer report: the dataset has no subject in the {config.report_split} split to hold out.")
    if config.reconstruct:
        lines += decode_latents(out, out / RECONSTRUCTED_FOLDER, config=config, prepared=prepared, force=force).lines
    return stage.summary(lines)


def decode_latents(
    latents: Path,
    out: Path,
    *,
    config: TokenizeConfig | None = None,
    prepared: Path | None = None,
    force: bool = False,
) -> StageSummary:
    """Decode a latents directory back to a block dataset.

    Parameters
    ----------
    latents : Path
        Latents directory.
    out : Path
        Block dataset to write; subjects that are complete are skipped.
    config : TokenizeConfig, optional
        Batch size and device.
    prepared : Path, optional
        The block dataset the latents were made from: blocks are then rebuilt on their own reference and mask.
        Without it, on the tokenizer's mean reference and mask.
    force : bool
        Decode anew what is there.
    """
    config = config or TokenizeConfig()
    dataset = LatentDataset.open(latents)
    tokenizer = move(load_tokenizer(dataset.tokenizer_dir), config)
    stage = Stage.begin(
        "decode", out, config, sources=[latents], known=[f"sub-{subject}" for subject in dataset.subjects],
        settings={"tokenizer": tokenizer.info.sha256, "own anatomy": prepared is not None},
        title="Reconstructions from latents", readme="Decoded by fmrisynth.", origin=read_origin(latents), force=force,
    )  # fmt: skip

    def decode(subject: str) -> None:
        originals = _blocks_of(prepared, [subject]) if prepared is not None else {}
        stage.do(
            Unit(
                f"sub-{subject}", {"latents": [latents / name for name in subject_latents(subject)], **originals},
                lambda: _decode_subject(dataset, out, subject, tokenizer, config, prepared),
                subject_scans(subject), Path(f"sub-{subject}"),
            )
        )  # fmt: skip

    done = stage.each(dataset.subjects, decode, "Decoding")
    return stage.summary([f"Decoded {len(done)} subjects to {out}."])


def _blocks_of(prepared: Path, subjects: Sequence[str]) -> dict[str, Any]:
    """What the blocks of some subjects are, for `Unit.about`."""
    blocks = [block for subject in subjects for block in read_subject(prepared, subject)]
    return {"blocks": block_files(blocks), "table of blocks": table_rows(blocks)}


def _decode_subject(
    dataset: LatentDataset, out: Path, subject: str, tokenizer: Tokenizer, config: TokenizeConfig, prepared: Path | None
) -> None:
    info = tokenizer.info
    originals = {} if prepared is None else {b.bold.as_posix(): b for b in read_subject(prepared, subject)}
    written = []
    events = read_run_events(dataset.root, subject) if any(row.n_frames for row in dataset.rows) else {}
    for index, row in enumerate(dataset.rows):
        if row.subject != subject:
            continue
        reference, mask = info.reference_XYZ, info.mask_XYZ
        if prepared is not None:
            if row.filename not in originals:
                raise FmrisynthError(
                    f"{prepared}: sub-{subject} has no block {row.filename}; encode the subject again."
                )
            data = load_on_grid(originals[row.filename], info.grid, originals[row.filename].n_frames)
            reference, mask = data.reference_XYZ, data.mask_XYZ & info.mask_XYZ
        bold = next(
            tokenizer.decode_blocks(dataset.load(index)[None], reference_XYZ=reference, batch_size=config.batch_size)
        )
        names = parse_entities(Path(row.filename).name)
        entities = Entities(
            sub=subject, ses=names.get("ses"), task=names.get("task"), acq=names.get("acq"), dir=names.get("dir"),
            run=int(names["run"]) if "run" in names else None, space=names.get("space"), res=names.get("res"),
        )  # fmt: skip
        written.append(
            write_block(
                out, entities, names.get("desc", "block"), BlockData(bold, reference, mask), info.grid,
                condition=row.condition, onset_s=row.onset_s, duration_s=row.duration_s, tr_s=row.tr_s, split=row.split,
                attributes=row.attributes, source=row.filename, sidecar={"TokenizerSHA256": info.sha256},
                events=events.get(row.row, ()), origin=read_origin(dataset.root),
            )
        )  # fmt: skip
    finish_subject(out, subject, written)


def _read(prepared: Path, subject: str, normalisation: Normalisation) -> list[Block]:
    """What is encoded of a subject: what it does, or how it looks."""
    blocks = read_subject(prepared, subject)
    return anatomies_of(blocks) if normalisation == "relative" else blocks


def _latents(prepared: Path, out: Path, subject: str, tokenizer: Tokenizer, config: TokenizeConfig) -> Unit:
    """Latents of one subject; its result is the number of blocks."""
    blocks = _read(prepared, subject, tokenizer.info.normalisation)
    if not blocks:
        raise FmrisynthError(f"{prepared}: sub-{subject} has no blocks; check the report of `fmrisynth prepare`.")

    def make() -> int:
        if blocks[0].is_run:
            write_runs(out, subject, [encode_block(block, tokenizer, config) for block in blocks], blocks)
            return len(blocks)
        shape = (tokenizer.info.latent_channels, blocks[0].n_frames, *tokenizer.info.latent_grid)
        latents = torch.empty((len(blocks), *shape))
        for number, block in enumerate(blocks):
            latents[number] = encode_block(block, tokenizer, config)
        write_subject(out, subject, latents, blocks)
        return len(blocks)

    about = {"tokenizer": tokenizer.info.sha256, "blocks": block_files(blocks), "table of blocks": table_rows(blocks)}
    return Unit(f"sub-{subject}", about, make, subject_latents(subject)[1])


def encode_block(block: Block, tokenizer: Tokenizer, config: TokenizeConfig) -> Tensor:
    """Latents of one block, (C, T, x, y, z); its grid must be the tokenizer's."""
    info = tokenizer.info
    grid = block.load_grid()
    if not grid.same_as(info.grid):
        raise FmrisynthError(
            f"{block.path}: lies on a {' x '.join(map(str, grid.shape))} grid in {grid.space} space, the tokenizer was fitted "
            f"on {' x '.join(map(str, info.grid.shape))} in {info.grid.space}, or with another affine; fit a tokenizer "
            "on this dataset or prepare it on the tokenizer's grid."
        )
    data = load_on_grid(block, grid, block.n_frames)
    frames = to_frames(data, info.normalisation)
    return tokenizer.encode(frames, batch_size=config.batch_size).transpose(0, 1)


def _given(stage: Stage, given: Path) -> Unit:
    """A copy of a tokenizer that was fitted elsewhere."""
    return Unit(
        "tokenizer",
        {"tokenizer": sorted(path for path in given.iterdir() if path.is_file())},
        lambda: load_tokenizer(given).save(stage.out / TOKENIZER_FOLDER),
        Path(TOKENIZER_FOLDER, TOKENIZER_JSON),
        Path(TOKENIZER_FOLDER),
    )


def _fitted(stage: Stage, prepared: Path, subjects: Sequence[str], config: TokenizeConfig) -> Unit:
    """A tokenizer fitted to the training split.

    Blocks that came after the fit do not make it stale; blocks it was fitted to and that changed or went do.
    """
    training, split = _training_blocks(prepared, subjects, config.normalisation)
    if config.leave_out and split != "train":
        raise FmrisynthError(
            f"{prepared}: expected people of the training split whom leave_out does not name, found none; leave out fewer people."
        )
    before = stage.result("tokenizer")
    blocks = [block for block in training if before and block.bold.as_posix() in set(before["blocks"])]
    if before is None or len(blocks) < len(before["blocks"]):
        blocks = _drawn([block for block in training if _may_be_read(block)], config)

    def make() -> dict[str, Any]:
        provenance = {
            "split": split, "n_blocks": len(blocks), "n_subjects": len({block.subject for block in blocks}),
            "config": _fit_settings(config),
        }  # fmt: skip
        fitted = fit_tokenizer(BlockSource(blocks), config, folder=stage.out / FIT_FOLDER, provenance=provenance)
        fitted.save(stage.out / TOKENIZER_FOLDER)
        about = f"{fitted.info.kind} tokenizer ({config.normalisation})"
        of = f"{len(blocks)} blocks of {provenance['n_subjects']} subjects (split {split})"
        return {"kind": about, "of": of, "blocks": [block.bold.as_posix() for block in blocks]}

    init = [] if config.init is None else sorted(config.init.iterdir()) if config.init.is_dir() else [config.init]
    about = {"blocks": block_files(blocks), "table of blocks": table_rows(blocks), "init": init}
    folder = Path(TOKENIZER_FOLDER)
    return Unit("tokenizer", about, make, folder / TOKENIZER_JSON, folder, scratch=Path(FIT_FOLDER))


def _may_be_read(block: Block) -> bool:
    closed = [path for path in block_files([block]) if path.exists() and not os.access(path, os.R_OK)]
    if closed:
        log.warning("left out of the tokenizer's fit: %s may not be read", closed[0])
    return not closed


def _about_fit(stage: Stage, found: dict[str, Any]) -> str:
    if "tokenizer" in stage.made:
        return f"Fitted a {found['kind']} to {found['of']}."
    return f"Used the {found['kind']} that had been fitted to {found['of']}."


def _training_blocks(prepared: Path, subjects: Sequence[str], normalisation: Normalisation) -> tuple[list[Block], str]:
    """The blocks of the training split, and its name.

    A dataset without a training split (a single subject, say) gives all its blocks, with a warning.
    """
    blocks: list[Block] = []
    for subject in subjects:
        try:
            blocks += _read(prepared, subject, normalisation)
        except FmrisynthError as error:
            log.warning("left out of the tokenizer's fit: %s", error)
    train = [block for block in blocks if block.split == "train"]
    if train:
        return train, "train"
    log.warning("%s has no training split; the tokenizer is fitted to all its blocks.", prepared)
    return blocks, "all"


def _drawn(blocks: list[Block], config: TokenizeConfig) -> list[Block]:
    """At most `max_fit_blocks`, drawn by seed."""
    if len(blocks) <= config.max_fit_blocks:
        return blocks
    chosen = np.random.default_rng([config.seed, 0]).permutation(len(blocks))[: config.max_fit_blocks]
    return [blocks[i] for i in np.sort(chosen)]


def _fit_settings(config: TokenizeConfig) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    settings = {key: content[key] for key in FIT_KEYS}
    settings["fit"] = {k: v for k, v in content["fit"].items() if k not in OPERATIONAL_KEYS}
    if config.model.kind not in NETWORKS:
        del settings["fit"]
    if config.leave_out:
        settings["leave_out"] = content["leave_out"]
    return settings
