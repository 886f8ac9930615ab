"""Which model draws samples, with which settings: a `Drawer` makes latents and volumes of them, a bounded number at a time.

Axis legend: B batch of samples; C latent channels; T frames; X, Y, Z voxel or latent axes.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.train import network_name
from fmrisynth.data.occupancy import read_descriptors
from fmrisynth.diffusion.generate import encode_labels, generate_latents, guidance_scales
from fmrisynth.errors import FmrisynthError, UsageError, must_exist
from fmrisynth.models.bundled import model_dir
from fmrisynth.models.checkpoint import CARD_NAME, LoadedDenoiser, load_denoiser
from fmrisynth.models.device import usable_cores
from fmrisynth.models.tokenizers import Tokenizer, TokenizerInfo, load_tokenizer
from fmrisynth.sample.anatomy import MEAN, Anatomies, AnatomiesOfPeople, Anatomy, DrawnAnatomies
from fmrisynth.sample.plan import SampleRequest, make_requests

A = TypeVar("A")
B = TypeVar("B")

DEFAULT_STEPS = 20


def load_model(checkpoint: Path | None) -> tuple[LoadedDenoiser, Tokenizer]:
    """Load a denoiser and the tokenizer that belongs to it, and check that they fit together."""
    model = load_denoiser(model_dir(checkpoint))
    if model.tokenizer is None:
        raise FmrisynthError(
            f"{model.path}: the model has no tokenizer/ folder beside it; copy the one it was trained with there."
        )
    tokenizer = load_tokenizer(model.tokenizer)
    channels, _, *cells = model.latent_shape
    if (channels, *cells) != tokenizer.info.latent_shape:
        raise FmrisynthError(
            f"{model.path}: the model makes latents of {channels} channels on {cells} cells, its tokenizer decodes "
            f"{tokenizer.info.latent_shape}; use the tokenizer that the model was trained with."
        )
    return model, tokenizer


def make_drawer(config: SampleConfig, checkpoint: Path | None) -> Drawer:
    model, tokenizer = load_model(checkpoint)
    check_kind(config, model)
    return Drawer(config, tell_descriptors(model, config), tokenizer)


def check_kind(config: SampleConfig, model: LoadedDenoiser) -> None:
    """Refuse to ask a model of blocks for runs, a model of runs for blocks, or for guidance by what it does not know.

    Raises
    ------
    UsageError
        With what to ask for instead.
    """
    guidance_scales(model.labels, config.guidance)
    for path in config.events:
        must_exist(path, "an events.tsv, or a folder of them")
    if config.events and model.event_telling is None:
        raise UsageError(
            f"{model.path}: this model makes blocks of one condition; for --events give one that was trained on whole runs "
            "(`fmrisynth train --preset runs`)."
        )
    if (config.baselines is not None) != model.forecasts:
        raise UsageError(
            f"{model.path}: this model forecasts how people will look; say of whom with --from DATASET (in Python: baselines=DATASET)."
            if model.forecasts
            else f"{model.path}: this model makes no forecasts; for --from give one of `fmrisynth train --preset forecast`."
        )
    if not config.events and model.event_telling is not None:
        raise UsageError(
            f"{model.path}: this model makes whole runs; say with --events FILE (in Python: fmrisynth.sample(out, events=[FILE])) what "
            "happens in them."
        )


def tell_descriptors(model: LoadedDenoiser, config: SampleConfig) -> LoadedDenoiser:
    """The model with the user's conditions in place of those it was trained on, where it listens to descriptors.

    Raises
    ------
    UsageError
        The model does not listen to descriptors, or to other ones.
    """
    if config.descriptors is None:
        return model
    known = None if model.event_telling is None else model.event_telling.descriptors
    if known is None:
        raise UsageError(
            f"{model.path}: this model was trained on the names of conditions; --descriptors needs one trained on descriptors."
        )
    table = read_descriptors(config.descriptors)
    width = len(next(iter(table.values())))
    if width != len(known[0]):
        raise FmrisynthError(
            f"{config.descriptors}: expected {len(known[0])} numbers per condition, as the model was trained on, found {width}."
        )
    model.network.condition.descriptors_KD = torch.tensor(list(table.values()))  # type: ignore[union-attr]
    return replace(model, labels={**model.labels, "condition": list(table)})


def _settings(config: SampleConfig, model: LoadedDenoiser, tokenizer: Tokenizer) -> dict[str, Any]:
    """What determines the voxels besides the seed; goes into every sidecar."""
    sampler = config.sampler
    full = int(model.objective.get("n_train_steps", 1000))
    settings: dict[str, Any] = {
        "Sampler": sampler,
        "SamplerSteps": config.steps or (full if sampler == "ddpm" else DEFAULT_STEPS),
        "Eta": config.eta,
        "GuidanceScale": config.guidance,
        "GuidanceInterval": list(config.guidance_interval) if config.guidance_interval else None,
        "Attributes": dict(sorted(config.attributes.items())),
        "ObservationNoise": config.observation_noise and tokenizer.info.noise is not None,
        "CheckpointSHA256": model.sha256,
        "TokenizerSHA256": tokenizer.info.sha256,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    settings["ConfigHash"] = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return settings


class Drawer:
    """Draws and decodes samples, a bounded number at a time.

    On a CPU every sample is made by one worker thread with one arithmetic thread, because sums round differently
    for other batch sizes and thread counts; the workers, one per core, run side by side. On a GPU samples are drawn in
    batches.

    Attributes
    ----------
    config : SampleConfig
    model : LoadedDenoiser
    tokenizer : Tokenizer
    settings : dict
        What determines the voxels besides the seed and the anatomy.
    anatomies : Anatomies
        How the people look.
    """

    def __init__(self, config: SampleConfig, model: LoadedDenoiser, tokenizer: Tokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.anatomies = _anatomies(config, model, tokenizer.info)
        if config.report and self.makes_anatomies:
            raise UsageError(f"{model.path}: this model makes anatomies; leave --report out, it is about activity.")
        self.settings = _settings(config, model, tokenizer)

    @property
    def makes_anatomies(self) -> bool:
        """Whether a sample is how somebody looks, not what somebody does."""
        return self.tokenizer.info.normalisation == "relative"

    @property
    def network(self) -> str:
        """Kind and size of the network, for people."""
        n = sum(p.numel() for p in self.model.network.parameters())
        return f"{network_name(self.model.card.model)}, {n / 1e6:.1f} M parameters"

    def draw(
        self, requests: Sequence[SampleRequest], device: torch.device
    ) -> Iterator[tuple[SampleRequest, np.ndarray]]:
        """Samples with their volumes, float32 (X, Y, Z, T), in order."""
        if device.type == "cpu":
            yield from self.side_by_side(lambda request: (request, self.volumes(request)), requests)
        else:
            for batch in self.batches(requests, device):
                yield from ((request, self.volumes(request, latent)) for request, latent in batch)

    def side_by_side(self, work: Callable[[A], B], requests: Iterable[A]) -> Iterator[B]:
        """Do something with each request on the cores of this machine; results in order."""
        n_workers = max(1, min(self.config.batch_size, usable_cores()))
        one_thread = ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,))
        with threadpool_limits(1, user_api="blas"), one_thread as pool:  # PyTorch's sums, and NumPy's
            yield from in_order(pool, work, requests, ahead=n_workers + 1)

    def batches(
        self, requests: Sequence[SampleRequest], device: torch.device
    ) -> Iterator[list[tuple[SampleRequest, torch.Tensor]]]:
        """Latents, batch by batch."""
        for batch in _batches(requests, self.config.batch_size):
            yield list(zip(batch, self.latents(batch, device), strict=True))

    def latents(self, batch: Sequence[SampleRequest], device: torch.device) -> torch.Tensor:
        """Draw the latents of some samples of one condition and with the same attributes."""
        return generate_latents(
            self.model,
            batch[0].condition.label,
            self.told(batch[0].attributes),
            seeds=[request.seed for request in batch],
            sampler=self.settings["Sampler"],
            n_steps=self.settings["SamplerSteps"],
            guidance=self.config.guidance,
            guidance_interval=self.config.guidance_interval,
            eta=self.config.eta,
            device=device,
        )

    def check_attributes(self, requests: Sequence[SampleRequest]) -> None:
        """Refuse attributes that neither the model nor the anatomies know, before anything is begun.

        Raises
        ------
        UsageError
        """
        for attributes in dict.fromkeys(request.attributes for request in requests):
            encode_labels(self.model.labels, self.model.conditions[0], self.told(attributes), self.model.always)
            self.anatomies.check(dict(attributes))

    def requests(self, config: SampleConfig) -> list[SampleRequest]:
        """As `make_requests`, for this model and these anatomies."""
        return make_requests(
            config, self.model.conditions, [n for n in (*self.model.labels, *self.anatomies.known) if n != "condition"]
        )

    def told(self, attributes: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Those attributes that the model is told: all but what the anatomies alone depend on."""
        elsewhere = set(self.anatomies.known) - set(self.model.labels)
        return {name: value for name, value in attributes if name not in elsewhere}

    def volumes(
        self, request: SampleRequest, latent_CTXYZ: torch.Tensor | None = None, anatomy: Anatomy | None = None
    ) -> np.ndarray:
        """Volumes of one sample, (X, Y, Z, T) float32; latents that are not given are drawn on the CPU."""
        latent = self.latents([request], torch.device("cpu"))[0] if latent_CTXYZ is None else latent_CTXYZ
        noise_seeds = [request.seed] if self.config.observation_noise else None
        anatomy = self.anatomies.load(request, dict(request.attributes)) if anatomy is None else anatomy
        return next(
            self.tokenizer.decode_blocks(
                latent[None], reference_XYZ=anatomy.reference_XYZ, mask_XYZ=anatomy.mask_XYZ, noise_seeds=noise_seeds
            )
        )

    def timing(self, request: SampleRequest) -> tuple[float, float]:
        """Onset after the first frame and duration of the block, seconds: the median of the training blocks."""
        info = self.tokenizer.info
        found = self.model.card.trained_on.get("timing", {}).get(request.condition.label, {})
        return found.get("onset_s", 0.0), found.get("duration_s", info.tr_s * info.n_frames)


def _anatomies(config: SampleConfig, model: LoadedDenoiser, info: TokenizerInfo) -> Anatomies:
    found = config.anatomy or model.anatomy
    if found is None or (str(found) == MEAN and not found.exists()):
        return Anatomies(info)
    if (found / CARD_NAME).is_file() or (found / "checkpoints").is_dir():
        return DrawnAnatomies(*load_model(found), info, config.seed)
    return AnatomiesOfPeople(found, info)


def in_order(pool: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A], *, ahead: int) -> Iterator[B]:
    """Map in order with at most `ahead` items under way or waiting, so that memory stays flat."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        while len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(requests: Sequence[SampleRequest], size: int) -> Iterator[list[SampleRequest]]:
    for _, group in groupby(requests, key=lambda request: (request.condition.label, request.attributes)):
        same = list(group)
        for start in range(0, len(same), size):
            yield same[start : start + size]
