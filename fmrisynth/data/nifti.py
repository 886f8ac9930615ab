"""Read and write NIfTI-1 images, distrustfully and fast.

The header is checked against the size of the data before memory is taken, so a truncated or hostile file
ends in one sentence. gzip is read through ISA-L, which inflates several times faster than zlib.

Axis legend: X, Y, Z voxel axes; T frames.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from isal import igzip, igzip_threaded, isal_zlib
from nibabel.spatialimages import HeaderDataError

from fmrisynth.bids.atomic import write_bytes
from fmrisynth.errors import FmrisynthError

MAX_BYTES = 64 * 2**30
"""Largest uncompressed image that is read (64 GiB; an HCP run is 0.5 to 1.5 GB)."""

_HEADER_BYTES = 352
_GZIP_ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, isal_zlib.error, igzip.BadGzipFile)  # type: ignore[assignment]


@dataclass(frozen=True)
class Image:
    """An image as stored, before intensity scaling.

    Attributes
    ----------
    path : Path
        Where it came from.
    stored_XYZT : array
        Values in the file's own type, Fortran order; 3D images have shape (X, Y, Z).
    affine : array of shape (4, 4), float64
        Voxel to world, in mm.
    slope, intercept : float
        ``value = stored * slope + intercept``.
    tr_s : float
        Repetition time in seconds, 0 if the header has none.
    """

    path: Path
    stored_XYZT: np.ndarray
    affine: np.ndarray
    slope: float
    intercept: float
    tr_s: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored array."""
        return self.stored_XYZT.shape

    def scaled(self, selection=Ellipsis) -> np.ndarray:
        """Intensities as float32, of the whole image or of a numpy selection of it."""
        values = self.stored_XYZT[selection].astype(np.float32)
        if self.slope != 1.0:
            values *= np.float32(self.slope)
        if self.intercept != 0.0:
            values += np.float32(self.intercept)
        return values


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
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    slope: float
    intercept: float
    tr_s: float
    offset: int

    @property
    def n_bytes(self) -> int:
        """Size of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path, *, ndim: int | None = None) -> Header:
    """Read and check the header of an image, without its voxels (see `read_image`)."""
    with _damage_explained(path), _open(path) as stream:
        return _header(path, stream, ndim)


def iterate_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a 4D image one by one, as stored (no intensity scaling), Fortran order.

    A helper thread inflates ahead of the caller, and only a few frames are in memory. Each frame is a fresh
    read-only array. The gzip checksum is verified after the last frame.

    Raises
    ------
    FmrisynthError
        As `read_image`, at the frame where the damage is.
    """
    with _damage_explained(path), _open(path, ahead=True) as stream:
        header = _header(path, stream, 4)
        _skip(stream, header.offset - _HEADER_BYTES)
        volume_bytes = header.n_bytes // header.shape[3]
        for number in range(header.shape[3]):
            raw = np.empty(volume_bytes, dtype=np.uint8)
            got = _read_into(stream, raw.data)
            if got < volume_bytes:
                raise _truncated(path, header.n_bytes, number * volume_bytes + got)
            yield raw.view(header.dtype).reshape(header.shape[:3], order="F")
        stream.read(1)  # reaches the gzip trailer, which holds the checksum


def read_image(path: Path, *, ndim: int | None = None) -> Image:
    """Read a ``.nii`` or ``.nii.gz`` image.

    Parameters
    ----------
    path : Path
        The file.
    ndim : int, optional
        Expected number of dimensions (3 or 4); trailing axes of length 1 are dropped first.

    Raises
    ------
    FmrisynthError
        Missing, empty, truncated or corrupt file; not NIfTI-1; implausible size; wrong dimensions.
    """
    with _damage_explained(path), _open(path) as stream:
        header = _header(path, stream, ndim)
        _skip(stream, header.offset - _HEADER_BYTES)
        raw = np.empty(header.n_bytes, dtype=np.uint8)
        got = _read_into(stream, raw.data)
        if got < header.n_bytes:
            raise _truncated(path, header.n_bytes, got)
        stream.read(1)  # reaches the gzip trailer, which holds the checksum
    return Image(
        path=path,
        stored_XYZT=raw.view(header.dtype).reshape(header.shape, order="F"),
        affine=header.affine,
        slope=header.slope,
        intercept=header.intercept,
        tr_s=header.tr_s,
    )


def image_packer() -> zlib._Compress:
    """A gzip stream for images: the same content gives the same bytes.

    Run lengths only: noise has no repeats to search for, so that this is twice as fast as level 1 and packs a little
    better. zlib, though ISA-L (which reads) is faster: once in a while that encodes equal content otherwise.
    """
    return zlib.compressobj(level=1, wbits=31, strategy=zlib.Z_RLE)  # 31: gzip, without a name or time in the header


def write_image(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    dtype: Literal["int16", "uint8", "float32"] = "float32",
    tr_s: float | None = None,
    mni: bool = True,
) -> None:
    """Write ``.nii`` or ``.nii.gz`` atomically; equal input gives equal bytes.

    Parameters
    ----------
    path : Path
        Ends with ``.nii`` or ``.nii.gz``.
    array : array of shape (X, Y, Z) or (X, Y, Z, T)
        Finite values. For ``int16`` a slope is chosen that keeps the largest value (1 part in 32,767).
    affine : array of shape (4, 4)
        Voxel to world, mm.
    tr_s : float, optional
        Repetition time in seconds.
    mni : bool, default True
        Whether the world is MNI space (xform code 4) or the scanner's (code 1).

    Raises
    ------
    FmrisynthError
        If a value is not finite, or the disk is full.
    """
    if not np.isfinite(array).all():
        raise FmrisynthError(f"{path}: refused to write voxels that are not finite; the input or the model is broken.")
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(np.dtype(dtype))
    header.set_xyzt_units("mm", "sec")
    code = 4 if mni else 1
    header.set_sform(affine, code)
    header.set_qform(affine, code)
    zooms = tuple(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    header.set_zooms(zooms + ((float(tr_s or 1.0),) if array.ndim == 4 else ()))
    header["vox_offset"] = _HEADER_BYTES
    if dtype == "int16":
        slope = float(np.float32(np.abs(array).max(initial=0.0) / 32767.0)) or 1.0
        header.set_slope_inter(slope, 0.0)
        stored = np.rint(array / np.float32(slope)).clip(-32768, 32767).astype("<i2")
    else:
        header.set_slope_inter(1.0, 0.0)
        stored = array.astype(np.dtype(dtype).newbyteorder("<"))
    content = header.binaryblock + b"\0" * (_HEADER_BYTES - len(header.binaryblock)) + stored.tobytes(order="F")
    if path.name.endswith(".gz"):
        packer = image_packer()
        content = packer.compress(content) + packer.flush()
    write_bytes(path, content)


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into one sentence."""
    try:
        yield
    except _GZIP_ERRORS as error:
        raise FmrisynthError(f"{path}: the gzip data are damaged or cut short ({error}); get it again.") from None
    except OSError as error:
        raise FmrisynthError(f"{path}: the image cannot be read ({error.strerror or error}).") from None


def _truncated(path: Path, expected: int, found: int) -> FmrisynthError:
    return FmrisynthError(
        f"{path}: expected {expected} bytes of voxels, found {found}; the file is truncated, get it again."
    )


def _open(path: Path, *, ahead: bool = False):
    if not path.exists():
        raise FmrisynthError(f"{path}: there is no such image; check the path.")
    if path.stat().st_size == 0:
        raise FmrisynthError(
            f"{path}: the image is empty (0 bytes); if the dataset is under DataLad or git-annex, get its content first."
        )
    if not path.name.endswith(".gz"):
        return open(path, "rb")
    if ahead:
        return igzip_threaded.open(path, "rb", threads=1)
    return igzip.open(path, "rb")


def _header(path: Path, stream, ndim: int | None) -> Header:
    raw = _read_header(path, stream)
    shape = tuple(int(n) for n in raw.get_data_shape())
    dtype = raw.get_data_dtype()
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 1 or n_bytes > MAX_BYTES or not 0 <= int(raw["vox_offset"]) < 2**20:
        raise FmrisynthError(
            f"{path}: the header claims an image of {' x '.join(map(str, shape))} {dtype} voxels, which is "
            "not plausible; the file is damaged, get it again."
        )
    _check_claim(path, n_bytes)
    tr_s = _tr_s(raw, len(shape))
    while len(shape) > 3 and shape[-1] == 1 and ndim != len(shape):
        shape = shape[:-1]
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
        offset=max(int(raw["vox_offset"]), _HEADER_BYTES),
    )


def _read_header(path: Path, stream) -> nib.Nifti1Header:
    block = stream.read(_HEADER_BYTES)
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


def _check_claim(path: Path, n_bytes: int) -> None:
    """Refuse a header that promises more than its file could hold, before the memory is taken."""
    size = path.stat().st_size
    # Deflate cannot exceed about 1032:1, and a plain file holds what it holds.
    most = size * 1100 if path.name.endswith(".gz") else size
    if n_bytes > most:
        raise FmrisynthError(
            f"{path}: the header promises {n_bytes} bytes of voxels, more than a file of {size} bytes can hold; "
            "the file is truncated or damaged, get it again."
        )


def _skip(stream, n_bytes: int) -> None:
    if n_bytes:
        stream.read(n_bytes)


def _read_into(stream, view: memoryview) -> int:
    done = 0
    while done < len(view):
        n = stream.readinto(view[done : done + (1 << 24)])
        if not n:
            break
        done += n
    return done


def _tr_s(header: nib.Nifti1Header, ndim: int) -> float:
    if ndim < 4:
        return 0.0
    value = float(header["pixdim"][4])
    unit = header.get_xyzt_units()[1]
    scale = {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0)
    return value * scale if np.isfinite(value) and value > 0 else 0.0
