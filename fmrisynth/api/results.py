"""What the commands return in Python: where the output is, what was said, a table and a picture.

Tables and pictures are read from the output folder when they are asked for.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmrisynth.bids.origin import Origin, read_origin
from fmrisynth.errors import FmrisynthError
from fmrisynth.report.html import escape

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result(ABC):
    """The output of a command; each kind has its own table and picture.

    Attributes
    ----------
    out : Path
        The folder.
    lines : list of str
        What the command says at its end.
    failed : dict of str to str
        Participant -> why there is nothing of it.
    """

    out: Path
    lines: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> Origin:
        """What the data are: measured, phantom, or samples of a model."""
        return read_origin(self.out)

    @property
    def reports(self) -> list[Path]:
        """The HTML pages in the folder, sorted."""
        return sorted(self.out.glob("*.html"))

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The result as a table."""

    @abstractmethod
    def plot(self) -> Figure:
        """The result as a picture."""

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{escape(line)}</li>" for line in self.lines)
        said += "".join(f"<li><b>failed</b> {escape(f'{who}: {why}')}</li>" for who, why in self.failed.items())
        return f"<p><b>{type(self).__name__}</b> {escape(str(self.out))}</p><ul>{said}</ul>"


@dataclass(frozen=True)
class BlockResult(Result):
    """A block dataset, as `simulate`, `prepare` and `sample` write it (or a phantom cohort as a tree of runs)."""

    def to_frame(self) -> pd.DataFrame:
        """One row per block: subject, condition, split, onset, duration (s), path of the image."""
        import pandas as pd

        from fmrisynth.data.blocks import read_blocks

        blocks = read_blocks(self.out)
        columns = ("subject", "condition", "split", "onset_s", "duration_s", "tr_s", "n_frames", "path")
        return pd.DataFrame([{name: getattr(block, name) for name in columns} for block in blocks])

    def plot(self, number: int = 0) -> Figure:
        """One block over time, where its effect is largest; `number` is a row of `to_frame`."""
        from fmrisynth.data.blocks import read_blocks
        from fmrisynth.sample.preview import preview_figure, scene_of, title_of

        block = read_blocks(self.out)[number]
        title = title_of(f"sub-{block.subject}: {block.condition}", read_origin(self.out))
        return shown(preview_figure(scene_of(block), title))


@dataclass(frozen=True)
class LatentsResult(Result):
    """Latents and their tokenizer."""

    def to_frame(self) -> pd.DataFrame:
        """One row per block: subject, condition, split, onset, duration (s)."""
        import pandas as pd

        from fmrisynth.data.latents import LatentDataset

        columns = ("subject", "row", "condition", "split", "onset_s", "duration_s", "tr_s", "filename")
        rows = LatentDataset.open(self.out).rows
        return pd.DataFrame([{name: getattr(row, name) for name in columns} for row in rows])

    def plot(self) -> Figure:
        """Mean latents of the first block's channels, a middle slice, over time."""
        from fmrisynth.data.latents import LatentDataset
        from fmrisynth.report.style import new_figure

        dataset = LatentDataset.open(self.out)
        latent_CTXYZ = dataset[0].numpy()
        n_channels, n_frames = latent_CTXYZ.shape[:2]
        figure = new_figure(1.1 * n_frames, 1.3 * n_channels)
        limit = float(np.abs(latent_CTXYZ).max()) or 1.0
        for (channel, frame), axis in np.ndenumerate(figure.subplots(n_channels, n_frames, squeeze=False)):
            middle_XY = latent_CTXYZ[channel, frame, :, :, latent_CTXYZ.shape[4] // 2]
            axis.imshow(middle_XY.T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set_axis_off()
        row = dataset.rows[0]
        figure.suptitle(f"sub-{row.subject}: {row.condition}, latent channels (rows) over time", fontsize=10)
        return shown(figure)


@dataclass(frozen=True)
class TrainingResult(Result):
    """A training run; `fmrisynth.load` takes its folder."""

    def to_frame(self) -> pd.DataFrame:
        """One row per record of the log: ``kind`` (train, val), ``step`` and the numbers of that kind."""
        import pandas as pd

        from fmrisynth.train.runlog import LOG_NAME, read_log

        return pd.DataFrame(read_log(self.out / LOG_NAME))

    def plot(self) -> Figure:
        """Training and validation loss against the step."""
        from fmrisynth.report.style import REAL, SYNTHETIC, new_figure

        table = self.to_frame()
        figure = new_figure(6.4, 3.4)
        axis = figure.subplots()
        for kind, column, colour in (("train", "loss_mean", SYNTHETIC), ("val", "loss", REAL)):
            rows = table[table["kind"] == kind]
            if len(rows):
                axis.plot(rows["step"], rows[column], color=colour, label=kind, marker="o", ms=3)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.legend()
        return shown(figure)


@dataclass(frozen=True)
class FeaturesResult(Result):
    """Features of blocks, one row each."""

    def to_frame(self) -> pd.DataFrame:
        """Participant, file, condition, split and the features of every block."""
        import pandas as pd

        return pd.read_csv(self.out / "features.tsv", sep="\t", dtype={"participant_id": str}, na_values="n/a")

    def plot(self) -> Figure:
        """The blocks in the plane of their first two principal components, coloured by condition."""
        from fmrisynth.report.style import new_figure

        table = self.to_frame()
        values = table.filter(like="feature").to_numpy(float)
        left, singular, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
        figure = new_figure(5.6, 4.4)
        axis = figure.subplots()
        for condition in sorted(table["condition"].unique()):
            chosen = (table["condition"] == condition).to_numpy()
            axis.scatter(*(left[chosen, :2] * singular[:2]).T, s=8, label=condition)
        axis.set_xlabel("component 1")
        axis.set_ylabel("component 2")
        axis.legend(fontsize=7)
        return shown(figure)


@dataclass(frozen=True)
class MapsResult(Result):
    """Subject and group maps."""

    def to_frame(self) -> pd.DataFrame:
        """One row per subject and contrast: blocks or runs, degrees of freedom, peak z and where it is (mm)."""
        import pandas as pd

        from fmrisynth.bids.sidecars import read_tsv

        rows = []
        for path in sorted(self.out.glob("sub-*/sub-*_design.tsv")):
            rows += [{"subject": path.parent.name.removeprefix("sub-")} | row for row in read_tsv(path)]
        table = pd.DataFrame(rows)
        for name in ("n_blocks", "dof", "peak_z", "peak_x", "peak_y", "peak_z_mm"):
            table[name] = pd.to_numeric(table[name], errors="coerce")
        return table

    @property
    def group_maps(self) -> dict[str, Path]:
        """Contrast -> the group's z map."""
        found = sorted((self.out / "group").glob("*_stat-z_statmap.nii.gz"))
        return {path.name.partition("_contrast-")[2].partition("_")[0]: path for path in found}

    def plot(self, threshold: float = 2.3) -> Figure:
        """Group z maps on the glass brain, above `threshold`; of one subject's where there are none of the group."""
        from fmrisynth.data.grid import make_grid
        from fmrisynth.data.nifti import read_image
        from fmrisynth.report.brain import glass_brains

        maps = self.group_maps or {
            path.name.partition("_statmap")[0]: path for path in sorted(self.out.rglob("*_stat-z_statmap.nii.gz"))[:4]
        }
        if not maps:
            raise FmrisynthError(f"{self.out}: expected z maps, found none; see what `failed` says.")
        images = {name: read_image(path, ndim=3) for name, path in maps.items()}
        first = next(iter(images.values()))
        rows = [(f"{name}: z > {threshold:g}, uncorrected", image.scaled()) for name, image in images.items()]
        return shown(glass_brains(rows, make_grid(first.shape, first.affine, "MNI152NLin6Asym"), threshold=threshold))


@dataclass(frozen=True)
class EvaluationResult(Result):
    """A comparison of synthetic with real data."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        return json.loads((self.out / "metrics.json").read_text(encoding="utf-8"))

    def to_frame(self) -> pd.DataFrame:
        """One row per check: real, synthetic, judged value, 95 % interval, rule and answer."""
        import pandas as pd

        rows = []
        for key, check in self.metrics["synthetic"]["checks"].items():
            low, high = check["interval_95"] or (None, None)
            own = {name: check[name] for name in ("title", "real", "synthetic", "value", "rule", "answer")}
            rows.append({"check": key, **own, "low": low, "high": high})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Corr, RSA and Top-1 with intervals, beside as many real blocks and the baselines."""
        from fmrisynth.report.figures import score_figure

        metrics = self.metrics
        cohorts: dict[str, tuple[str, Mapping[str, Any]]] = {"synthetic": ("synthetic", metrics["synthetic"])}
        if metrics.get("control", {}).get("scores"):
            cohorts["as many real blocks"] = ("ceiling", metrics["control"])
        cohorts |= {name: ("baseline", found) for name, found in metrics["baselines"].items()}
        rows = []
        for key, short in (("corr", "Corr"), ("rsa_pearson", "RSA"), ("top1_per_sample", "Top-1")):
            for name, (role, cohort) in cohorts.items():
                score = cohort.get("scores", {}).get(key)
                if score is not None:
                    low, high = score.get("low"), score.get("high")
                    rows.append(
                        {"name": f"{short}, {name}", "value": score["value"], "low": low, "high": high, "role": role}
                    )
        return shown(score_figure(rows, "Scores"))


def shown(figure: Figure) -> Figure:
    """A figure that a notebook shows when it is the value of a cell, whether pyplot is in use or not."""

    def png() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight", facecolor=figure.get_facecolor())
        return buffer.getvalue()

    figure._repr_png_ = png  # type: ignore[attr-defined]
    return figure
