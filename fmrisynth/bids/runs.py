"""One functional run of the input: its files, its clock, and every doubt about them.

Both layouts (`fmrisynth.bids.discover`, `fmrisynth.bids.hcp`) end in `read_run`, so `prepare` and `glm --unit run` see the
same run. What cannot be right is a problem of severity ``error``: whoever needs the run calls `Run.check`. What may be
right is a ``warning``: it is said, and kept in reports and sidecars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fmrisynth.bids.confounds import Confounds, read_confounds
from fmrisynth.bids.events import Event, read_events
from fmrisynth.bids.headers import Header, read_header
from fmrisynth.conditions import fold
from fmrisynth.config.source import SourceConfig
from fmrisynth.errors import FmrisynthError

TR_RANGE_S = (0.1, 20.0)
"""Repetition times outside are a wrong unit, not a protocol."""

TR_TOLERANCE = 0.01
"""Header and sidecar may differ by so much, relative."""

MIDDLE = 0.5
"""Moment within the repetition time that a frame stands for, unless a file or a setting says otherwise."""

XFORM_TOLERANCE_MM = 1.0
FAR_OUTSIDE = 5.0
"""When most events are late, and the last by so many lengths of the run, their unit is another (or their run)."""


@dataclass(frozen=True)
class Problem:
    """One doubt about a run.

    Attributes
    ----------
    name : str
        What kind it is (``repetition-time``).
    severity : {"error", "warning"}
        Whether the run cannot be used, or may be right.
    text : str
        One sentence: the file, what was expected, what was found, and what to do. It says where the dataset lies, so
        two problems that differ in it only are the same.
    """

    name: str
    severity: Literal["error", "warning"]
    text: str = field(compare=False)


@dataclass(frozen=True)
class Timing:
    """When the frames of a run were acquired, on the clock of its events.

    Attributes
    ----------
    n_frames : int
        Frames.
    tr_s : float
        Repetition time, seconds.
    first_frame_s : float
        Time of the first frame, seconds.
    clock : str
        Where that time comes from, for sidecars.
    is_assumed : bool
        Whether no file and no setting says it.
    """

    n_frames: int
    tr_s: float
    first_frame_s: float = 0.0
    clock: str = ""
    is_assumed: bool = False

    @property
    def times_s(self) -> np.ndarray:
        """Time of every frame, seconds."""
        return self.first_frame_s + self.tr_s * np.arange(self.n_frames)

    @property
    def end_s(self) -> float:
        """End of the acquisition, seconds."""
        return self.n_frames * self.tr_s


@dataclass(frozen=True)
class Run:
    """One functional run of the input.

    Attributes
    ----------
    subject : str
        Label without ``sub-``, letters and digits.
    session : str or None
        Session label.
    task : str
        Task in the source's own spelling (``GAMBLING``, ``HcpGambling``).
    bold : Path
        4D image.
    name : str
        Path of `bold` relative to its dataset, for records.
    space : str or None
        BIDS space label; None is the scanner's own.
    entities : mapping
        BIDS entities of the file name, where there are any.
    phase_encoding : str or None
        ``LR``, ``ap``, ``j-`` ... as the source says it.
    metadata : mapping
        Sidecar keys of the image, merged along the inheritance chain.
    sidecars : tuple of Path
        Where `metadata` come from, most general first.
    mask : Path or None
        Brain mask on the same grid; None where the source has none.
    events_files : tuple of Path
        Where `events` come from.
    events : tuple of Event
        Rows of the events (or EV) files, in order of onset.
    events_are_blocks : bool
        Whether each row is a whole block already (HCP's EV files).
    confounds_file : Path or None
        Table with one row per frame.
    confounds : Confounds or None
        Its content, where it could be read.
    header : Header or None
        Header of `bold`, where it could be read.
    timing : Timing or None
        When its frames were acquired, where that is known.
    problems : tuple of Problem
        Every doubt, errors first.
    """

    subject: str
    session: str | None
    task: str
    bold: Path
    name: str
    space: str | None = None
    entities: Mapping[str, str] = field(default_factory=dict)
    phase_encoding: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sidecars: tuple[Path, ...] = ()
    mask: Path | None = None
    events_files: tuple[Path, ...] = ()
    events: tuple[Event, ...] = ()
    events_are_blocks: bool = False
    confounds_file: Path | None = None
    confounds: Confounds | None = None
    header: Header | None = None
    timing: Timing | None = None
    problems: tuple[Problem, ...] = ()

    def check(self) -> tuple[Header, Timing]:
        """Header and timing of a run that can be used.

        Raises
        ------
        FmrisynthError
            The first thing about it that cannot be right.
        """
        errors = [problem.text for problem in self.problems if problem.severity == "error"]
        if errors or self.header is None or self.timing is None:
            raise FmrisynthError(errors[0] if errors else f"{self.bold}: the run has not been read.")
        return self.header, self.timing

    @property
    def warnings(self) -> list[str]:
        """What may be right, in sentences."""
        return [problem.text for problem in self.problems if problem.severity == "warning"]

    @property
    def bad_frames(self) -> frozenset[int]:
        """Frames that its confounds call non-steady or outlying."""
        return frozenset() if self.confounds is None else self.confounds.bad_frames


class _Doubts(list[Problem]):
    """Collects problems; as a context, turns an error into one."""

    def error(self, name: str, text: str) -> None:
        self.append(Problem(name, "error", text))

    def warn(self, name: str, text: str) -> None:
        self.append(Problem(name, "warning", text))

    def of(self, name: str) -> _Caught:
        return _Caught(self, name)


@dataclass
class _Caught:
    doubts: _Doubts
    name: str

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, FmrisynthError):
            self.doubts.error(self.name, str(error))
            return True
        return False


def read_run(run: Run, config: SourceConfig, problems: Iterable[Problem] = ()) -> Run:
    """Complete a run whose files were found: read header, events and confounds, settle the clock, note the doubts.

    Parameters
    ----------
    run : Run
        With `events` where the layout has no events file (HCP).
    config : SourceConfig
        The user's own repetition time and reference within the TR.
    problems : iterable of Problem
        What the layout found already.
    """
    doubts = _Doubts(problems)
    header, timing, confounds, events = None, None, None, run.events
    with doubts.of("image"):
        header = read_header(run.bold, ndim=4)
        doubts += header_problems(header)
    if header is not None:
        with doubts.of("clock"):
            timing = _timing(header, run.metadata, config, doubts)
    if run.events_files and not run.events_are_blocks:
        with doubts.of("events"):
            events = _read_events(run.events_files[0], doubts)
    if timing is not None and events:
        _check_times(run, events, timing, doubts)
    if run.confounds_file is not None:
        try:
            confounds = read_confounds(run.confounds_file, header.shape[3] if header else None)
        except FmrisynthError as error:  # an error for those who need them only
            doubts.warn("confounds", str(error))
    if run.mask is not None and header is not None:
        with doubts.of("mask"):
            check_mask(run.mask, header)
    ordered = sorted(doubts, key=lambda problem: problem.severity)
    return replace(run, header=header, timing=timing, events=events, confounds=confounds, problems=tuple(ordered))


def check_mask(mask: Path, header: Header) -> None:
    """Refuse a mask that is not on the grid of its image."""
    own = read_header(mask, ndim=3)
    if not own.on_grid_of(header):
        raise FmrisynthError(
            f"{mask}: the mask ({' x '.join(map(str, own.shape))}) is not on the grid of {header.path.name} "
            f"({' x '.join(map(str, header.shape[:3]))}), or their affines differ; resample the mask to the image."
        )


def header_problems(header: Header) -> list[Problem]:
    """What is odd about the header of an image: which side is left, and how it is stored."""
    doubts = _Doubts()
    if not header.oriented:
        doubts.error(
            "orientation",
            f"{header.path}: expected an sform or qform in the header, found neither (both codes are 0), so which side is "
            "left cannot be known; set the affine of the image it was made from (fslorient -setsformcode, nibabel).",
        )
    if header.xform_gap_mm > XFORM_TOLERANCE_MM:
        doubts.warn(
            "orientation",
            f"{header.path}: sform and qform of the header differ by up to {header.xform_gap_mm:.0f} mm; the sform is "
            "taken, check which side is left.",
        )
    if not header.plain:
        doubts.warn(
            "format",
            f"{header.path}: compressed or shaped otherwise than its name says (gzip, or axes of length 1); it is read "
            "all the same, other tools may refuse it.",
        )
    return doubts


def _timing(header: Header, metadata: Mapping[str, Any], config: SourceConfig, doubts: _Doubts) -> Timing:
    """Repetition time and the time of the first frame: the one place that decides the clock."""
    path = header.path
    if "VolumeTiming" in metadata:
        raise FmrisynthError(
            f"{path}: its sidecar has VolumeTiming; runs whose frames are not evenly spaced are not read."
        )
    declared_s = _seconds(path, metadata, "RepetitionTime")
    tr_s = config.source_tr_s
    if tr_s is None:
        if declared_s and header.tr_s and not np.isclose(declared_s, header.tr_s, rtol=TR_TOLERANCE):
            raise FmrisynthError(
                f"{path}: the header says TR {header.tr_s:g} s, the sidecar {declared_s:g} s; correct the wrong one, "
                "or give the true one as source_tr_s."
            )
        tr_s = declared_s or header.tr_s
    if not TR_RANGE_S[0] <= tr_s <= TR_RANGE_S[1]:
        found = f"found {tr_s:g} s" if tr_s else "found none"
        raise FmrisynthError(
            f"{path}: expected a repetition time of {TR_RANGE_S[0]:g} to {TR_RANGE_S[1]:g} s in the header or the "
            f"sidecar, {found}; give the true one as source_tr_s."
        )
    n_frames, start_s = header.shape[3], _seconds(path, metadata, "StartTime")
    corrected = metadata.get("SliceTimingCorrected")
    if start_s is not None and corrected is False:
        doubts.warn(
            "start-time",
            f"{path}: its sidecar has StartTime {start_s:g} s and SliceTimingCorrected false; StartTime is not used, "
            "because slices that were not corrected have no common time.",
        )
    elif start_s is not None:
        if not 0 <= start_s <= tr_s:
            raise FmrisynthError(
                f"{path}: expected a StartTime within the repetition time (0 to {tr_s:g} s) in its sidecar, found "
                f"{start_s:g} s; correct it."
            )
        return Timing(n_frames, float(tr_s), start_s, "StartTime of the sidecar")
    acquired_s = tr_s - (_seconds(path, metadata, "DelayTime") or 0.0)
    moment = MIDDLE if config.slice_time_ref is None else config.slice_time_ref
    # Slices that were not corrected, or to no named time, are best spoken for by the middle.
    is_assumed = config.slice_time_ref is None and not {"SliceTimingCorrected", "SliceTiming"} & metadata.keys()
    return Timing(n_frames, float(tr_s), moment * acquired_s, f"{moment:g} of the repetition time", is_assumed)


def _seconds(image: Path, metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise FmrisynthError(f"{image}: its sidecar has {key} = {value!r}, expected a number of seconds; correct it.")
    return float(value)


def _read_events(path: Path, doubts: _Doubts) -> tuple[Event, ...]:
    table = read_events(path)
    for name, values in table.several_runs.items():
        raise FmrisynthError(
            f"{path}: its column {name} names several runs ({', '.join(values[:4])}) whose onsets start again; write one "
            "events file per run, with run- in its name."
        )
    if "trial_type" not in table.columns:
        doubts.warn(
            "events",
            f"{path}: expected a column named trial_type, found {', '.join(table.columns)}; the run has no conditions "
            "until the column is renamed or added.",
        )
    if table.n_restarts:
        doubts.warn(
            "events",
            f"{path}: the onsets start again {table.n_restarts} times, as if the tables of several runs stood one below "
            "the other; check that all events belong to this run.",
        )
    if table.n_duplicates:
        doubts.warn("events", f"{path}: {table.n_duplicates} rows repeat an event (same onset, duration, trial type); "
                    "each is counted once.")  # fmt: skip
    spellings: dict[str, set[str]] = {}
    for event in table.events:
        spellings.setdefault(fold(event.label), set()).add(event.label)
    for names in spellings.values():
        if len(names) > 1:
            doubts.warn(
                "trial-types", f"{path}: {' and '.join(map(repr, sorted(names)))} differ in spelling only and are "
                "taken as one condition; rename one of them if they are two.",
            )  # fmt: skip
    return table.events


def _check_times(run: Run, events: Sequence[Event], timing: Timing, doubts: _Doubts) -> None:
    where = run.events_files[0] if run.events_files else run.bold
    onsets = [event.onset_s for event in events]
    late = sum(onset >= timing.end_s for onset in onsets)
    if late == len(onsets) or (2 * late > len(onsets) and max(onsets) > FAR_OUTSIDE * timing.end_s):
        doubts.error(
            "events",
            f"{where}: the events lie between {min(onsets):g} and {max(onsets):g} s, the run {run.bold.name} lasts "
            f"{timing.end_s:g} s; onsets must be in seconds (not milliseconds) after the start of this run.",
        )
    elif late:
        doubts.warn(
            "events",
            f"{where}: {late} of {len(onsets)} events begin after the end of the run {run.bold.name} "
            f"({timing.end_s:g} s); they are left out, check that image and events belong together.",
        )
