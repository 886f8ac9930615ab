"""Read and write NIfTI-1 images, distrustfully and fast.

The header is checked against the size of the data before memory is taken (`fmrisynth.bids.headers`), so a truncated
or hostile file ends in one sentence. gzip is read through ISA-L, which inflates several times faster than zlib.

Axis legend: X, Y, Z voxel axes; T frames.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from fmrisynth.bids.atomic import atomic_path, write_bytes
from fmrisynth.bids.headers import HEADER_BYTES, Header, check_header, damage_explained, open_image, read_header
from fmrisynth.errors import FmrisynthError
from fmrisynth.progress import log

__all__ = ["Header", "Image", "as_nibabel", "iterate_frames", "read_header", "read_image", "write_image"]


@dataclass(frozen=True)
class Image:
    """An image as stored, before intensity scaling.

    Attributes
    ----------
    header : Header
        What its file says of it.
    stored_XYZT : array
        Values in the file's own type, Fortran order; 3D images have shape (X, Y, Z).
    """

    header: Header
    stored_XYZT: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored array."""
        return self.stored_XYZT.shape

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world, in mm, (4, 4)."""
        return self.header.affine

    def scaled(self, selection=Ellipsis) -> np.ndarray:
        """Intensities as float32, of the whole image or of a numpy selection of it."""
        return self.scale(self.stored_XYZT[selection])

    def scale(self, stored: np.ndarray) -> np.ndarray:
        """Stored values as intensities, float32."""
        values = stored.astype(np.float32)
        if self.header.slope != 1.0:
            values *= np.float32(self.header.slope)
        if self.header.intercept != 0.0:
            values += np.float32(self.header.intercept)
        return values


def iterate_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a 4D image one by one, as stored (no intensity scaling), Fortran order.

    A helper thread inflates ahead of the caller, and only a few frames are in memory. Each frame is a fresh
    read-only array. The gzip checksum is verified after the last frame.

    Raises
    ------
    FmrisynthError
        As `read_image`, at the frame where the damage is.
    """
    with damage_explained(path), open_image(path, ahead=True) as stream:
        header = check_header(path, stream, 4)
        _skip(stream, header.offset - HEADER_BYTES)
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
    with damage_explained(path), open_image(path) as stream:
        header = check_header(path, stream, ndim)
        _skip(stream, header.offset - HEADER_BYTES)
        raw = np.empty(header.n_bytes, dtype=np.uint8)
        got = _read_into(stream, raw.data)
        if got < header.n_bytes:
            raise _truncated(path, header.n_bytes, got)
        stream.read(1)  # reaches the gzip trailer, which holds the checksum
    return Image(header, raw.view(header.dtype).reshape(header.shape, order="F"))


def image_packer() -> zlib._Compress:
    """A gzip stream for images: the same content gives the same bytes.

    Run lengths only: noise has no repeats to search for, so that this is twice as fast as level 1 and packs a little
    better. zlib, though ISA-L (which reads) is faster: once in a while that encodes equal content otherwise.
    """
    return zlib.compressobj(level=1, wbits=31, strategy=zlib.Z_RLE)  # 31: gzip, without a name or time in the header


def as_nibabel(
    array: np.ndarray, affine: np.ndarray, *, tr_s: float | None = None, mni: bool = True
) -> nib.Nifti1Image:
    """An image in memory, float32, or uint8 where the array is bool; for nilearn and nibabel."""
    values = array.astype(np.uint8 if array.dtype == bool else np.float32, copy=False)
    return nib.Nifti1Image(values, affine, _make_header(array.shape, values.dtype.name, affine, tr_s, mni))


def _make_header(
    shape: tuple[int, ...], dtype: str, affine: np.ndarray, tr_s: float | None, mni: bool
) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(dtype))
    header.set_xyzt_units("mm", "sec")
    code = 4 if mni else 1
    header.set_sform(affine, code)
    header.set_qform(affine, code)
    zooms = tuple(np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
    header.set_zooms(zooms + ((float(tr_s or 1.0),) if len(shape) == 4 else ()))
    return header


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
    header = _make_header(array.shape, dtype, affine, tr_s, mni)
    header["vox_offset"] = HEADER_BYTES
    if dtype == "int16":
        slope = float(np.float32(np.abs(array).max(initial=0.0) / 32767.0)) or 1.0
        header.set_slope_inter(slope, 0.0)
        stored = np.rint(array / np.float32(slope)).clip(-32768, 32767).astype("<i2")
    else:
        header.set_slope_inter(1.0, 0.0)
        stored = array.astype(np.dtype(dtype).newbyteorder("<"))
    content = header.binaryblock + b"\0" * (HEADER_BYTES - len(header.binaryblock)) + stored.tobytes(order="F")
    if path.name.endswith(".gz"):
        packer = image_packer()
        content = packer.compress(content) + packer.flush()
    write_bytes(path, content)


def write_frames(
    path: Path,
    frames: Iterable[np.ndarray],
    n_frames: int,
    affine: np.ndarray,
    *,
    largest: float,
    tr_s: float,
    mni: bool = True,
) -> None:
    """Write a 4D int16 image frame by frame, without holding it; atomically, and equal input gives equal bytes.

    Parameters
    ----------
    path : Path
        Ends with ``.nii`` or ``.nii.gz``.
    frames : iterable of arrays of shape (X, Y, Z)
        At least 0; larger values than `largest` are stored as that.
    n_frames : int
        How many there are.
    largest : float
        Largest value that can be stored; steps are 1 part in 32,767 of it.
    """
    packer = image_packer() if path.name.endswith(".gz") else None
    slope, n_written, n_clipped = np.float32(largest / 32767), 0, 0
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:

        def write(content: bytes) -> None:
            stream.write(content if packer is None else packer.compress(content))

        for frame_XYZ in frames:
            if not np.isfinite(frame_XYZ).all():
                raise FmrisynthError(
                    f"{path}: refused to write voxels that are not finite; the input or the model is broken."
                )
            if n_written == 0:
                header = _make_header((*frame_XYZ.shape, n_frames), "int16", affine, tr_s, mni)
                header["vox_offset"] = HEADER_BYTES
                header.set_slope_inter(float(slope), 0.0)
                write(header.binaryblock + b"\0" * (HEADER_BYTES - len(header.binaryblock)))
            n_clipped += int((frame_XYZ > largest).sum())
            write(np.rint(frame_XYZ / slope).clip(0, 32767).astype("<i2").tobytes(order="F"))
            n_written += 1
        if packer is not None:
            stream.write(packer.flush())
        if n_clipped:
            log.warning("%s: %d values above %.4g are stored as that.", path, n_clipped, largest)
        if n_written != n_frames:
            raise FmrisynthError(f"{path}: expected {n_frames} frames, got {n_written}.")


def _truncated(path: Path, expected: int, found: int) -> FmrisynthError:
    return FmrisynthError(
        f"{path}: expected {expected} bytes of voxels, found {found}; the file is truncated, get it again."
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
