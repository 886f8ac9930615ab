"""`fmrisynth check`: data like the model's pass, each kind of other preprocessing is named."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import fmrisynth as fs
from fmrisynth.check import check_dataset
from fmrisynth.cli.main import run
from fmrisynth.config.load import load_config
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.simulate import simulate_cohort


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """One phantom subject, who is like the bundled model's training data."""
    out = tmp_path_factory.mktemp("check") / "blocks"
    simulate_cohort(
        out, load_config(SimulateConfig, "simulate", flags={"layout": "blocks", "n_subjects": 1, "seed": 5})
    )
    return out


def changed(phantom, out, change):
    """A copy whose images went through `change(bold_XYZT, reference_XYZ)`."""
    shutil.copytree(phantom, out)
    for path in out.rglob("*_bold.nii.gz"):
        image = nib.load(path)
        entities = path.name.rpartition("_desc-")[0]
        reference_XYZ = nib.load(path.with_name(f"{entities}_boldref.nii.gz")).get_fdata()
        new = nib.Nifti1Image(change(image.get_fdata(), reference_XYZ).astype(np.float32), image.affine, image.header)
        new.header.set_data_dtype(np.float32)
        nib.save(new, path)
    return out


def differing(data):
    return {row.what: row.advice for row in check_dataset(data, n_blocks=7) if row.differs}


def test_data_like_the_models_pass(phantom):
    rows = check_dataset(phantom, n_blocks=7)
    assert len(rows) >= 9
    assert not [row for row in rows if row.differs]


def test_smoothed_data_are_named(phantom, tmp_path):
    found = differing(changed(phantom, tmp_path / "smooth", lambda bold, _: gaussian_filter(bold, (1.2, 1.2, 1.2, 0))))
    assert "smoothing" in found["fast fluctuations that latents leave"]


def test_low_passed_data_are_named(phantom, tmp_path):
    found = differing(changed(phantom, tmp_path / "slow", lambda bold, _: gaussian_filter(bold, (0, 0, 0, 1.5))))
    assert "low-pass" in found["fast fluctuations that latents leave"]


def test_larger_fluctuations_are_named(phantom, tmp_path):
    found = differing(
        changed(phantom, tmp_path / "loud", lambda bold, ref: ref[..., None] + 2 * (bold - ref[..., None]))
    )
    assert any("keep" in what for what in found)


def test_a_mirrored_brain_is_named(phantom, tmp_path):
    out = changed(phantom, tmp_path / "mirrored", lambda bold, _: bold[::-1])
    for path in [*out.rglob("*_boldref.nii.gz"), *out.rglob("*_mask.nii.gz")]:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine, image.header), path)
    assert "left and right" in differing(out)["mean image"]


def test_another_repetition_time_stops_the_comparison(phantom, tmp_path):
    out = tmp_path / "tr"
    shutil.copytree(phantom, out)
    for table in out.rglob("*_scans.tsv"):
        table.write_text(table.read_text().replace("\t1.44\t", "\t2\t"))
    rows = check_dataset(out, n_blocks=3)
    assert [row.what for row in rows if row.differs] == ["time between frames"]
    assert len(rows) == 4


def test_the_command_prints_a_table_and_fails_where_something_differs(phantom, tmp_path, capsys):
    assert run(["check", str(phantom), "--n-blocks", "3"]) == 0
    assert "nothing that matters" in capsys.readouterr().out
    out = tmp_path / "tr"
    shutil.copytree(phantom, out)
    for table in out.rglob("*_scans.tsv"):
        table.write_text(table.read_text().replace("\t1.44\t", "\t2\t"))
    assert run(["check", str(out), "--n-blocks", "3"]) == 1
    assert "tr_s=1.44" in capsys.readouterr().out


def test_from_python(phantom):
    table = fs.check(phantom, n_blocks=3)
    assert list(table.columns) == ["what", "model", "data", "differs", "advice"]
    assert not table["differs"].any()
