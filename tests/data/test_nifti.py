"""Images against nibabel, and files that lie."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrisynth.data.nifti import iterate_frames, read_header, read_image, write_image
from fmrisynth.errors import FmrisynthError

AFFINE = np.array([[-3.0, 0, 0, 30], [0, 3, 0, -40], [0, 0, 3.3, -20], [0, 0, 0, 1]])


def nibabel_image(path: Path, dtype, *, slope=None, shape=(5, 6, 7, 4), seed=0) -> np.ndarray:
    """Write an image with nibabel; return the values that nibabel reads back."""
    values = np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    if len(shape) == 4:
        image.header.set_zooms((3, 3, 3.3, 0.72))
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return nib.load(path).get_fdata()


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u2", "<i4", "<f4", "<f8"])
def test_reads_what_nibabel_reads(tmp_path: Path, name: str, dtype: str) -> None:
    expected = nibabel_image(tmp_path / name, dtype)
    image = read_image(tmp_path / name, ndim=4)
    np.testing.assert_allclose(image.scaled(), expected, rtol=1e-6)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.header.tr_s == pytest.approx(0.72)
    np.testing.assert_allclose(image.scaled(np.s_[..., 2]), expected[..., 2], rtol=1e-6)
    frames = list(iterate_frames(tmp_path / name))
    assert len(frames) == 4
    np.testing.assert_array_equal(np.stack(frames, axis=-1), image.stored_XYZT)
    header = read_header(tmp_path / name)
    assert (header.shape, header.dtype.kind, header.n_bytes) == (
        image.shape,
        np.dtype(dtype).kind,
        image.stored_XYZT.nbytes,
    )


def test_slope_and_intercept(tmp_path: Path) -> None:
    expected = nibabel_image(tmp_path / "x.nii.gz", "<i2", slope=(0.25, -7.0))
    np.testing.assert_allclose(read_image(tmp_path / "x.nii.gz").scaled(), expected, rtol=1e-5)


@pytest.mark.parametrize("pixdim", [(0, 3, 3, 3.3), (2, 3, 3, 3.3), (1, -3, 3, -3.3), (-1, 3, -3, 3.3)])
def test_q_form_of_careless_writers(tmp_path: Path, pixdim: tuple[float, ...]) -> None:
    """The factor of handedness is 0, or sides of voxels are negative: nibabel mends both when it loads an image."""
    nibabel_image(tmp_path / "x.nii", "<i2")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    struct.pack_into("<4f", content, 76, *pixdim)
    struct.pack_into("<2h", content, 252, 1, 0)  # q-form, no s-form
    (tmp_path / "x.nii").write_bytes(content)
    np.testing.assert_allclose(read_header(tmp_path / "x.nii").affine, nib.load(tmp_path / "x.nii").affine, atol=1e-5)


@pytest.mark.parametrize(("place", "values"), [(116, (float("nan"),)), (256, (9.0, 9.0, 9.0))])
def test_numbers_of_a_header_that_mean_nothing(tmp_path: Path, place: int, values: tuple[float, ...]) -> None:
    nibabel_image(tmp_path / "x.nii", "<i2", slope=(0.5, 0))
    content = bytearray((tmp_path / "x.nii").read_bytes())
    struct.pack_into(f"<{len(values)}f", content, place, *values)
    struct.pack_into("<2h", content, 252, 1, 0)
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(FmrisynthError, match="header is damaged"):
        read_header(tmp_path / "x.nii")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_header_extensions_are_skipped(tmp_path: Path, name: str) -> None:
    """AFNI, Connectome Workbench and others put text between header and voxels."""
    values = np.random.default_rng(0).integers(0, 100, (5, 6, 7, 3)).astype(np.int16)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"history " * 50))
    nib.save(image, tmp_path / name)
    assert read_header(tmp_path / name).offset > 352
    np.testing.assert_array_equal(read_image(tmp_path / name).stored_XYZT, values)
    np.testing.assert_array_equal(np.stack(list(iterate_frames(tmp_path / name)), axis=-1), values)


def test_trailing_axis_and_time_units(tmp_path: Path) -> None:
    nibabel_image(tmp_path / "x.nii", "<i2", shape=(5, 6, 7, 1))
    assert read_image(tmp_path / "x.nii", ndim=3).shape == (5, 6, 7)
    assert read_image(tmp_path / "x.nii", ndim=4).shape == (5, 6, 7, 1)
    image = nib.Nifti1Image(np.zeros((2, 2, 2, 3), dtype=np.int16), AFFINE)
    image.header.set_xyzt_units("mm", "msec")
    image.header.set_zooms((3, 3, 3, 720))
    nib.save(image, tmp_path / "ms.nii")
    assert read_header(tmp_path / "ms.nii").tr_s == pytest.approx(0.72)


@pytest.mark.parametrize("reader", [read_image, lambda path: list(iterate_frames(path))], ids=["whole", "frames"])
class TestDamage:
    @pytest.fixture
    def content(self, tmp_path: Path) -> bytes:
        shape = (20, 20, 20, 6)
        values = np.random.default_rng(0).integers(0, 30_000, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / "good.nii")
        return (tmp_path / "good.nii").read_bytes()

    @pytest.mark.parametrize("keep", [0.99, 0.5, 0.05])
    def test_truncated_gzip(self, tmp_path: Path, content: bytes, reader, keep: float) -> None:
        path = tmp_path / "cut.nii.gz"
        packed = gzip.compress(content)
        path.write_bytes(packed[: int(len(packed) * keep)])
        with pytest.raises(FmrisynthError, match=r"cut\.nii\.gz: .*(get it again)"):
            reader(path)

    def test_truncated_before_compression(self, tmp_path: Path, content: bytes, reader) -> None:
        path = tmp_path / "cut.nii.gz"
        path.write_bytes(gzip.compress(content[:-5000]))
        with pytest.raises(FmrisynthError, match=r"expected 96000 bytes of voxels, found 91000; the file is truncated"):
            reader(path)

    def test_truncated_plain_file(self, tmp_path: Path, content: bytes, reader) -> None:
        path = tmp_path / "cut.nii"
        path.write_bytes(content[:-5000])
        with pytest.raises(FmrisynthError, match="more than a file of"):
            reader(path)

    def test_flipped_byte_fails_the_checksum(self, tmp_path: Path, content: bytes, reader) -> None:
        path = tmp_path / "bad.nii.gz"
        packed = bytearray(gzip.compress(content, compresslevel=0))  # stored, so only the checksum can tell
        packed[50_000] ^= 1
        path.write_bytes(bytes(packed))
        with pytest.raises(FmrisynthError, match=r"bad\.nii\.gz: the gzip data are damaged"):
            reader(path)

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"", "empty \\(0 bytes\\); if the dataset is under DataLad"),
            (b"hello", "expected a NIfTI-1 image"),
            (b"\0" * 400, "expected a NIfTI-1 image"),
        ],
    )
    def test_no_image_at_all(self, tmp_path: Path, content: bytes, reader, raw: bytes, message: str) -> None:
        path = tmp_path / "x.nii"
        path.write_bytes(raw)
        with pytest.raises(FmrisynthError, match=message):
            reader(path)
        with pytest.raises(FmrisynthError, match="there is no such image"):
            reader(tmp_path / "nowhere.nii")

    def test_header_that_promises_terabytes(self, tmp_path: Path, content: bytes, reader) -> None:
        raw = bytearray(content)
        raw[42:50] = np.array([30_000, 30_000, 30_000, 1000], dtype="<i2").tobytes()
        path = tmp_path / "huge.nii"
        path.write_bytes(bytes(raw))
        with pytest.raises(FmrisynthError, match="not plausible"):
            reader(path)

    def test_singular_affine(self, tmp_path: Path, content: bytes, reader) -> None:
        raw = bytearray(content)
        raw[280:328] = np.zeros(12, dtype="<f4").tobytes()  # srow_x, srow_y, srow_z
        path = tmp_path / "flat.nii"
        path.write_bytes(bytes(raw))
        with pytest.raises(FmrisynthError, match="affine of the header is not invertible"):
            reader(path)


def test_wrong_dimensions(tmp_path: Path) -> None:
    nibabel_image(tmp_path / "x.nii", "<i2", shape=(5, 6, 7))
    for read in (lambda p: read_image(p, ndim=4), lambda p: read_header(p, ndim=4), lambda p: list(iterate_frames(p))):
        with pytest.raises(FmrisynthError, match=r"expected a 4D image, found 3D \(5 x 6 x 7\)"):
            read(tmp_path / "x.nii")


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e4, 1e9]))
@settings(max_examples=20, deadline=None)
def test_int16_round_trip(tmp_path_factory, seed: int, size: float) -> None:
    path = tmp_path_factory.mktemp("nifti") / "x.nii.gz"
    values = (np.random.default_rng(seed).standard_normal((4, 5, 6, 3)) * size).astype(np.float32)
    write_image(path, values, AFFINE, dtype="int16", tr_s=1.44)
    largest = np.abs(values).max()
    for back in (read_image(path).scaled(), nib.load(path).get_fdata()):
        np.testing.assert_allclose(back, values, atol=largest / 32767 * 0.51)
    assert nib.load(path).header.get_zooms()[3] == pytest.approx(1.44)


def test_written_files_are_the_same_bytes_and_have_the_right_space(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", values, AFFINE, mni=name == "a")
    again = tmp_path / "again.nii.gz"
    write_image(again, values, AFFINE)
    assert again.read_bytes() == (tmp_path / "a.nii.gz").read_bytes()
    mni, scanner = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert (int(mni.header["sform_code"]), int(scanner.header["sform_code"])) == (4, 1)
    np.testing.assert_allclose(mni.get_fdata(), values, rtol=1e-6)
    np.testing.assert_allclose(mni.affine, AFFINE)


def test_values_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    values = np.zeros((3, 3, 3))
    values[1, 1, 1] = np.nan
    with pytest.raises(FmrisynthError, match="refused to write voxels that are not finite"):
        write_image(tmp_path / "x.nii.gz", values, AFFINE)
    assert list(tmp_path.iterdir()) == []
