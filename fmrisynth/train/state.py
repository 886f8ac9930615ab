"""Checkpoints: atomic, resumable to the last bit, safetensors and JSON only.

A checkpoint folder is written under a temporary name and renamed when it is complete. It is also a model
directory (``models.checkpoint``): ``checkpoint.json`` and ``ema.safetensors`` are all that sampling needs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fmrisynth.bids.atomic import apply_umask, remove_temporaries, sync_to_disk, write_json
from fmrisynth.bids.provenance import sha256_of
from fmrisynth.config.run import OPERATIONAL, RunConfig
from fmrisynth.errors import FmrisynthError, UsageError, is_out_of_memory
from fmrisynth.models.checkpoint import (
    CARD_NAME,
    EMA_NAME,
    list_checkpoints,
    load_tensors,
)
from fmrisynth.models.distributed import World
from fmrisynth.progress import log
from fmrisynth.stage import flat_settings
from fmrisynth.train.ema import Ema

Card = Any
"""A frozen dataclass with ``weights_sha256``: what ``checkpoint.json`` says of a model (`models.checkpoint.ModelCard`)."""
CardReader = Callable[[Path], Card]

STATE_NAME = "state.json"
MODEL_NAME = "model.safetensors"
OPTIMISER_NAME = "optimizer.safetensors"
BEST_NAME = "best"


@dataclass
class Progress:
    """What a run remembers beside its tensors.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    ema_updates : int
    best_score : float or None
        Of the model in ``best/``: its share of the gain that is attainable from the right label, or its negative loss.
    best_step : int or None
    precision : {"fp32", "bf16"}
        What the run computes in, chosen when it began.
    hours, cpu_hours : float
        Training time so far, over all calls: by the clock, and of this rank's processors.
    window : dict
        Sums since the last log record.
    """

    step: int = 0
    ema_updates: int = 0
    best_score: float | None = None
    best_step: int | None = None
    precision: str = "fp32"
    hours: float = 0.0
    cpu_hours: float = 0.0
    window: dict[str, Any] = field(default_factory=dict)


def full(tensor: Tensor) -> Tensor:
    """A whole tensor on the CPU, gathered if it is sharded (all ranks must call)."""
    tensor = tensor.detach()
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.cpu().contiguous()


def like(source: Tensor, target: Tensor) -> Tensor:
    """Put a whole CPU tensor where ``target`` lives, sharded the same way."""
    if isinstance(target, DTensor):
        return distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
    return source.to(target.device)


@dataclass
class Run:
    """Everything that changes during training."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    ema: Ema
    progress: Progress

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by name, in the optimiser's order."""
        return dict(self.network.named_parameters())

    def ema_tensors(self) -> dict[str, Tensor]:
        """Averaged weights, whole, and the network's stored buffers: its state for sampling."""
        state = {name: full(tensor) for name, tensor in self.network.state_dict().items()}
        return state | {name: full(tensor) for name, tensor in self.ema.shadow.items()}


def save_checkpoint(
    run: Run,
    out: Path,
    card: Card,
    extra: Mapping[str, Tensor],
    config: RunConfig,
    data_digest: str,
    world: World,
) -> Path:
    """Write ``checkpoints/step-NNNNNNNN`` with the ``extra`` tensors beside the average; every rank must call, the first one writes."""
    model = {name: full(p) for name, p in run.named_parameters().items()}
    averaged = run.ema_tensors()
    moments: dict[str, Tensor] = {}
    for name, parameter in run.named_parameters().items():
        for key, value in run.optimiser.state[parameter].items():
            moments[f"{name}/{key}"] = full(value)
    folder = out / "checkpoints" / f"step-{run.progress.step:08d}"
    if world.is_main:
        run.progress.ema_updates = run.ema.n_updates
        temporary = _empty(folder.with_name(f".{folder.name}.part"))
        with _disk_errors(folder, temporary):
            save_file(model, temporary / MODEL_NAME)
            save_file(moments, temporary / OPTIMISER_NAME)
            write_json(
                temporary / STATE_NAME,
                {
                    "progress": asdict(run.progress),
                    "config": config.model_dump(mode="json"),
                    "data_digest": data_digest,
                    "files": {name: sha256_of(temporary / name) for name in (MODEL_NAME, OPTIMISER_NAME)},
                    "n_ranks": world.size,
                    "torch": torch.__version__,
                },
            )
            _write_model_files(temporary, card, averaged | dict(extra))
            _sync(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        _prune(out, config.keep_last)
    world.barrier()
    return folder


def damage(folder: Path, read_card: CardReader) -> str | None:
    """What is gone or damaged in a checkpoint, in words; None where it is whole.

    Checkpoints of earlier versions have no digests; of those only missing files are seen.
    """
    try:
        return model_damage(folder, read_card) or _changed(
            folder, read_state(folder).get("files", {}), (MODEL_NAME, OPTIMISER_NAME)
        )
    except FmrisynthError as error:
        return str(error)


def model_damage(folder: Path, read_card: CardReader) -> str | None:
    """The same for a model directory: `damage` without what only training needs."""
    try:
        gone = _changed(folder, {}, (CARD_NAME, EMA_NAME))
        return gone or _changed(folder, {EMA_NAME: read_card(folder).weights_sha256}, (EMA_NAME,))
    except FmrisynthError as error:
        return str(error)


def _changed(folder: Path, digests: Mapping[str, str], names: Sequence[str]) -> str | None:
    for name in names:
        path = folder / name
        if not path.is_file():
            return f"{path} is gone"
        try:
            if digests.get(name) and sha256_of(path) != digests[name]:
                return f"{path} is damaged"
        except OSError as error:
            raise FmrisynthError(f"{path}: cannot be read ({error.strerror}); check the permissions.") from None
    return None


def step_folders(out: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def mend_best(out: Path, progress: Progress, read_card: CardReader) -> str | None:
    """Make ``best/`` again from its step's checkpoint where it is gone or damaged; returns why that cannot be."""
    best = out / BEST_NAME
    why = model_damage(best, read_card) if progress.best_step is not None else None
    if why is None:
        return None
    source = out / "checkpoints" / f"step-{progress.best_step:08d}"
    if model_damage(source, read_card) is None:
        with _replaced(best, out) as temporary:
            for name in (EMA_NAME, CARD_NAME):
                shutil.copyfile(source / name, temporary / name)
        log.warning("%s; it was made again from %s.", why.rstrip("."), source)
        return None
    earlier = [p for p in step_folders(out) if p.name < source.name and damage(p, read_card) is None]
    remedy = "the checkpoints before it are gone; use the newest one, or train anew in another folder"
    if earlier:
        remedy = (
            f"remove the checkpoints after {earlier[-1].name} and call again to train from there, or use the newest one"
        )
    return f"{why.rstrip('.')}; it cannot be made again, because the checkpoint of its step {progress.best_step} is not kept: {remedy}."


def save_best(run: Run, out: Path, card: Card, extra: Mapping[str, Tensor], world: World) -> None:
    """Write the averaged weights to ``best/``, a model directory of its own."""
    averaged = run.ema_tensors()
    if world.is_main:
        with _replaced(out / BEST_NAME, out) as temporary:
            _write_model_files(temporary, card, averaged | dict(extra))
    world.barrier()


@contextmanager
def _replaced(best: Path, out: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``best/``; whenever the machine stops, one of the two is there."""
    old = out / f".{BEST_NAME}.old"
    temporary = _empty(out / f".{BEST_NAME}.part")
    with _disk_errors(best, temporary):
        yield temporary
        _sync(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if best.exists():
            os.replace(best, old)
        os.replace(temporary, best)
        sync_to_disk(out)
        shutil.rmtree(old, ignore_errors=True)


def restore_checkpoint(run: Run, folder: Path) -> None:
    """Load model, optimiser, average and progress from a checkpoint.

    Raises
    ------
    FmrisynthError
        A file is missing or damaged, or its tensors are not those of this model.
    """
    try:
        _restore(run, folder)
    except (FmrisynthError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise FmrisynthError(
            f"{folder}: the run cannot continue from this checkpoint ({error}); remove the folder to continue from the one "
            "before it."
        ) from error


def _restore(run: Run, folder: Path) -> None:
    state = read_state(folder)
    model, moments = load_tensors(folder / MODEL_NAME), load_tensors(folder / OPTIMISER_NAME)
    averaged = load_tensors(folder / EMA_NAME)
    parameters = run.named_parameters()
    optimiser_state: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for i, (name, parameter) in enumerate(parameters.items()):
            parameter.copy_(like(model[name], parameter))
            run.ema.shadow[name].copy_(like(averaged[name], run.ema.shadow[name]))
            keys = [key for key in moments if key.startswith(f"{name}/")]
            optimiser_state[i] = {
                key.rpartition("/")[2]: like(moments[key], parameter) if moments[key].ndim else moments[key]
                for key in keys
            }
    groups = run.optimiser.state_dict()["param_groups"]
    run.optimiser.load_state_dict({"state": optimiser_state, "param_groups": groups})
    run.progress = Progress(**state["progress"])
    run.ema.n_updates = run.progress.ema_updates


def read_state(folder: Path) -> dict[str, Any]:
    """Content of ``state.json``."""
    path = folder / STATE_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FmrisynthError(
            f"{path}: expected the training state of a checkpoint, it cannot be read ({error})."
        ) from None


def check_same_run(folder: Path, config: RunConfig, data_digests: Sequence[str], data: str) -> None:
    """Refuse to continue a run with other settings or other data.

    Settings that an older version did not know have their defaults: that is how it behaved.
    """
    state = read_state(folder)
    try:
        stored = type(config)(**state["config"]).model_dump(mode="json")
    except ValueError:  # a setting that this version does not know: let the comparison name it
        stored = state["config"]
    old, new = flat_settings(stored), flat_settings(config.model_dump(mode="json"))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    free = OPERATIONAL | ({"steps"} if config.optimiser.decay == "constant" else set())
    changed = [key for key in changed if key not in free]
    if changed:
        listing = "; ".join(f"{key}: was {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
        raise UsageError(
            f"{folder.parent.parent}: this run was started with other settings ({listing}); "
            "use the same ones to continue it, or another output folder to start anew."
        )
    if state["data_digest"] not in data_digests:
        raise UsageError(
            f"{folder.parent.parent}: this run was started on other {data}; "
            "restore them to continue it, or use another output folder to start anew."
        )


def tidy(out: Path) -> None:
    """Remove what a killed process left unfinished; only for who holds the run's lock."""
    remove_temporaries(out)
    for leftover in [*(out / "checkpoints").glob(".*.part"), out / f".{BEST_NAME}.part"]:
        shutil.rmtree(leftover, ignore_errors=True)
    old = out / f".{BEST_NAME}.old"
    if old.exists() and not (out / BEST_NAME).exists():
        os.replace(old, out / BEST_NAME)
    shutil.rmtree(old, ignore_errors=True)


def _write_model_files(folder: Path, card: Card, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / EMA_NAME)
    write_json(folder / CARD_NAME, asdict(replace(card, weights_sha256=sha256_of(folder / EMA_NAME))))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    with _disk_errors(folder):
        folder.mkdir(parents=True)
    return folder


def _sync(folder: Path) -> None:
    """Put the files on disk before the rename, so that a crash of the machine cannot leave empty ones."""
    for file in folder.iterdir():
        apply_umask(file)
        sync_to_disk(file)
    sync_to_disk(folder)


def _prune(out: Path, keep_last: int) -> None:
    for old in list_checkpoints(out)[:-keep_last]:
        hidden = old.with_name(f".{old.name}.part")  # a checkpoint is there as a whole or not at all
        os.replace(old, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


class _disk_errors:
    def __init__(self, path: Path, temporary: Path | None = None) -> None:
        self._path, self._temporary = path, temporary

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise FmrisynthError(
                f"{self._path}: could not be written ({error}); free space or fix the permissions, then run the same "
                "command again: it continues from the last complete checkpoint."
            ) from error
