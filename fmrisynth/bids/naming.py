"""The only place that builds names of files.

Names follow BIDS 1.10 derivatives where the standard has a rule, and fitlins / nilearn where it has none
yet (stat maps). Entities are written in BIDS order; values are letters and digits.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fmrisynth.errors import UsageError

ENTITY_ORDER = (
    "sub", "ses", "task", "acq", "dir", "run", "hemi", "space", "res", "seg", "desc", "contrast", "stat",
)  # fmt: skip

IGNORED_PATTERNS = (
    "*.html", "*_boldref.nii.gz", "*_boldref.nii", "*_boldref.json", "*_statmap.nii.gz", "*_statmap.json", "*_timeseries.tsv",
    "*_design.tsv",
    "figures", "group", "logs", "references.bib", "metrics.json", "ground_truth",
    "latents", "glm", "synthetic", "synthetic-glm", "evaluation",
)  # fmt: skip
"""Lines of ``.bidsignore``; folders without a trailing slash, which the schema validator needs."""

RUN_DESC = "preproc"
"""`desc` of whole runs, as in fMRIPrep's output; blocks have their condition there."""

_VALUE = re.compile(r"[0-9A-Za-z+]+")


@dataclass(frozen=True)
class Entities:
    """The entities of a file name; None where absent. Values must be letters and digits.

    Raises
    ------
    UsageError
        If a value could not stand in a BIDS name (which also keeps paths inside the dataset).
    """

    sub: str
    ses: str | None = None
    task: str | None = None
    acq: str | None = None
    dir: str | None = None
    run: int | None = None
    space: str | None = None
    res: str | None = None

    def __post_init__(self) -> None:
        for name in ("sub", "ses", "task", "acq", "dir", "space", "res"):
            value = getattr(self, name)
            if value is not None and not _VALUE.fullmatch(value):
                raise UsageError(f"{name}-{value}: a BIDS entity value may hold letters and digits only.")

    @property
    def folder(self) -> Path:
        """Folder of functional files, relative to the dataset."""
        session = [f"ses-{self.ses}"] if self.ses else []
        return Path(f"sub-{self.sub}", *session, "func")

    def name(self, suffix: str, extension: str, **more: str) -> str:
        """A file name: the entities, `more` entities (``desc="brain"``), suffix and extension."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__} | more
        parts = []
        for key in ENTITY_ORDER:
            value = values.get(key)
            if value is None:
                continue
            text = f"{value:02d}" if key == "run" else str(value)
            if not _VALUE.fullmatch(text):
                raise UsageError(f"{key}-{text}: a BIDS entity value may hold letters and digits only.")
            parts.append(f"{key}-{text}")
        return "_".join([*parts, suffix]) + extension

    def path(self, suffix: str, extension: str, **more: str) -> Path:
        """`name` inside `folder`."""
        return self.folder / self.name(suffix, extension, **more)

    def anatomical_path(self, suffix: str, extension: str, **more: str) -> Path:
        """`name` inside the folder of anatomical files."""
        return self.folder.with_name("anat") / self.name(suffix, extension, **more)

    def without_space(self) -> Entities:
        """The entities of files that have no image grid (events, confounds)."""
        return replace(self, space=None, res=None)


def parse_entities(name: str) -> dict[str, str]:
    """Entity -> value of a BIDS file name, plus ``suffix`` and ``extension``.

    Examples
    --------
    >>> parse_entities("sub-01_task-rest_run-02_bold.nii.gz")["run"]
    '02'
    """
    stem, dot, extension = name.partition(".")
    *pairs, suffix = stem.split("_")
    found = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return found | {"suffix": suffix, "extension": dot + extension}


def image_extension(path: Path) -> str:
    """``.nii`` or ``.nii.gz``, as the path ends."""
    return ".nii" if path.name.endswith(".nii") else ".nii.gz"


def image_sidecar(path: Path) -> Path:
    """The JSON file beside an image."""
    return path.with_name(path.name.removesuffix(image_extension(path)) + ".json")


def block_bold(entities: Entities, desc: str, extension: str = ".nii.gz") -> Path:
    """A block's 4D image."""
    return entities.path("bold", extension, desc=desc)


def block_companion(bold: Path, kind: str) -> Path:
    """A file that belongs to a block, from the block's own path.

    Parameters
    ----------
    bold : Path
        The block's 4D image; the other images have its extension.
    kind : {"sidecar", "reference", "mask", "events"}
        JSON sidecar; temporal mean of the source run; brain mask; events table.
    """
    if kind == "sidecar":
        return image_sidecar(bold)
    extension = image_extension(bold)
    stem = bold.name.removesuffix(f"_bold{extension}")
    parts = stem.split("_")
    plain = "_".join(part for part in parts if not part.startswith("desc-"))
    if kind == "reference":
        return bold.with_name(f"{plain}_boldref{extension}")
    if kind == "mask":
        return bold.with_name(f"{plain}_desc-brain_mask{extension}")
    if kind == "events":
        bare = "_".join(p for p in parts if not p.startswith(("desc-", "space-", "res-")))
        return bold.with_name(f"{bare}_events.tsv")
    raise ValueError(kind)


def subject_scans(subject: str, session: str | None = None) -> Path:
    """The index of a subject's blocks; written last, so its presence means that the subject is whole."""
    return Path(f"sub-{subject}", f"sub-{subject}_scans.tsv")


def unit_record(label: str) -> Path:
    """What a finished unit of work was made from and what it wrote."""
    return Path("logs", "units", f"{label}.json")


def run_label(subject: str, name: str) -> str:
    """Label of a run's unit of work, from the run's path in its dataset."""
    short = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"sub-{subject}_{re.sub(r'[^0-9A-Za-z_+-]', '', name.rpartition('/')[2].partition('.')[0])[:80]}-{short}"


def subject_report(subject: str) -> Path:
    """The HTML report of a participant."""
    return Path(f"sub-{subject}.html")


def subject_pictures(subject: str, desc: str | None = None) -> tuple[Path, Path]:
    """A sample's preview and its time-lapse; of a person who does several blocks, named by the block's ``desc``."""
    stem = f"sub-{subject}" if desc is None else f"sub-{subject}_desc-{desc}"
    return Path("figures", f"{stem}_preview.png"), Path("figures", f"{stem}_timelapse.gif")


def page_figure(page: Path, name: str) -> Path:
    """A figure of an HTML page for publication, relative to the page's folder; `name` may hold any text."""
    return Path("figures", f"{page.stem}_{re.sub(r'[^0-9A-Za-z]+', '-', name).strip('-')}.pdf")


def map_viewer(statmap: Path) -> Path:
    """The interactive viewer of a group map, beside it."""
    return statmap.with_name(statmap.name.removesuffix("_statmap.nii.gz") + "_viewer.html")


def map_clusters(statmap: Path) -> Path:
    """The table of a group map's clusters, beside it."""
    return statmap.with_name(statmap.name.removesuffix("_statmap.nii.gz") + "_clusters.tsv")


def subject_latents(subject: str) -> tuple[Path, Path]:
    """Shard and index of a subject's latents."""
    return Path(f"sub-{subject}_latents.safetensors"), Path(f"sub-{subject}_latents.tsv")


def latent_events(subject: str) -> Path:
    """What happens in a subject's runs, beside their latents."""
    return Path(f"sub-{subject}_latentevents.tsv")


def subject_flatmaps(subject: str) -> tuple[Path, Path]:
    """Shard and index of a subject's flat maps."""
    return Path(f"sub-{subject}_flatmaps.safetensors"), Path(f"sub-{subject}_flatmaps.tsv")


def subject_statmap(entities: Entities, contrast: str, stat: str, extension: str = ".nii.gz") -> Path:
    """A subject's stat map; `stat` is ``effect``, ``variance``, ``t`` or ``z``."""
    return entities.path("statmap", extension, contrast=contrast, stat=stat)


def group_statmap(
    task: str | None, space: str, contrast: str, stat: str, extension: str = ".nii.gz", *, res: str | None = None
) -> Path:
    """A group stat map, ``group/task-..._space-..._res-..._contrast-..._stat-..._statmap.nii.gz``."""
    parts = [f"task-{task}"] if task else []
    parts += [f"space-{space}", *([f"res-{res}"] if res else []), f"contrast-{contrast}", f"stat-{stat}", "statmap"]
    return Path("group", "_".join(parts) + extension)


def synthetic_person(index: int, owner: str = "") -> str:
    """Label of a synthetic person who does several blocks or runs: ``synth0001`` for index 0, with an owner ``synthOwnerx0001``."""
    return Entities(sub=f"synth{owner}x{index + 1:04d}" if owner else f"synth{index + 1:04d}").sub


def synthetic_subject(condition_contrast: str, index: int) -> str:
    """Label of a synthetic subject, unique in a dataset: ``synthGamblingLoss0001`` for index 0.

    Parameters
    ----------
    condition_contrast : str
        `Condition.contrast` (``gamblingLoss``).
    index : int
        Sample number of that condition, from 0.
    """
    label = f"synth{condition_contrast[:1].upper()}{condition_contrast[1:]}{index + 1:04d}"
    return Entities(sub=label).sub  # the condition's name comes from a model's card, which anybody can write
