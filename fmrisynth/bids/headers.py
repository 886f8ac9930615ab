"""Headers of NIfTI-1 images, read distrustfully: checked against the size of the file before memory is taken.

`fmrisynth.data.nifti` reads the voxels. gzip is recognised by its first bytes, not by the name of the file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, igzip_threaded, isal_zlib
from nibabel.spatialimages import HeaderDataError

from fmrisynth.errors import FmrisynthError

MAX_BYTES = 64 * 2**30
"""Largest uncompressed image that is read (64 GiB; an HCP run is 0.5 to 1.5 GB)."""

HEADER_BYTES = 352
_GZIP_ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, isal_zlib.error, igzip.BadGzipFile)  # type: ignore[assignment]


@dataclass(frozen=True)
class Header:
    """What the header of an image says, checked against the size of its file.

    Attributes
    ----------
    path : Path
        The file.
    shape : tuple of int
        As stored; trailing axes of length 1 are dropped.
    dtype : numpy dtype
        Stored type, with byte order.
    affine : array of shape (4, 4), float64
        Voxel to world, in mm.
    slope, intercept : float
        ``value = stored * slope + intercept``.
    tr_s : float
        Repetition time in seconds, 0 if the header has none.
    offset : int
        Where the voxels start, bytes.
    oriented : bool
        Whether the header has an sform or a qform; without one, left and right are a guess.
    xform_gap_mm : float
        Largest distance between the places that sform and qform give to a corner; 0 where only one is set.
    plain : bool
        Whether other readers see the same image: gzip where the name says so, no axis of length 1 dropped.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    slope: float
    intercept: float
    tr_s: float
    offset: int
    oriented: bool = True
    xform_gap_mm: float = 0.0
    plain: bool = True

    @property
    def n_bytes(self) -> int:
        """Size of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def on_grid_of(self, other: Header) -> bool:
        """Whether both have the same voxels in space, to 0.01 mm."""
        return self.shape[:3] == other.shape[:3] and np.allclose(self.affine, other.affine, atol=1e-2)


def read_header(path: Path, *, ndim: int | None = None) -> Header:
    """Read and check the header of an image, without its voxels.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    ndim : int, optional
        Expected number of dimensions (3 or 4); axes of length 1 after the third are dropped first.

    Raises
    ------
    FmrisynthError
        Missing, empty, truncated or corrupt file; not NIfTI-1; implausible size; wrong dimensions.
    """
    with damage_explained(path), open_image(path) as stream:
        return check_header(path, stream, ndim)


@contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one sentence."""
    try:
        yield
    except _GZIP_ERRORS as error:
        raise FmrisynthError(f"{path}: the gzip data are damaged or cut short ({error}); get it again.") from None
    except OSError as error:
        raise FmrisynthError(f"{path}: the image cannot be read ({error.strerror or error}).") from None


def open_image(path: Path, *, ahead: bool = False):
    """A stream of the uncompressed bytes; with `ahead`, a thread inflates before they are asked for."""
    if not path.exists():
        annex = path.is_symlink()
        remedy = "it is a link without content: get it first (datalad get)" if annex else "check the path"
        raise FmrisynthError(f"{path}: there is no such image; {remedy}.")
    if path.stat().st_size == 0:
        raise FmrisynthError(
            f"{path}: the image is empty (0 bytes); if the dataset is under DataLad or git-annex, get its content first."
        )
    if not _is_gzip(path):
        return open(path, "rb")
    if ahead:
        return igzip_threaded.open(path, "rb", threads=1)
    return igzip.open(path, "rb")


def check_header(path: Path, stream, ndim: int | None) -> Header:
    """Read the header from the start of a stream, see `read_header`."""
    raw = _read_header(path, stream)
    stored_shape = shape = tuple(int(n) for n in raw.get_data_shape())
    dtype = raw.get_data_dtype()
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 1 or n_bytes > MAX_BYTES or not 0 <= int(raw["vox_offset"]) < 2**20:
        raise FmrisynthError(
            f"{path}: the header claims an image of {' x '.join(map(str, shape))} {dtype} voxels, which is "
            "not plausible; the file is damaged, get it again."
        )
    _check_claim(path, n_bytes)
    tr_s = _tr_s(raw, shape)
    while len(shape) > 3 and shape[-1] == 1 and ndim != len(shape):
        shape = shape[:-1]
    if ndim == 4 and len(shape) > 4 and all(n == 1 for n in shape[3:-1]):
        shape = (*shape[:3], shape[-1])  # (x, y, z, 1, t), as some tools store a series
    if ndim is not None and len(shape) != ndim:
        raise FmrisynthError(
            f"{path}: expected a {ndim}D image, found {len(shape)}D ({' x '.join(map(str, shape))}); "
            "check that this is the right file."
        )
    pixdim = raw["pixdim"]  # some writers leave 0 for the handedness 1, or signs
    pixdim[:4] = [pixdim[0] if pixdim[0] in (-1, 1) else 1, *np.abs(pixdim[1:4])]
    try:
        affine = raw.get_best_affine()
        slope, intercept = raw.get_slope_inter()
        gap_mm = _xform_gap_mm(raw, shape)
    except (HeaderDataError, ValueError) as error:
        raise FmrisynthError(f"{path}: the header is damaged ({error}); get the file again.") from None
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise FmrisynthError(f"{path}: the affine of the header is not invertible; the header is damaged.")
    return Header(
        path=path,
        shape=shape,
        dtype=dtype,
        affine=affine,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        tr_s=tr_s,
        offset=max(int(raw["vox_offset"]), HEADER_BYTES),
        oriented=bool(raw["sform_code"] > 0 or raw["qform_code"] > 0),
        xform_gap_mm=gap_mm,
        plain=shape == stored_shape and _is_gzip(path) == path.name.endswith(".gz"),
    )


def _read_header(path: Path, stream) -> nib.Nifti1Header:
    block = stream.read(HEADER_BYTES)
    try:
        header = nib.Nifti1Header(block[:348], check=False)  # extensions after it are skipped, not parsed
        if header["magic"].item() not in (b"n+1", b"ni1") or int(header["sizeof_hdr"]) != 348:
            raise ValueError("no NIfTI-1 magic")
        dtype = header.get_data_dtype()
        if dtype.kind not in "iuf":
            raise ValueError(f"voxel type {dtype}")
    except Exception as error:
        raise FmrisynthError(f"{path}: expected a NIfTI-1 image, found something else ({error}).") from None
    return header


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _check_claim(path: Path, n_bytes: int) -> None:
    """Refuse a header that promises more than its file could hold, before the memory is taken."""
    size = path.stat().st_size
    # Deflate cannot exceed about 1032:1, and a plain file holds what it holds.
    most = size * 1100 if _is_gzip(path) else size
    if n_bytes > most:
        raise FmrisynthError(
            f"{path}: the header promises {n_bytes} bytes of voxels, more than a file of {size} bytes can hold; "
            "the file is truncated or damaged, get it again."
        )


def _tr_s(header: nib.Nifti1Header, shape: tuple[int, ...]) -> float:
    if len(shape) < 4:
        return 0.0
    axis = 5 if len(shape) == 5 and shape[3] == 1 and shape[4] > 1 else 4
    value = float(header["pixdim"][axis])
    unit = header.get_xyzt_units()[1]
    scale = {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    return value * scale if np.isfinite(value) and value > 0 else 0.0


def _xform_gap_mm(header: nib.Nifti1Header, shape: tuple[int, ...]) -> float:
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return 0.0
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in shape[:3])), axis=-1).reshape(-1, 3)
    places = [nib.affines.apply_affine(affine, corners) for affine in (header.get_sform(), header.get_qform())]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())
