"""`fmrisynth prepare --unit anatomy`: T1w of HCP trees and fMRIPrep derivatives, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nilearn.datasets import load_mni152_brain_mask

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks
from fmrisynth.data.grid import MNI_3MM, MNI_GRIDS, mni_brain_mask
from fmrisynth.data.nifti import read_image
from tests.prepare.conftest import brain, save

LAS = np.array([[-4.0, 0, 0, 92], [0, 4, 0, -128], [0, 0, 4, -76], [0, 0, 0, 1]])
RAS = np.array([[4.0, 0, 0, -92], [0, 4, 0, -128], [0, 0, 4, -76], [0, 0, 0, 1]])
SHAPE = (47, 56, 48)
PLACE = np.array([30.0, -20.0, 40.0])
"""MNI coordinates of a bright sphere; on the right, so that a flip is seen."""


def head(affine=LAS, shape=SHAPE, *, skull: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A brain of 1000 with a sphere of 3000 at `PLACE`, a skull around it, and its mask."""
    mask = brain(shape, affine)
    xyz = (affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]).T
    sphere = (np.linalg.norm(xyz - PLACE, axis=1) < 11).reshape(shape)
    texture = 20 * np.random.default_rng(0).standard_normal(shape)
    return np.where(mask, np.where(sphere, 3000, 1000) + texture, skull).astype(np.float32), mask.astype(np.uint8)


def write_hcp(root: Path, subject: str, *, affine=LAS, with_mask: bool = True) -> Path:
    image, mask = head(affine)
    folder = root / subject / "MNINonLinear"
    if with_mask:
        save(folder / "brainmask_fs.nii.gz", mask, affine)
    return save(folder / "T1w_restore_brain.nii.gz", image, affine)


def write_bids(
    root: Path, subject: str, session: str | None = None, *, space="MNI152NLin6Asym", res="_res-1", more=""
) -> Path:
    """An anat folder as fMRIPrep writes it: scalp included, the mask beside it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(
        json.dumps(
            {"Name": "t", "BIDSVersion": "1.8.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}
        )
    )
    image, mask = head(skull=2500.0)
    folder = root / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    stem = f"sub-{subject}" + (f"_ses-{session}" if session else "") + f"{more}_space-{space}{res}"
    save(folder / f"{stem}_desc-brain_mask.nii.gz", mask, LAS)
    return save(folder / f"{stem}_desc-preproc_T1w.nii.gz", image, LAS)


def prepare(source: Path, out: Path, *more: str, status: int = 0) -> Path:
    assert run(["prepare", str(source), str(out), "--unit", "anatomy", "--set", "split.all=train", *more]) == status
    return out


@pytest.mark.parametrize("affine", [LAS, RAS], ids=["LAS", "RAS"])
@pytest.mark.parametrize("resolution", [2, 3])
def test_a_place_in_the_brain_stays_where_it_is(affine, resolution, tmp_path):
    write_hcp(tmp_path / "hcp", "100307", affine=affine)
    (block,) = read_blocks(prepare(tmp_path / "hcp", tmp_path / "out", "--set", f"anatomy.resolution_mm={resolution}"))
    image = nib.load(block.path)
    assert image.shape == (*MNI_GRIDS[resolution].shape, 1)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    extra = np.clip(image.get_fdata()[..., 0] - 1200, 0, None)
    voxels = np.argwhere(extra > 0)
    weights = extra[tuple(voxels.T)]
    centre = nib.affines.apply_affine(image.affine, (weights[:, None] * voxels).sum(0) / weights.sum())
    np.testing.assert_allclose(centre, PLACE, atol=0.6)
    assert image.get_fdata()[(*np.rint(np.linalg.inv(image.affine) @ [*PLACE, 1])[:3].astype(int), 0)] > 2900


@pytest.mark.parametrize("mm", [1.0, 2.0, 3.0])
def test_grids_hold_the_brain_and_divide_by_16(mm):
    grid = MNI_GRIDS[mm]
    assert all(side % 16 == 0 for side in grid.shape)
    assert grid.voxel_mm == (mm, mm, mm)
    assert grid.resolution == f"{mm:g}"
    inside = mni_brain_mask(grid)
    whole_ml = (np.asarray(load_mni152_brain_mask(resolution=1).dataobj) > 0).sum() / 1000
    assert inside.sum() * mm**3 / 1000 == pytest.approx(whole_ml, rel=0 if mm == 1 else 3e-3)


def test_skull_and_extraction_make_no_difference(tmp_path):
    """Voxels are means of brain voxels: neither a bright skull nor the zeros of an extracted brain reach into them."""
    write_hcp(tmp_path / "hcp", "01")
    write_hcp(tmp_path / "unmasked", "01", with_mask=False)
    write_bids(tmp_path / "bids", "01")
    found = [read_blocks(prepare(tmp_path / name, tmp_path / f"{name}-out"))[0] for name in ("hcp", "unmasked", "bids")]
    one, *others = (block.load() for block in found)
    for other in others:
        np.testing.assert_array_equal(one.mask_XYZ, other.mask_XYZ)
        np.testing.assert_allclose(one.reference_XYZ, other.reference_XYZ, atol=0.2)
    rim = one.mask_XYZ & (one.reference_XYZ < 850)
    assert rim.sum() == 0  # the brain is 1000 and more everywhere
    keys = [
        json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text()) for block in found
    ]
    assert [k["BrainMask"] for k in keys[:2]] == ["brainmask_fs.nii.gz", "voxels of the image above 0"]
    assert keys[2]["SourceImage"].startswith("sub-01/anat/")
    assert keys[0]["IntensityUnits"] == "arbitrary, those of the source"


@pytest.fixture
def longitudinal(tmp_path) -> Path:
    """Two people in two sessions; ages in sessions.tsv, sexes and a diagnosis with a gap in participants.tsv."""
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        for session in ("base", "later"):
            write_bids(root, subject, session)
    (root / "participants.tsv").write_text(
        "participant_id\tsex\tage\tdiagnosis\nsub-01\tF\t60\tn/a\nsub-02\tM\t50\tAD\n"
    )
    (root / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tage\tscore\nses-base\t60.5\t28\nses-later\t63\tn/a\n"
    )
    return root


def test_sessions_attributes_and_missing_values(longitudinal, tmp_path):
    names = "anatomy.attributes=[sex,age,diagnosis,score]"
    ask = ["prepare", str(longitudinal), str(tmp_path / "out"), "--unit", "anatomy", "--set", names, "--seed", "3"]
    assert run([*ask, "--set", "split.train=0.5", "--set", "split.val=0.25", "--set", "split.test=0.25"]) == 0
    blocks = read_blocks(tmp_path / "out")
    assert [(b.subject, b.entities["ses"], b.condition) for b in blocks] == [
        (subject, session, "anatomy_t1w") for subject in ("01", "02") for session in ("base", "later")
    ]  # fmt: skip
    assert [dict(b.attributes) for b in blocks] == [
        {"sex": "F", "age": "60.5", "score": "28"}, {"sex": "F", "age": "63"},
        {"sex": "M", "age": "50", "diagnosis": "AD"}, {"sex": "M", "age": "50", "diagnosis": "AD"},
    ]  # fmt: skip
    assert len({b.split for b in blocks if b.subject == "01"}) == 1
    rows = read_tsv(tmp_path / "out" / "sub-02" / "sub-02_scans.tsv")
    assert [row["score"] for row in rows] == ["n/a", "n/a"]
    people = read_tsv(tmp_path / "out" / "participants.tsv")
    assert people[0] | {"split": ""} == {
        "participant_id": "sub-01", "sex": "F", "age": "60", "diagnosis": "n/a", "score": "n/a", "split": "", "n_blocks": "2",
    }  # fmt: skip


def test_attributes_reach_the_latents(longitudinal, tmp_path):
    from fmrisynth.data.latents import LatentDataset

    prepare(longitudinal, tmp_path / "out", "--set", "anatomy.attributes=[sex,age,diagnosis]")
    assert run(["tokenize", str(tmp_path / "out"), str(tmp_path / "latents"), "--preset", "anatomy"]) == 0
    rows = LatentDataset.open(tmp_path / "latents").rows
    assert [(r.condition, r.attributes["age"], r.attributes.get("diagnosis")) for r in rows] == [
        ("anatomy_t1w", "60.5", None), ("anatomy_t1w", "63", None), ("anatomy_t1w", "50", "AD"), ("anatomy_t1w", "50", "AD"),
    ]  # fmt: skip


def test_hcp_tables_are_read_with_their_own_spellings(tmp_path):
    write_hcp(tmp_path / "hcp", "100307")
    write_hcp(tmp_path / "hcp", "100408")
    tables = tmp_path / "open.csv", tmp_path / "restricted.csv"
    tables[0].write_text("Subject,Gender,Age,Handed\n100307,F,26-30,\n100408,M,31-35,95\n")
    tables[1].write_text("Subject,Age_in_Yrs,Family_ID\n100307,27,A\n100408,33,A\n")
    ask = ["--set", f"anatomy.tables=[{tables[0]}]", "--set", f"split.families={tables[1]}"]
    out = prepare(tmp_path / "hcp", tmp_path / "out", *ask, "--set", "anatomy.attributes=[sex,age,handed]")
    assert [dict(b.attributes) for b in read_blocks(out)] == [
        {"sex": "F", "age": "27"}, {"sex": "M", "age": "33", "handed": "95"},
    ]  # fmt: skip


def test_finished_people_are_kept_and_a_corrected_age_is_made_again(longitudinal, tmp_path, capsys):
    out = prepare(longitudinal, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in out.glob("sub-*/**/*.nii.gz")}
    prepare(longitudinal, out)
    assert {p: p.stat().st_mtime_ns for p in out.glob("sub-*/**/*.nii.gz")} == before
    table = longitudinal / "sub-01" / "sub-01_sessions.tsv"
    table.write_text(table.read_text().replace("60.5", "61.5"))
    capsys.readouterr()
    prepare(longitudinal, out)
    assert "attributes" in capsys.readouterr().out
    assert read_blocks(out, subjects=["01"])[0].attributes["age"] == "61.5"
    same = [p for p in before if "sub-02" in p.parts]
    assert [p.stat().st_mtime_ns for p in same] == [before[p] for p in same]


def test_a_dry_run_lists_and_writes_nothing(longitudinal, tmp_path, capsys):
    write_bids(longitudinal, "01", "base", more="_run-2")
    prepare(longitudinal, tmp_path / "out", "--dry-run")
    said = capsys.readouterr().out
    assert "sub-01 (train): 2 T1w" in said
    assert "47 x 56 x 48" in said
    assert "sex F, age 63" in said
    assert "is a T1w of the same session and is not used" in said
    assert "4 T1w on a 48 x 64 x 64 x 3 mm grid" in said
    assert not (tmp_path / "out").exists()


def test_the_best_space_and_resolution_is_taken(tmp_path):
    root = tmp_path / "bids"
    write_bids(root, "01", space="MNI152NLin2009cAsym", res="")
    write_bids(root, "01", res="_res-2")
    best = write_bids(root, "01", res="")
    (block,) = read_blocks(prepare(root, tmp_path / "out"))
    assert block.source == best.relative_to(root).as_posix()
    assert block.space == "MNI152NLin6Asym"


def without_mask(root: Path) -> None:
    next((root / "sub-01").rglob("*desc-brain_mask.nii.gz")).unlink()


def empty_mask(root: Path) -> None:
    save(next((root / "sub-01").rglob("*desc-brain_mask.nii.gz")), np.zeros(SHAPE, np.uint8), LAS)


def mask_elsewhere(root: Path) -> None:
    save(next((root / "sub-01").rglob("*desc-brain_mask.nii.gz")), head(RAS)[1], RAS)


def rewritten(change):
    def damage(root: Path) -> None:
        path = next((root / "sub-01").rglob("*T1w.nii.gz"))
        image, mask = head(skull=2500.0)
        image, affine = change(image.copy())
        save(path, image, affine)
        save(next(path.parent.glob("*desc-brain_mask.nii.gz")), mask, affine)

    return damage


def with_nan(image):
    image[23, 28, 24] = np.nan
    return image, LAS


def far_away(image):
    return image, LAS + np.array([[0, 0, 0, 90], [0, 0, 0, 60], [0, 0, 0, 0], [0, 0, 0, 0]])


def rotated(image):
    c, s = np.cos(0.2), np.sin(0.2)
    return image, np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ LAS


def flat(image):
    return np.ones_like(image), LAS


def only_its_own_space(root: Path) -> None:
    for path in list((root / "sub-01").rglob("*_space-MNI152NLin6Asym_*")):
        path.rename(path.with_name(path.name.replace("MNI152NLin6Asym_res-1", "T1w")))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_mask, "expected a brain mask beside it"),
        (empty_mask, "the brain is empty"),
        (mask_elsewhere, "is not on the grid of"),
        (rewritten(with_nan), "1 voxels inside the brain are NaN"),
        (rewritten(far_away), "of the MNI brain, expected at least 50%"),
        (rewritten(rotated), "rotated by 11.5 degrees"),
        (rewritten(flat), "expected intensities that differ"),
        (only_its_own_space, "has no T1w image in MNI space, only others"),
    ],
    ids=lambda value: None,
)
def test_what_cannot_be_right_fails_alone(damage, said, tmp_path, capsys):
    root = tmp_path / "bids"
    for subject in ("01", "02"):
        write_bids(root, subject)
    damage(root)
    out = prepare(root, tmp_path / "out", status=1)
    assert said in " ".join(capsys.readouterr().err.split())
    assert [block.subject for block in read_blocks(out)] == ["02"]


def test_an_hcp_subject_without_t1w_fails_alone(tmp_path, capsys):
    write_hcp(tmp_path / "hcp", "100307")
    (tmp_path / "hcp" / "100408" / "MNINonLinear" / "Results").mkdir(parents=True)
    out = prepare(tmp_path / "hcp", tmp_path / "out", status=1)
    assert "participant 100408 has no T1w image" in capsys.readouterr().err
    assert [block.subject for block in read_blocks(out)] == ["100307"]


def test_a_bad_session_can_be_left_out(longitudinal, tmp_path):
    next((longitudinal / "sub-01" / "ses-base").rglob("*mask.nii.gz")).unlink()
    out = prepare(longitudinal, tmp_path / "out", "--set", "on_bad_run=skip")
    assert [(b.subject, b.entities["ses"]) for b in read_blocks(out)] == [
        ("01", "later"),
        ("02", "base"),
        ("02", "later"),
    ]
    assert "left out" in (out / "logs" / "prepare_report.json").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "anatomy.attributes=[diagnose]"], "no table of people has a column 'diagnose'"),
        (["--set", "anatomy.attributes=[condition]"], "cannot be the name of an attribute"),
        (["--set", "anatomy.resolution_mm=4"], "1, 2 or 3 mm"),
        (["--condition", "motor_rh"], "not for anatomies"),
        (["--native"], "not for anatomies"),
    ],
)
def test_wrong_requests_are_refused(longitudinal, more, said, tmp_path, capsys):
    prepare(longitudinal, tmp_path / "out", *more, status=2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_t1w_is_refused(fmriprep_tree, tmp_path, capsys):
    prepare(fmriprep_tree, tmp_path / "out", status=1)
    assert "expected T1w images" in capsys.readouterr().err


def test_participants_of_the_raw_data_are_found(tmp_path):
    """fMRIPrep's folder alone has no table of people; the raw data above it have one."""
    write_bids(tmp_path / "study" / "derivatives" / "fmriprep", "01")
    (tmp_path / "study" / "participants.tsv").write_text("participant_id\tAge\tSex\nsub-01\t44\tF\n")
    (block,) = read_blocks(prepare(tmp_path / "study" / "derivatives" / "fmriprep", tmp_path / "out"))
    assert dict(block.attributes) == {"sex": "F", "age": "44"}
    assert read_image(block.mask_path, ndim=3).shape == MNI_3MM.shape
