"""Draw latents from a trained denoiser, one random generator per sample seed.

A sample depends on the model, its labels, its seed and the sampler's settings, and on nothing else. On a
CPU every sample is advanced alone, because matrix products and convolutions round differently for
different batch sizes. On a GPU the samples advance in groups of fixed size (``GPU_GROUP``), the last one
padded, for the same reason.

Axis legend: B batch of samples, A attributes, C latent channels, T frames, F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fmrisynth.data.attributes import Vocabulary, encode_asked, nulls
from fmrisynth.diffusion.guidance import guided
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.samplers import check_sampler, sample
from fmrisynth.errors import UsageError

GPU_GROUP = 8


class LatentModel(Protocol):
    """What drawing samples needs to know about a trained model (see ``models.checkpoint``)."""

    @property
    def network(self) -> Any: ...
    @property
    def objective(self) -> Mapping[str, Any]: ...
    @property
    def labels(self) -> Vocabulary: ...
    @property
    def always(self) -> Sequence[str]: ...
    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]: ...
    @property
    def latent_mean_C(self) -> Tensor: ...
    @property
    def latent_std_C(self) -> Tensor: ...
    @property
    def whitening(self) -> Any: ...  # None, or what has the method `undo`


def encode_labels(
    vocabulary: Vocabulary, condition: str, attributes: Mapping[str, str] | None = None, always: Sequence[str] = ()
) -> Tensor:
    """Turn what is asked for into the network's input; attributes not named become "null".

    Parameters
    ----------
    vocabulary : Vocabulary
        Attribute -> what it may be, ``condition`` first.
    condition : str
        Task condition.
    attributes : mapping, optional
        Further attribute -> label or number.
    always : sequence of str
        Attributes that have to be named.

    Returns
    -------
    Tensor of shape (A,), int64, or float32 with numbers

    Raises
    ------
    UsageError
        Unknown name, the message offers the nearest one; or one that has to be named is missing.
    """
    asked = {"condition": condition, **(attributes or {})}
    found = torch.tensor(encode_asked(vocabulary, asked))
    missing = [name for name in always if name not in asked]
    if missing:
        raise UsageError(
            f"This model was always told the {' and '.join(missing)} in training: say it, as in --set {missing[0]}=VALUE."
        )
    return found


def guidance_scales(vocabulary: Vocabulary, guidance: float | Mapping[str, float]) -> list[float]:
    """One scale per attribute: a number is for all of them, a mapping leaves the others at 1."""
    if isinstance(guidance, Mapping):
        for name in guidance:
            if name not in vocabulary:
                raise UsageError(f"Guidance for {name!r}: this model's attributes are {', '.join(vocabulary)}.")
        return [float(guidance.get(name, 1.0)) for name in vocabulary]
    return [float(guidance)] * len(vocabulary)


def generate_latents(
    model: LatentModel,
    condition: str,
    attributes: Mapping[str, str] | None = None,
    *,
    seeds: Sequence[int],
    sampler: str = "ab2",
    n_steps: int = 20,
    guidance: float | Mapping[str, float] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    eta: float = 0.0,
    device: str | torch.device = "cpu",
    group: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw one latent block per seed, in the units of the tokenizer.

    Parameters
    ----------
    model : LatentModel
        A loaded denoiser; its network is moved to ``device``.
    condition : str
        Task condition.
    attributes : mapping, optional
        Further attribute -> label or number; those left out are "null".
    seeds : sequence of int
        One seed per sample. A sample is the same whatever other seeds stand beside it.
    sampler : {"ab2", "ddpm", "ddim", "euler"}
    n_steps : int
        Sampler steps.
    guidance : float or mapping
        Guidance scale, for all attributes or by name; 1 is conditional sampling, 0 unconditional.
    guidance_interval : (float, float), optional
        Network times (0 clean to 1000 noise) between which to guide.
    eta : float
        Fresh noise of DDIM.
    device : str or torch.device
    group : int, optional
        Samples advanced together; default 1 on a CPU and ``GPU_GROUP`` on a GPU. More on a CPU is faster per sample, and a
        sample then differs in its last bits from the one that is made alone.
    on_step : callable, optional
        Called with the number of samples advanced by one sampler step.

    Returns
    -------
    Tensor of shape (B, C, T, X, Y, Z), float32, on the CPU
    """
    labels_A = encode_labels(model.labels, condition, attributes, model.always)
    if model.objective.get("prediction") == "bridge":
        raise UsageError(
            "This model forecasts how a person will look, it draws nobody: use `fmrisynth sample --from DATASET`."
        )
    drawing = Drawing(
        model, labels_A, sampler=sampler, n_steps=n_steps, guidance=guidance, guidance_interval=guidance_interval, eta=eta,
        device=torch.device(device), on_step=on_step,
    )  # fmt: skip
    group = group or drawing.group
    parts = [drawing.draw(seeds[start : start + group], fill=group) for start in range(0, len(seeds), group)]
    n_channels, n_frames, *grid = model.latent_shape
    stack_BFXYZ = torch.cat(parts) if parts else torch.empty(0, n_channels * n_frames, *grid)
    return drawing.raw(drawing.standardised(stack_BFXYZ))


class Drawing:
    """Draws stacks of one set of labels from a model; see `generate_latents` for the parameters."""

    def __init__(
        self,
        model: LatentModel,
        labels_A: Tensor,
        *,
        sampler: str,
        n_steps: int,
        guidance: float | Mapping[str, float],
        guidance_interval: tuple[float, float] | None,
        eta: float,
        device: torch.device,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.labels_A = model, labels_A
        self.objective = Objective(**model.objective)
        check_sampler(sampler, self.objective)
        self.guidance_A, self.interval = guidance_scales(model.labels, guidance), guidance_interval
        # What training never withheld is told in every branch of the guidance.
        kept_A = torch.tensor([name in model.always for name in model.labels])
        self.null_A = torch.where(kept_A, labels_A, torch.tensor(nulls(model.labels)))
        self.sampler, self.n_steps, self.eta, self.device, self.on_step = sampler, n_steps, eta, device, on_step
        self.network = model.network.to(device)
        n_channels, n_frames, *grid = model.latent_shape
        self.shape = (n_channels * n_frames, *grid)
        brain_XYZ = torch.ones(grid, dtype=torch.bool) if self.network.brain_XYZ is None else self.network.brain_XYZ
        self.brain_XYZ = brain_XYZ.to(device)  # cells without brain hold 0 all the way

    @property
    def group(self) -> int:
        """Samples to advance together."""
        return 1 if self.device.type == "cpu" else GPU_GROUP

    @torch.inference_mode()
    def draw(
        self, seeds: Sequence[int], told: Sequence[Tensor] = (), *, fill: int, start_BFXYZ: Tensor | None = None
    ) -> Tensor:
        """Draw stacks as the network makes them, (B, F, X, Y, Z) float32 on the CPU, one per seed.

        Parameters
        ----------
        seeds : sequence of int
        told : sequence of Tensor
            Further inputs of the network, one row per seed.
        fill : int
            The group is filled with copies up to this number, so that every evaluation has the same batch size.
        start_BFXYZ : Tensor, optional
            Where a bridge starts, one stack per seed (see `stack`); default: noise.
        """
        rows = [*range(len(seeds)), *[len(seeds) - 1] * (fill - len(seeds))]
        generators = [torch.Generator().manual_seed(seeds[row]) for row in rows]
        told = [part[rows].to(self.device) for part in told]

        def draw_noise() -> Tensor:
            noise = torch.stack([torch.randn(self.shape, generator=g) for g in generators])
            return noise.to(self.device) * self.brain_XYZ

        def network(noisy: Tensor, time_B: Tensor, labels_BA: Tensor) -> Tensor:
            n_branches = len(noisy) // len(rows)
            return self.network(
                noisy, time_B, labels_BA, *(part.repeat(n_branches, *[1] * (part.ndim - 1)) for part in told)
            )

        labels_BA = self.labels_A.expand(len(rows), -1).to(self.device)
        predict = guided(network, labels_BA, self.null_A.to(self.device), self.guidance_A, interval=self.interval)

        def denoise(x: Tensor, time_B: Tensor) -> Tensor:
            output = predict(x, self.objective.path.network_time(time_B).to(x.device, torch.float32))
            return self.objective.answer(output, x, time_B)

        def advance(_step: int, _x: Tensor) -> None:
            if self.on_step is not None:
                self.on_step(len(seeds))

        stack_BFXYZ = sample(
            self.sampler,
            denoise,
            draw_noise() if start_BFXYZ is None else start_BFXYZ[rows].to(self.device),
            self.objective,
            self.n_steps,
            eta=self.eta,
            draw_noise=draw_noise,
            on_step=advance,
        )
        return stack_BFXYZ[: len(seeds)].float().cpu()

    def stack(self, latent_BCTXYZ: Tensor) -> Tensor:
        """Latents in the units of the tokenizer as the network sees them, (B, F, X, Y, Z): the inverse of `standardised` and `raw`."""
        mean_C11111, std_C11111 = self._statistics()
        stack_BFXYZ = ((latent_BCTXYZ - mean_C11111) / std_C11111).flatten(1, 2)
        if self.model.whitening is not None:
            stack_BFXYZ = self.model.whitening.apply(stack_BFXYZ)
        return stack_BFXYZ * self.brain_XYZ.to(stack_BFXYZ.device)

    def standardised(self, stack_BFXYZ: Tensor) -> Tensor:
        """Standardised latents of stacks, (B, C, T, X, Y, Z)."""
        if self.model.whitening is not None:
            stack_BFXYZ = self.model.whitening.undo(stack_BFXYZ)
        return stack_BFXYZ.unflatten(1, self.model.latent_shape[:2])

    def raw(self, latent_BCTXYZ: Tensor) -> Tensor:
        """Latents in the units of the tokenizer."""
        mean_C11111, std_C11111 = self._statistics()
        return latent_BCTXYZ * std_C11111 + mean_C11111

    def strength(self, latent_BCTXYZ: Tensor) -> Tensor:
        """Standard deviation of latents over frames and brain in units of its training data, each channel and cell in its own, (B,).

        Courses are not whitened: that would make little of a slow pattern, which is what grows.
        """
        mean_C11111, std_C11111 = self._statistics()
        units = (latent_BCTXYZ - mean_C11111) / std_C11111
        if self.model.whitening is not None:
            units = units / self.model.whitening.scale_CXYZ[:, None]
        return units[..., self.brain_XYZ.cpu()].std(dim=(1, 2, 3), correction=0)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean_C, std_C = self.model.latent_mean_C, self.model.latent_std_C
        return mean_C.reshape(-1, 1, 1, 1, 1), std_C.reshape(-1, 1, 1, 1, 1)
