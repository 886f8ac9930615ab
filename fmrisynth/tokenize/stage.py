"""`fmrisynth tokenize`: fit unless a tokenizer is given, encode subject by subject, decode and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmrisynth.bids.atomic import remove_leftovers, write_json
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.naming import Entities, parse_entities, subject_latents
from fmrisynth.bids.provenance import write_dataset_description, write_run_log
from fmrisynth.bids.sources import choose_subjects
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.blocks import Block, BlockData, finish_subject, is_finished, read_subject, subjects_of, write_block
from fmrisynth.data.latents import (
    TOKENIZER_FOLDER,
    LatentDataset,
    is_encoded,
    read_index,
    shard_shape,
    write_subject,
)  # fmt: skip
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.bundled import BUNDLED, bundled_tokenizer_dir
from fmrisynth.models.tokenizers import Tokenizer, load_tokenizer
from fmrisynth.models.tokenizers.base import TOKENIZER_JSON
from fmrisynth.progress import StageSummary, log, reason_of, track
from fmrisynth.tokenize.fit import fit_tokenizer
from fmrisynth.tokenize.gradient import move
from fmrisynth.tokenize.report import make_report
from fmrisynth.tokenize.source import BlockSource, load_on_grid, to_frames

FIT_FOLDER = "fit"
RECONSTRUCTED_FOLDER = "reconstructed"
FIT_KEYS = ("seed", "normalisation", "model", "fit", "max_fit_blocks", "init")
OPERATIONAL_KEYS = ("checkpoint_every", "log_every")


def tokenize_dataset(
    prepared: Path,
    out: Path,
    config: TokenizeConfig,
    *,
    tokenizer: Path | None = None,
    participant_labels: Sequence[str] | None = None,
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
        Encode these subjects only. The fit always takes the whole training split.

    Returns
    -------
    StageSummary
        Subjects that could not be encoded are in `failed`.

    Raises
    ------
    FmrisynthError
        Nothing to do: no dataset, a wrong grid, another tokenizer's latents in `out`.
    """
    summary = StageSummary()
    known = subjects_of(prepared)
    subjects = choose_subjects(prepared, known, participant_labels)
    with exclusive(out, "tokenizer"):  # one fits, the others wait and take what it fitted
        loaded = _obtain(prepared, out, config, tokenizer, known, summary)
    for folder in (out, out / TOKENIZER_FOLDER, out / FIT_FOLDER, out / "logs"):
        remove_leftovers(folder)
    write_run_log(out, "tokenize", config)
    move(loaded, config)
    n_blocks = 0
    for subject in track(subjects, "Encoding"):
        try:
            with exclusive(out, f"sub-{subject}"):
                n_blocks += encode_subject(prepared, out, subject, loaded, config)
        except Exception as error:
            summary.failed[subject] = reason_of(f"sub-{subject}", error)
            log.error("sub-%s: %s", subject, summary.failed[subject])
    if len(summary.failed) == len(subjects):
        return summary  # nothing was encoded, so there is nothing to report
    info = loaded.info
    summary.lines.append(
        f"Encoded {n_blocks} blocks of {len(subjects) - len(summary.failed)} subjects to latents of shape "
        f"{info.latent_channels} x {info.n_frames} x {' x '.join(map(str, info.latent_grid))} in {out}."
    )
    if config.report:
        summary.lines += make_report(prepared, out, subjects, loaded, config)
    if config.reconstruct:
        summary.lines += decode_latents(out, out / RECONSTRUCTED_FOLDER, config=config, prepared=prepared).lines
    return summary


def decode_latents(
    latents: Path, out: Path, *, config: TokenizeConfig | None = None, prepared: Path | None = None
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
    """
    config = config or TokenizeConfig()
    dataset = LatentDataset.open(latents)
    tokenizer = move(load_tokenizer(dataset.tokenizer_dir), config)
    summary = StageSummary()
    write_dataset_description(out, "Reconstructions from latents", sources=[latents], readme="Decoded by fmrisynth.")
    for subject in track(dataset.subjects, "Decoding"):
        try:
            with exclusive(out, f"sub-{subject}"):
                if not is_finished(out, subject):
                    _decode_subject(dataset, out, subject, tokenizer, config, prepared)
        except Exception as error:
            summary.failed[subject] = reason_of(f"sub-{subject}", error)
            log.error("sub-%s: %s", subject, summary.failed[subject])
    summary.lines.append(f"Decoded {len(dataset.subjects) - len(summary.failed)} subjects to {out}.")
    return summary


def _decode_subject(
    dataset: LatentDataset, out: Path, subject: str, tokenizer: Tokenizer, config: TokenizeConfig, prepared: Path | None
) -> None:
    info = tokenizer.info
    originals = {} if prepared is None else {b.bold.as_posix(): b for b in read_subject(prepared, subject)}
    written = []
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
            )
        )  # fmt: skip
    finish_subject(out, subject, written)


def encode_subject(prepared: Path, out: Path, subject: str, tokenizer: Tokenizer, config: TokenizeConfig) -> int:
    """Encode one subject unless it is done; returns its number of blocks."""
    blocks = read_subject(prepared, subject)
    if not blocks:
        raise FmrisynthError(f"{prepared}: sub-{subject} has no blocks; check the report of `fmrisynth prepare`.")
    shape = (len(blocks), tokenizer.info.latent_channels, blocks[0].n_frames, *tokenizer.info.latent_grid)
    if is_encoded(out, subject) and _up_to_date(out, subject, blocks, shape):
        return len(blocks)
    latents = torch.empty(shape)
    for number, block in enumerate(blocks):
        latents[number] = encode_block(block, tokenizer, config)
    write_subject(out, subject, latents, blocks)
    return len(blocks)


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


def _up_to_date(out: Path, subject: str, blocks: Sequence[Block], shape: tuple[int, ...]) -> bool:
    """Whether the latents on disk are those of these blocks."""
    try:
        rows = read_index(out, subject)
        same = [row.filename for row in rows] == [block.bold.as_posix() for block in blocks]
        return same and shard_shape(out / subject_latents(subject)[0]) == shape
    except FmrisynthError:
        return False


def _obtain(
    prepared: Path,
    out: Path,
    config: TokenizeConfig,
    given: Path | None,
    subjects: Sequence[str],
    summary: StageSummary,
) -> Tokenizer:
    """The tokenizer of this run: the given one, the one already in `out`, or a new fit."""
    folder = out / TOKENIZER_FOLDER
    present = load_tokenizer(folder) if (folder / TOKENIZER_JSON).is_file() else None
    if given is not None:
        source = bundled_tokenizer_dir() if str(given) == BUNDLED else given
        loaded = load_tokenizer(source)
        if present is not None and present.info.sha256 != loaded.info.sha256:
            raise FmrisynthError(
                f"{out}: holds latents of another tokenizer than {given}; choose another output folder."
            )
        if present is None:
            loaded.save(folder)
        summary.lines.append(f"Used the {loaded.info.kind} tokenizer {given}.")
        return loaded
    if present is not None:
        _same_settings(out, present.info.provenance.get("config", {}), config)
        summary.lines.append(f"Used the {present.info.kind} tokenizer that was already fitted in {folder}.")
        return present
    blocks, provenance = fitting_blocks(prepared, subjects, config)
    source_blocks = BlockSource(blocks)
    fit_folder = out / FIT_FOLDER
    _guard_fit(fit_folder, out, config)
    loaded = fit_tokenizer(source_blocks, config, folder=fit_folder, provenance=provenance)
    loaded.save(folder)
    summary.lines.append(
        f"Fitted a {loaded.info.kind} tokenizer ({config.normalisation}) to {len(blocks)} blocks of "
        f"{provenance['n_subjects']} subjects (split {provenance['split']})."
    )
    return loaded


def fitting_blocks(
    prepared: Path, subjects: Sequence[str], config: TokenizeConfig
) -> tuple[list[Block], dict[str, Any]]:
    """The blocks a tokenizer is fitted to: the training split, at most `max_fit_blocks`, drawn by seed.

    A dataset without a training split (a single subject, say) gives all its blocks, with a warning.
    """
    blocks: list[Block] = []
    for subject in subjects:
        try:
            blocks += read_subject(prepared, subject)
        except FmrisynthError as error:
            log.warning("left out of the tokenizer's fit: %s", error)
    train = [block for block in blocks if block.split == "train"]
    split = "train"
    if not train:
        log.warning("%s has no training split; the tokenizer is fitted to all its blocks.", prepared)
        train, split = blocks, "all"
    if len(train) > config.max_fit_blocks:
        chosen = np.random.default_rng([config.seed, 0]).permutation(len(train))[: config.max_fit_blocks]
        train = [train[i] for i in np.sort(chosen)]
    provenance = {
        "split": split,
        "n_blocks": len(train),
        "n_subjects": len({block.subject for block in train}),
        "config": _fit_settings(config),
    }
    return train, provenance


def _fit_settings(config: TokenizeConfig) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    settings = {key: content[key] for key in FIT_KEYS}
    settings["fit"] = {k: v for k, v in content["fit"].items() if k not in OPERATIONAL_KEYS}
    if config.model.kind != "vqgan":
        del settings["fit"]
    return settings


def _same_settings(out: Path, before: dict[str, Any], config: TokenizeConfig) -> None:
    """Refuse to continue a fit with other settings, and name the first that differs."""
    now = _fit_settings(config)
    for key, value in _flatten(now).items():
        old = _flatten(before).get(key, "nothing")
        if old != value:
            raise UsageError(
                f"{out}: its tokenizer was fitted with {key} = {old}, now it is {value}; use the same settings, give "
                "--tokenizer, or choose another output folder."
            )


def _guard_fit(fit_folder: Path, out: Path, config: TokenizeConfig) -> None:
    """Remember the settings of a fit when it starts; check them when it continues."""
    path = fit_folder / "settings.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FmrisynthError(
                f"{path}: cannot be read ({error}); delete {fit_folder} to start the fit again."
            ) from None
        _same_settings(out, before, config)
    else:
        write_json(path, _fit_settings(config))


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
