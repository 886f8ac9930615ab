"""``run_glm`` on small block datasets written to disk."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.bids.naming import Entities
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import BlockData, finish_subject, read_blocks, write_block
from fmrisynth.data.grid import make_grid
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm import run_glm
from fmrisynth.glm.design import window_design
from fmrisynth.glm.effects import subject_effects
from fmrisynth.glm.group import SINGLE_SUBJECT, group_map

GRID = make_grid((16, 16, 16), np.diag([3.0, 3.0, 3.0, 1.0]), "MNI152NLin6Asym")
TR_S, N_FRAMES = 1.44, 12
QUIET = GlmConfig(reports=False)


def make_dataset(root, effects, n_subjects=4, n_blocks=2, noise=0.2, grid=GRID, seed=3, split=None):
    """Blocks with known percent effects: {condition: effect_XYZ}; returns the mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(grid.shape, bool)
    mask[3:13, 3:13, 4:12] = True
    regressor = window_design(0.0, 18.0, N_FRAMES, TR_S).matrix_TP[:, 0]
    for number in range(n_subjects):
        subject = f"{number + 1:02d}"
        reference = np.where(mask, 10_000 * (1 + 0.2 * rng.random(grid.shape)), 0).astype(np.float32)
        blocks = []
        for condition, effect in effects.items():
            task, stem = condition.split("_", 1)
            for run in range(n_blocks):
                percent = effect[..., None] * regressor + noise * rng.standard_normal((*grid.shape, N_FRAMES))
                bold = (reference[..., None] * (1 + percent / 100)).astype(np.float32)
                entities = Entities(sub=subject, task=task, run=run + 1, space=grid.space, res=grid.resolution)
                blocks.append(
                    write_block(root, entities, stem.replace("_", ""), BlockData(bold, reference, mask), grid,
                                condition=condition, onset_s=0.0, duration_s=18.0, tr_s=TR_S, split=split)
                )  # fmt: skip
        finish_subject(root, subject, blocks)
    return mask


@pytest.fixture
def effects():
    rng = np.random.default_rng(8)
    return {name: rng.standard_normal(GRID.shape) for name in ("motor_rh", "motor_lh", "gambling_loss")}


def test_planted_effects_come_back_in_percent(tmp_path, effects):
    mask = make_dataset(tmp_path / "data", effects)
    summary = run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    assert not summary.failed
    path = (
        tmp_path
        / "out/group/task-gambling_space-MNI152NLin6Asym_res-3_contrast-gamblingLoss_stat-effect_statmap.nii.gz"
    )
    found = nib.load(path).get_fdata()
    np.testing.assert_allclose(found[mask], effects["gambling_loss"][mask], atol=0.35)
    assert np.corrcoef(found[mask], effects["gambling_loss"][mask])[0, 1] > 0.99
    assert (found[~mask] == 0).all()


def test_contrast_by_formula_is_the_difference_of_the_maps(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=3)
    run_glm(tmp_path / "data", tmp_path / "out", replace_contrasts("motor_rh - motor_lh", "motor_rh", "motor_lh"))
    read = {
        name: nib.load(next((tmp_path / "out/group").glob(f"*contrast-{name}_stat-effect*.nii.gz"))).get_fdata()
        for name in ("motorRhMinusMotorLh", "motorRh", "motorLh")
    }
    np.testing.assert_allclose(read["motorRhMinusMotorLh"], read["motorRh"] - read["motorLh"], atol=1e-5)


def replace_contrasts(*formulas):
    return QUIET.model_copy(update={"contrasts": formulas})


def test_a_second_call_does_nothing_new_and_gives_the_same_group_map(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=3)
    run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    maps = sorted((tmp_path / "out").rglob("sub-*_statmap.nii.gz"))
    before = {path: path.stat().st_mtime_ns for path in maps}
    group = {path: path.read_bytes() for path in sorted((tmp_path / "out/group").glob("*.nii.gz"))}
    run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    assert before == {path: path.stat().st_mtime_ns for path in maps}
    assert group == {path: path.read_bytes() for path in group}


def test_other_settings_are_refused_by_name_and_forced(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=2)
    run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii.gz")}
    other = QUIET.model_copy(update={"drift": "linear"})
    with pytest.raises(UsageError, match="drift was None, is linear"):
        run_glm(tmp_path / "data", tmp_path / "out", other, participant_labels=["01"])
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii.gz")}
    run_glm(tmp_path / "data", tmp_path / "out", other, force=True)
    run_glm(tmp_path / "data", tmp_path / "fresh", other)
    for path in (tmp_path / "fresh").rglob("*.nii.gz"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "fresh")).read_bytes() == path.read_bytes()


def test_a_contrast_that_no_subject_can_do_is_refused_in_one_sentence(tmp_path, effects, caplog):
    root, done = tmp_path / "data", iter(effects.items())
    make_dataset(root, dict([next(done)]), n_subjects=3)
    make_dataset(root, dict([next(done)]), n_subjects=2)  # in the place of the first two
    with pytest.raises(
        UsageError, match="no subject has more than 1 of the 2 conditions of 'motor_rh - motor_lh'"
    ) as told:
        run_glm(root, tmp_path / "out", replace_contrasts("motor_rh - motor_lh"))
    assert "--subjects N" in str(told.value)
    assert not caplog.records
    assert not (tmp_path / "out").exists()
    summary = run_glm(root, tmp_path / "out", replace_contrasts("motor_rh"))
    assert summary.failed == {s: "it has none of the contrasts, only blocks of motor_lh." for s in ("01", "02")}


def test_one_subject_falls_back_and_says_so(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=1)
    summary = run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    assert any(SINGLE_SUBJECT in line for line in summary.lines)


def test_a_damaged_subject_fails_alone(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=3)
    victim = next((tmp_path / "data/sub-02").rglob("*_bold.nii.gz"))
    victim.write_bytes(victim.read_bytes()[:2000])
    summary = run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    assert list(summary.failed) == ["02"]
    assert victim.name in summary.failed["02"]
    assert list((tmp_path / "out/group").glob("*stat-z*"))


def test_copies_have_no_group_z_and_are_named(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=1, noise=0.05)
    for subject in ("02", "03"):
        copy_subject(tmp_path / "data", "01", subject)
    summary = run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    assert any("identical" in line for line in summary.lines)


def copy_subject(root, source, target):
    blocks = []
    for block in read_blocks(root, subjects=[source]):
        found = block.entities
        entities = Entities(
            sub=target, task=found["task"], run=int(found["run"]), space=found["space"], res=found.get("res")
        )
        copy = write_block(
            root, entities, found["desc"], block.load(), block.load_grid(), condition=block.condition,
            onset_s=block.onset_s, duration_s=block.duration_s, tr_s=block.tr_s,
        )  # fmt: skip
        blocks.append(replace(copy, split=block.split))
    finish_subject(root, target, blocks)


def test_misspelt_condition_and_empty_split(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=2, n_blocks=1)
    with pytest.raises(UsageError, match="did you mean motor_rh"):
        run_glm(tmp_path / "data", tmp_path / "out", replace_contrasts("motor_hr - motor_lh"))
    with pytest.raises(UsageError, match="split"):
        run_glm(tmp_path / "data", tmp_path / "out", QUIET.model_copy(update={"split": "test"}))
    with pytest.raises(FmrisynthError):
        run_glm(tmp_path / "nothing", tmp_path / "out", QUIET)


def test_subjects_one_by_one_then_the_group_equal_one_call(tmp_path, effects):
    make_dataset(tmp_path / "data", effects)
    run_glm(tmp_path / "data", tmp_path / "whole", QUIET)
    for number in range(1, 5):
        run_glm(tmp_path / "data", tmp_path / "parts", QUIET, participant_labels=[f"{number:02d}"], group=False)
    assert not list((tmp_path / "parts").glob("group/*"))
    run_glm(tmp_path / "data", tmp_path / "parts", QUIET)
    for path in (tmp_path / "whole").rglob("*.nii.gz"):
        other = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
        np.testing.assert_array_equal(nib.load(path).get_fdata(), nib.load(other).get_fdata())
    with pytest.raises(UsageError, match="there is no sub-09"):
        run_glm(tmp_path / "data", tmp_path / "parts", QUIET, participant_labels=["09"])


def test_table_in_memory_equals_the_files(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=3)
    run_glm(tmp_path / "data", tmp_path / "out", QUIET)
    table = subject_effects(read_blocks(tmp_path / "data"), QUIET)
    assert table.conditions == list(effects)
    assert table.effects_RV.dtype == np.float32
    for condition, contrast in (("motor_rh", "motorRh"), ("gambling_loss", "gamblingLoss")):
        ours = group_map(table, condition).estimate.z
        path = next((tmp_path / "out/group").glob(f"*contrast-{contrast}_stat-z*.nii.gz"))
        np.testing.assert_allclose(nib.load(path).get_fdata()[table.mask_XYZ], ours, atol=1e-4)


def test_page_of_a_subject(tmp_path, effects):
    make_dataset(tmp_path / "data", effects, n_subjects=1, n_blocks=1)
    run_glm(tmp_path / "data", tmp_path / "out", GlmConfig())
    text = (tmp_path / "out/sub-01.html").read_text()
    assert text.count("data:image/png;base64,") == 4
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize(
    "options", [{"noise_model": "ar1"}, {"smoothing_fwhm_mm": 6.0}, {"drift": "linear"}, {"hrf": "glover"}]
)
def test_options_change_the_map_and_keep_the_effect(tmp_path, effects, options):
    mask = make_dataset(tmp_path / "data", {"motor_rh": np.ones(GRID.shape)}, n_subjects=2, n_blocks=1)
    plain = subject_effects(read_blocks(tmp_path / "data"), QUIET)
    other = subject_effects(read_blocks(tmp_path / "data"), QUIET.model_copy(update=options))
    assert not np.allclose(plain.effects_RV, other.effects_RV)
    assert abs(other.effects_RV.mean() - 1.0) < 0.3
    assert plain.mask_XYZ.sum() == mask.sum()


def test_a_dark_voxel_is_left_out(tmp_path):
    make_dataset(tmp_path / "data", {"motor_rh": np.zeros(GRID.shape)}, n_subjects=2, n_blocks=1)
    block = read_blocks(tmp_path / "data")[0]
    data = block.load()
    data.reference_XYZ[5, 5, 5] = 1.0
    found = block.entities
    entities = Entities(sub="01", task="motor", run=int(found["run"]), space=found["space"], res=found["res"])
    write_block(block.root, entities, found["desc"], data, block.load_grid(), condition="motor_rh", onset_s=0.0,
                duration_s=18.0, tr_s=TR_S)  # fmt: skip
    table = subject_effects(read_blocks(tmp_path / "data"), QUIET)
    assert not table.mask_XYZ[5, 5, 5]
    assert np.isfinite(table.effects_RV).all()
