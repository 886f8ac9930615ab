"""A model in memory, and the samples that it draws.

Axis legend: N samples; X, Y, Z voxel axes; T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from fmrisynth.api.commands import settings_of
from fmrisynth.api.results import BlockResult, shown
from fmrisynth.bids.origin import Origin
from fmrisynth.config.sample import SampleConfig
from fmrisynth.data.blocks import BlockData
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import as_nibabel
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.bundled import BUNDLED, bundled_model_dir
from fmrisynth.models.checkpoint import LoadedDenoiser
from fmrisynth.models.device import pick_device
from fmrisynth.models.tokenizers import Tokenizer
from fmrisynth.progress import count, progress_bar
from fmrisynth.report.landing import write_index
from fmrisynth.sample.drawer import Drawer, check_kind, load_model
from fmrisynth.sample.plan import SampleRequest
from fmrisynth.sample.preview import make_scene, preview_figure, title_of
from fmrisynth.sample.run import save_samples

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def load(model: str | Path = BUNDLED) -> Model:
    """Load a model: the bundled one, a model directory, or the output of `train` (its newest checkpoint).

    Parameters
    ----------
    model : str or Path, default "bundled"
        A folder, or the word ``bundled``.

    Raises
    ------
    FmrisynthError
        Missing, damaged or incompatible files.

    Examples
    --------
    >>> import fmrisynth as fs
    >>> fs.load().conditions[:2]
    ('emotion_fear', 'gambling_loss')
    """
    return Model(*load_model(None if str(model) == BUNDLED else Path(model).expanduser()))


@dataclass(frozen=True)
class Model:
    """A trained model with its tokenizer; see `load`.

    Attributes
    ----------
    denoiser : LoadedDenoiser
        Network, card and labels.
    tokenizer : Tokenizer
        Decodes latents to volumes.
    """

    denoiser: LoadedDenoiser
    tokenizer: Tokenizer

    @property
    def conditions(self) -> tuple[str, ...]:
        """Task conditions that the model knows."""
        return self.denoiser.conditions

    @property
    def origin(self) -> Origin:
        """What its samples are, and what it was trained on."""
        return self.denoiser.card.origin

    @property
    def path(self) -> Path:
        """The model directory."""
        return self.denoiser.path

    def __repr__(self) -> str:
        name = BUNDLED if self.path == bundled_model_dir() else str(self.path)
        info = self.tokenizer.info
        return (
            f"<fmrisynth model {name}: {len(self.conditions)} conditions, {' x '.join(map(str, info.grid.shape))} voxels of "
            f"{info.grid.voxel_mm[0]:g} mm, {info.n_frames} frames of {info.tr_s:g} s. {self.origin.statement}>"
        )

    def sample(self, condition: str | Sequence[str], n: int = 1, *, seed: int = 0, **settings: Any) -> Samples:
        """Draw samples; the same ones that the command line writes for this seed.

        Parameters
        ----------
        condition : str or sequence of str
            One condition or several, out of `conditions`.
        n : int, default 1
            Samples per condition. All are held in memory; `fmrisynth.sample` writes any number to disk.
        seed : int, default 0
            A sample depends on the seed, the condition and its own number alone.
        **settings
            Any setting of ``fmrisynth sample``: ``guidance``, ``steps``, ``sampler``, ``attributes``, ``device``, ...

        Raises
        ------
        UsageError
            A condition that the model does not know, or a setting that does not exist.
        FmrisynthError
            The samples do not fit into memory.
        """
        conditions = [condition] if isinstance(condition, str) else list(condition)
        config = settings_of(SampleConfig, "sample", {**settings, "conditions": conditions, "n": n, "seed": seed})
        check_kind(config, self.denoiser)
        drawer = Drawer(config, self.denoiser, self.tokenizer)
        requests = drawer.requests(config)
        info = self.tokenizer.info
        device = pick_device(config.device)
        self.tokenizer.to(device)
        try:
            bold = np.empty((len(requests), *info.grid.shape, info.n_frames), np.float32)
        except MemoryError:
            raise FmrisynthError(
                f"{len(requests)} samples do not fit into memory; ask for fewer, or write them to disk with fmrisynth.sample."
            ) from None
        with progress_bar("sampling", len(requests)) as bar:
            for number, (request, bold_XYZT) in enumerate(drawer.draw(requests, device)):
                bold[number] = np.where(info.mask_XYZ[..., None], bold_XYZT, 0.0)
                bar.update(1, note=request.condition.label)
        return Samples(bold, tuple(requests), drawer)


@dataclass(frozen=True)
class Samples:
    """Samples in memory.

    Attributes
    ----------
    bold : array of shape (N, X, Y, Z, T), float32
        BOLD-like intensities (grand mean 10,000), 0 outside the mask.
    requests : tuple of SampleRequest
        Condition, number and seed of each sample.
    drawer : Drawer
        Model and settings that drew them.
    """

    bold: np.ndarray
    requests: tuple[SampleRequest, ...]
    drawer: Drawer = field(repr=False)

    def __len__(self) -> int:
        return len(self.requests)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.bold.shape[1:]))
        return f"<{len(self)} samples of {', '.join(dict.fromkeys(self.conditions))}: {shape}. {self.origin.statement}>"

    @property
    def origin(self) -> Origin:
        """What the samples are."""
        return self.drawer.model.card.origin

    @property
    def conditions(self) -> list[str]:
        """Condition of each sample."""
        return [request.condition.label for request in self.requests]

    @property
    def tr_s(self) -> float:
        """Time between frames, seconds."""
        return self.drawer.tokenizer.info.tr_s

    @property
    def grid(self) -> Grid:
        """Shape, affine (mm) and space of the volumes."""
        return self.drawer.tokenizer.info.grid

    @property
    def mask(self) -> np.ndarray:
        """Brain voxels, bool (X, Y, Z)."""
        return self.drawer.tokenizer.info.mask_XYZ

    @property
    def mask_image(self) -> nib.Nifti1Image:
        """The mask for nilearn."""
        return as_nibabel(self.mask, self.grid.affine, mni=not self.grid.is_native)

    @property
    def images(self) -> list[nib.Nifti1Image]:
        """The samples for nilearn, with affine and repetition time; no copy of the voxels."""
        mni = not self.grid.is_native
        return [as_nibabel(bold, self.grid.affine, tr_s=self.tr_s, mni=mni) for bold in self.bold]

    @property
    def events(self) -> list[pd.DataFrame]:
        """The block of each sample: onset and duration (s), trial type; what nilearn's `FirstLevelModel.fit` takes."""
        import pandas as pd

        rows = [(*self.drawer.timing(request), request.condition.label) for request in self.requests]
        return [pd.DataFrame([row], columns=["onset", "duration", "trial_type"]) for row in rows]

    def to_frame(self) -> pd.DataFrame:
        """One row per sample: subject label on disk, condition, seed, onset and duration (s)."""
        import pandas as pd

        columns = ["subject", "condition", "seed", "onset_s", "duration_s"]
        rows = [(r.subject, r.condition.label, r.seed, *self.drawer.timing(r)) for r in self.requests]
        return pd.DataFrame(rows, columns=columns)

    def plot(self, number: int = 0) -> Figure:
        """One sample over time, where its effect is largest."""
        info, request = self.drawer.tokenizer.info, self.requests[number]
        data = BlockData(self.bold[number], info.reference_XYZ, info.mask_XYZ)
        scene = make_scene(data, self.grid, self.tr_s, *self.drawer.timing(request))
        title = title_of(f"{request.condition.label}, sample {number + 1} of {len(self)}", self.origin)
        return shown(preview_figure(scene, title))

    def save(self, out: str | Path, *, force: bool = False) -> BlockResult:
        """Write the samples as a block dataset (BIDS derivative): the bytes that ``fmrisynth sample`` writes."""
        out = Path(out).expanduser()
        save_samples(out, self.drawer, dict(zip(self.requests, self.bold, strict=True)), force=force)
        write_index(out)
        return BlockResult(out, [f"{count(len(self), 'sample')} in {out}.", self.origin.statement])
