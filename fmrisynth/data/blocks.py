"""The block dataset: what `prepare` and `sample` write, and everything else reads.

A block dataset is a BIDS derivative in which every block instance is a short run of its own: the 4D image, its
sidecar, the reference volume (temporal mean of the source run), the brain mask (both stored once per source run, under the
names of all its blocks) and the events. The subject's ``scans.tsv`` lists the blocks and is written last, so that its presence means that
the subject is complete. A whole run is such an instance, too: its `condition` is ``run``, its frames stand for the middle of their
repetition time (``StartTime``), and its events file holds everything that happens in it.

Axis legend: X, Y, Z voxel axes; T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import write_again
from fmrisynth.bids.events import Event, write_events
from fmrisynth.bids.origin import Origin
from fmrisynth.bids.sidecars import bold_sidecar, read_tsv, write_sidecar, write_tsv
from fmrisynth.data.grid import NATIVE_SPACE, Grid, make_grid
from fmrisynth.data.nifti import read_image, write_frames, write_image
from fmrisynth.errors import FmrisynthError, UsageError, must_exist
from fmrisynth.parse import read_json

RUN = "run"
"""What stands in place of a condition where an instance is a whole run: what happens in it is in its events file."""

EPI, T1W = "anatomy_epi", "anatomy_t1w"
"""Conditions of anatomies: their modality."""
ANATOMIES = (EPI, T1W)

RUN_MEAN = "Temporal mean of the run the block belongs to"
"""What the reference volume of a measured block is."""

T1W_ITSELF = "The T1-weighted image itself"
"""What it is of a T1w."""

GRAND_MEAN = 10_000.0
"""Mean of a source run over brain voxels and time, in the arbitrary units of HCP."""

HEADROOM = 2.0
"""Largest value that a run written frame by frame can hold, against the brightest voxel of its reference."""

SCANS_COLUMNS = (
    "filename", "condition", "split", "onset_s", "duration_s", "tr_s", "n_frames",
    "phase_encoding", "sex", "age", "source", "source_onset_s",
)  # fmt: skip
MAX_FRAMES, MAX_SECONDS = 10_000, 1e6
"""Largest numbers that a table may hold; memory is taken for as many frames as it says."""

ATTRIBUTES = ("phase_encoding", "sex", "age")
"""Optional attributes of a block that a generator can be conditioned on; others have columns of their own behind the rest."""


@dataclass(frozen=True)
class BlockData:
    """The arrays of one block, float32 and bool.

    Attributes
    ----------
    bold_XYZT : array
        BOLD-like intensities, 0 outside the mask.
    reference_XYZ : array
        Temporal mean of the source run; of synthetic blocks the anatomy that they were given.
    mask_XYZ : bool array
        Brain voxels.
    """

    bold_XYZT: np.ndarray
    reference_XYZ: np.ndarray
    mask_XYZ: np.ndarray


@dataclass(frozen=True)
class Block:
    """One block instance of a block dataset.

    Attributes
    ----------
    root : Path
        The dataset.
    subject : str
        Label without ``sub-``.
    condition : str
        Condition label.
    bold : Path
        The 4D image, relative to `root`.
    onset_s : float
        Block onset after the first frame, in seconds (0 for windows that start at the onset).
    duration_s : float
        Block duration, seconds.
    tr_s : float
        Time between frames, seconds.
    n_frames : int
        Number of frames.
    split : str or None
        ``train``, ``val`` or ``test``; None for synthetic blocks.
    attributes : mapping
        Phase encoding, sex, age where known.
    source : str or None
        The run that it was cut from.
    source_onset_s : float or None
        Block onset in that run, seconds.
    """

    root: Path
    subject: str
    condition: str
    bold: Path
    onset_s: float
    duration_s: float
    tr_s: float
    n_frames: int
    split: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    source_onset_s: float | None = None

    @property
    def is_run(self) -> bool:
        """Whether this is a whole run."""
        return self.condition == RUN

    @property
    def path(self) -> Path:
        """The 4D image."""
        return self.root / self.bold

    @property
    def reference_path(self) -> Path:
        """The reference volume."""
        return self.root / naming.block_companion(self.bold, "reference")

    @property
    def mask_path(self) -> Path:
        """The brain mask."""
        return self.root / naming.block_companion(self.bold, "mask")

    @property
    def events_path(self) -> Path:
        """The events table."""
        return self.root / naming.block_companion(self.bold, "events")

    @property
    def entities(self) -> dict[str, str]:
        """BIDS entities of the image's name."""
        return naming.parse_entities(self.bold.name)

    @property
    def space(self) -> str:
        """Space label of the image."""
        return self.entities.get("space", NATIVE_SPACE)

    def load(self) -> BlockData:
        """Read the block's arrays.

        Raises
        ------
        FmrisynthError
            A file is missing or damaged, or the three images are not on one grid.
        """
        bold = read_image(self.path, ndim=4)
        mask_XYZ = self.load_mask()
        reference = read_image(self.reference_path, ndim=3)
        if not bold.shape[:3] == mask_XYZ.shape == reference.shape:
            raise FmrisynthError(
                f"{self.path}: image, mask and reference differ in shape ({bold.shape[:3]}, {mask_XYZ.shape}, "
                f"{reference.shape}); make the dataset again."
            )
        return BlockData(bold.scaled(), reference.scaled(), mask_XYZ)

    def load_mask(self) -> np.ndarray:
        """Read the brain mask, bool (X, Y, Z)."""
        return read_image(self.mask_path, ndim=3).scaled() > 0.5

    def load_grid(self) -> Grid:
        """The block's grid, from its mask image."""
        image = read_image(self.mask_path, ndim=3)
        return make_grid(image.shape, image.affine, self.space)


def write_block(
    root: Path,
    entities: naming.Entities,
    desc: str,
    data: BlockData,
    grid: Grid,
    *,
    condition: str,
    onset_s: float,
    duration_s: float,
    tr_s: float,
    split: str | None = None,
    attributes: Mapping[str, str] | None = None,
    source: str | None = None,
    source_onset_s: float | None = None,
    sidecar: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
    extension: str = ".nii.gz",
    events: Sequence[Event] = (),
    frames: Iterable[np.ndarray] | None = None,
    n_frames: int = 0,
    same_run: Block | None = None,
    reference_is: str = RUN_MEAN,
) -> Block:
    """Write one block's files and return its record (list it with `finish_subject`).

    Parameters
    ----------
    root : Path
        The dataset.
    entities : Entities
        Name of the block, without ``desc``; ``run`` counts a subject's blocks of one task.
    desc : str
        ``desc`` of the image: the condition in camel case.
    data : BlockData
        Arrays on `grid`; image and reference are stored as int16 with a slope.
    sidecar : mapping, optional
        Further keys for the image's JSON.
    origin : Origin, optional
        What the data are; goes into every sidecar.
    extension : {".nii.gz", ".nii"}
        Compressed or plain images.
    events : sequence of Event
        What stands in the events table, seconds from the first frame (for a whole run: from its start); default: the block itself.
    frames : iterable of arrays of shape (X, Y, Z), optional
        The `n_frames` frames one by one, in place of ``data.bold_XYZT``; 0 outside the mask.
    same_run : Block, optional
        A block that was written before, of the same source run and with the same name but for ``run`` and ``desc``: reference and mask
        are stored once, under the names of both.
    reference_is : str
        What the reference volume is, in words, for its sidecar.
    """
    bold = naming.block_bold(entities, desc, extension)
    mni = not grid.is_native
    resolution = grid.resolution_text if entities.res else None
    if frames is None:
        n_frames = int(data.bold_XYZT.shape[3])
        image = np.where(data.mask_XYZ[..., None], data.bold_XYZT, 0.0)
        write_image(root / bold, image, grid.affine, dtype="int16", tr_s=tr_s, mni=mni)
    else:
        largest = HEADROOM * float(data.reference_XYZ.max())
        write_frames(root / bold, frames, n_frames, grid.affine, largest=largest, tr_s=tr_s, mni=mni)
    # BIDS wants every space label outside its list of templates to be explained.
    space = {"SpatialReference": "the participant's own scanner space"} if grid.is_native else {}
    declared = origin.sidecar() if origin is not None else {}
    if same_run is None:
        _write_anatomy(root, bold, data, grid, resolution, space | declared, reference_is)
    else:
        for kind in ("reference", "mask"):
            one, other = (naming.block_companion(path, kind) for path in (same_run.bold, bold))
            write_again(root / other, root / one)
            write_again(root / naming.image_sidecar(other), root / naming.image_sidecar(one))
    write_events(root / naming.block_companion(bold, "events"), events or [Event(onset_s, duration_s, condition)])
    keys: dict[str, Any] = {"Condition": condition, "IntensityUnits": f"arbitrary, grand mean {GRAND_MEAN:g}"}
    keys |= space | declared
    write_sidecar(
        root / naming.block_companion(bold, "sidecar"),
        bold_sidecar(entities.task or "", tr_s, resolution=resolution, extra=keys | dict(sidecar or {})),
    )
    return Block(
        root=root, subject=entities.sub, condition=condition, bold=bold, onset_s=float(onset_s),
        duration_s=float(duration_s), tr_s=float(tr_s), n_frames=n_frames, split=split,
        attributes=dict(attributes or {}), source=source, source_onset_s=source_onset_s,
    )  # fmt: skip


def _write_anatomy(
    root: Path, bold: Path, data: BlockData, grid: Grid, resolution: str | None, declared: Mapping[str, Any], reference_is: str
) -> None:  # fmt: skip
    """Reference volume and mask, with their sidecars."""
    mni = not grid.is_native
    write_image(
        root / naming.block_companion(bold, "reference"),
        np.where(data.mask_XYZ, data.reference_XYZ, 0.0), grid.affine, dtype="int16", mni=mni,
    )  # fmt: skip
    mask = naming.block_companion(bold, "mask")
    write_image(root / mask, data.mask_XYZ, grid.affine, dtype="uint8", mni=mni)
    common = bold_sidecar("", 0, resolution=resolution)
    mask_keys = {"Type": "Brain"} | {**declared} | {k: v for k, v in common.items() if k == "Resolution"}
    write_sidecar(root / naming.image_sidecar(mask), mask_keys)
    write_sidecar(
        root / naming.image_sidecar(naming.block_companion(bold, "reference")),
        {k: v for k, v in common.items() if k in ("Resolution", "SkullStripped")}
        | {"Description": reference_is}
        | dict(declared),
    )


def finish_subject(root: Path, subject: str, blocks: Sequence[Block], attributes: Iterable[str] = ()) -> None:
    """Write the subject's ``scans.tsv``: from now on the subject counts as complete.

    Attributes that are known of a block have a column, and those named have one in any case.
    """
    columns = dict.fromkeys([*SCANS_COLUMNS, *attributes, *further_attributes(blocks)])
    write_tsv(root / naming.subject_scans(subject), tuple(columns), table_rows(blocks), last=True)


def further_attributes(blocks: Iterable[Block]) -> list[str]:
    """Names of attributes beside `ATTRIBUTES`, in the order in which they occur."""
    return [name for name in dict.fromkeys(a for block in blocks for a in block.attributes) if name not in ATTRIBUTES]


def table_rows(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Rows of ``scans.tsv``: all that is known of blocks beside their images."""
    names = [*ATTRIBUTES, *further_attributes(blocks)]
    return [
        {
            "filename": block.bold.relative_to(f"sub-{block.subject}").as_posix(),
            "condition": block.condition,
            "split": block.split,
            "onset_s": block.onset_s,
            "duration_s": block.duration_s,
            "tr_s": block.tr_s,
            "n_frames": block.n_frames,
            "source": block.source,
            "source_onset_s": block.source_onset_s,
            **{name: block.attributes.get(name) for name in names},
        }
        for block in blocks
    ]


class AnatomyBlock(Block):
    """How somebody looks: the reference volume of a block or run as one frame."""

    def load(self) -> BlockData:
        """See `Block.load`; the image of what the person does is not read."""
        reference, mask_XYZ = read_image(self.reference_path, ndim=3).scaled(), self.load_mask()
        if reference.shape != mask_XYZ.shape:
            raise FmrisynthError(
                f"{self.reference_path}: reference and mask differ in shape ({reference.shape}, {mask_XYZ.shape}); make the dataset again."
            )
        return BlockData(reference[..., None], reference, mask_XYZ)


def anatomies_of(blocks: Sequence[Block]) -> list[Block]:
    """The anatomy of each session of a person: its T1w, or the EPI reference of its first block or run."""
    first = {block.entities.get("ses"): block for block in reversed(blocks)}
    return [
        AnatomyBlock(
            **dict(vars(block))
            | {"condition": _modality(block), "n_frames": 1, "onset_s": 0.0, "duration_s": block.tr_s}
        )
        for block in reversed(first.values())
    ]


def _modality(block: Block) -> str:
    return block.condition if block.condition in ANATOMIES else EPI


def refuse_unless_blocks(blocks: Sequence[Block], of_runs: str) -> None:
    """Refuse whole runs and anatomies where blocks are wanted: their mean over windows would say nothing.

    Raises
    ------
    UsageError
        With what to do instead; `of_runs` says it for runs.
    """
    for block in blocks:
        if block.is_run:
            raise UsageError(f"{block.root}: holds whole runs, not blocks; {of_runs}.")
        if block.condition in ANATOMIES:
            raise UsageError(
                f"{block.root}: holds anatomies, not blocks; look at them with `fmrisynth evaluate --unit anatomy`."
            )


def block_files(blocks: Sequence[Block]) -> list[Path]:
    """The files that the arrays of blocks, and the events of runs, are read from."""
    return [
        path
        for block in blocks
        for path in (block.path, block.reference_path, block.mask_path, *([block.events_path] if block.is_run else []))
    ]


def is_finished(root: Path, subject: str) -> bool:
    """Whether the subject is complete."""
    return (root / naming.subject_scans(subject)).exists()


def is_synthetic(root: Path, subject: str) -> bool:
    """Whether a subject's blocks say in their sidecars that a model made them."""
    if not is_finished(root, subject):
        return False
    sidecar = naming.block_companion(read_subject(root, subject)[0].bold, "sidecar")
    try:
        return bool(dict(read_json(root / sidecar)).get("Synthetic", False))
    except (OSError, ValueError, TypeError) as error:
        raise FmrisynthError(f"{root / sidecar}: expected the block's sidecar, it cannot be read ({error}).") from None


def subjects_of(root: Path) -> list[str]:
    """Labels of the complete subjects of a block dataset, sorted.

    Raises
    ------
    FmrisynthError
        The folder holds no complete subject.
    UsageError
        There is no such folder.
    """
    must_exist(root, "a dataset, as `fmrisynth prepare` or `sample` make it")
    found = sorted(path.parent.name.removeprefix("sub-") for path in root.glob("sub-*/sub-*_scans.tsv"))
    if not found:
        raise FmrisynthError(
            f"{root}: expected a block dataset, found no sub-*/sub-*_scans.tsv; run `fmrisynth prepare` first."
        )
    return found


def read_subject(root: Path, subject: str) -> list[Block]:
    """The blocks of one subject, in the order of its ``scans.tsv``."""
    path = root / naming.subject_scans(subject)
    required = ("filename", "condition", "onset_s", "duration_s", "tr_s", "n_frames")
    blocks = []
    for row in read_tsv(path, required):
        name = Path(row["filename"])
        if name.suffix == "":
            raise FmrisynthError(f"{path}: expected the file name of an image, found {str(name)!r}; correct the table.")
        if name.is_absolute() or ".." in name.parts:
            raise FmrisynthError(f"{path}: {name} points outside the dataset; correct the table.")
        names = [*ATTRIBUTES, *(column for column in row if column not in SCANS_COLUMNS)]
        try:
            blocks.append(
                Block(
                    root=root, subject=subject, condition=row["condition"], bold=Path(f"sub-{subject}") / name,
                    onset_s=_number(row["onset_s"]), duration_s=_number(row["duration_s"], 0),
                    tr_s=_number(row["tr_s"], 1e-3), n_frames=int(_number(row["n_frames"], 1, MAX_FRAMES)), split=_known(row.get("split")),
                    attributes={a: v for a in names if (v := _known(row.get(a))) is not None},
                    source=_known(row.get("source")),
                    source_onset_s=_number(v) if (v := _known(row.get("source_onset_s"))) is not None else None,
                )
            )  # fmt: skip
        except ValueError as error:
            raise FmrisynthError(f"{path}: a number cannot be read ({error}); correct the table.") from None
    return blocks


def read_blocks(root: Path, *, subjects: Sequence[str] | None = None, split: str | None = None) -> list[Block]:
    """All blocks of a dataset, subject by subject, optionally of some subjects or one split only."""
    chosen = subjects_of(root) if subjects is None else list(subjects)
    blocks = [block for subject in chosen for block in read_subject(root, subject)]
    return [block for block in blocks if split is None or block.split == split]


def common_grid(blocks: Sequence[Block]) -> Grid:
    """The grid of the first block; `Block.load` and callers check the others as they read them."""
    if not blocks:
        raise FmrisynthError("the dataset has no blocks; check the conditions and the report of `prepare`.")
    return blocks[0].load_grid()


def iterate_subjects(root: Path, subjects: Sequence[str] | None = None) -> Iterator[tuple[str, list[Block]]]:
    """Yield (subject, blocks) one by one; only one subject's records are held."""
    for subject in subjects_of(root) if subjects is None else subjects:
        yield subject, read_subject(root, subject)


def _number(cell: str, least: float = -MAX_SECONDS, most: float = MAX_SECONDS) -> float:
    value = float(cell)
    if not least <= value <= most:  # also refuses nan
        raise ValueError(f"expected {least:g} to {most:g}, found {cell}")
    return value


def _known(cell: str | None) -> str | None:
    return None if cell in (None, "", "n/a") else cell
