"""Peaks and user tables."""

import numpy as np
import pytest
import yaml

from fmrisynth.config.simulate import FamilyConfig, ResponseConfig, SimulateConfig
from fmrisynth.data.nifti import write_image
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.simulate import Phantom
from fmrisynth.simulate.activations import EVENT_LABELS, PeakActivations, load_peaks, read_activation_table
from fmrisynth.simulate.randomness import Traits
from fmrisynth.simulate.space import load_templates, sample_template

SAME = ResponseConfig(
    subject_sd=0, peak_sd=0, condition_peak_sd=0, idiosyncratic_percent=0, location_sd_mm=0, missing_share=0,
    split_share=0, hrf_delay_sd_s=0, region_delay_sd_s=0, width_sd=0,
)  # fmt: skip


def test_every_condition_and_component_is_used_and_has_a_source():
    from importlib import resources

    content = yaml.safe_load((resources.files("fmrisynth.simulate") / "activations.yaml").read_text())
    assert set(content["conditions"]) == set(EVENT_LABELS)
    used = {name for weights in content["conditions"].values() for name in weights}
    assert used == set(content["components"])
    for component in content["components"].values():
        assert len(component["source"]) > 20


def test_peaks_lie_in_the_brain():
    peaks = load_peaks()
    nearby = [peaks.centres_P3 + np.array(step) for step in ((0, 0, 0), (0, 0, 6), (0, 6, 0), (0, -6, 0), (0, 0, -6))]
    inside = np.max([sample_template(load_templates()["brain"], points) for points in nearby], axis=0)
    assert (inside > 0.5).all()


def test_right_hand_is_left_motor_cortex_and_right_cerebellum(phantom):
    from fmrisynth.simulate.truth import group_maps

    motor, story = group_maps(phantom, ["motor_rh", "language_story"])
    points = phantom.space.coordinates_V3

    def mean(values, centre):
        return values[((points - centre) ** 2).sum(1) < 8**2].mean()

    assert mean(motor, (-38, -24, 56)) > 0.5 > mean(motor, (38, -24, 56))
    assert mean(motor, (18, -52, -21)) > 2 * abs(mean(motor, (-18, -52, -21)))
    assert mean(story, (58, -14, 2)) > 0.5


def test_people_miss_split_and_move_peaks(phantom):
    """Against someone with all peaks where the table has them: what is missing is missing, what is split is two."""
    space = phantom.space
    lone = PeakActivations(np.array([[0.0, -20.0, 20.0]]), np.array([14.0]), np.ones((len(EVENT_LABELS), 1)))
    grey = np.ones(len(space.support), np.float32)

    def maps(n, **change):
        config = SAME.model_copy(update=change)
        return np.stack(
            [lone.subject(space, Traits(1, i, FamilyConfig()), grey, config).percent_KV[0] for i in range(n)]
        )

    usual = maps(1)[0]
    missing = (maps(40, missing_share=0.5) == 0).all(axis=1)
    assert 10 <= missing.sum() <= 30
    assert (maps(10, split_share=1.0).max(axis=1) < 0.85 * usual.max()).all()  # the same response over more ground
    there = maps(40, location_sd_mm=4.0)
    centres = there @ space.coordinates_V3 / there.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(centres.std(axis=0), 4.0, rtol=0.35)


def test_the_groups_truth_is_the_mean_over_people(phantom):
    space, config = phantom.space, phantom.config.response
    grey = sample_template(load_templates()["gm"], space.coordinates_V3)
    people = [load_peaks().subject(space, Traits(1, i, FamilyConfig()), grey, config).percent_KV for i in range(40)]
    mean = np.mean(people, axis=0)
    truth = load_peaks().group_map(space, grey, config)
    for label in ("gambling_loss", "language_story", "motor_rh"):
        row = EVENT_LABELS.index(label)
        assert np.corrcoef(mean[row], truth[row])[0, 1] > 0.95
        assert (mean[row] @ truth[row]) / (truth[row] @ truth[row]) == pytest.approx(1.0, abs=0.12)


def table(path, header, rows):
    path.write_text("\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


@pytest.fixture
def atlas(tmp_path):
    """Left and right half of the brain, labels 3 and 8, on a 4 mm MNI grid."""
    shape = (46, 55, 46)
    affine = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])
    x = 90 - 4.0 * np.arange(shape[0])
    labels = np.broadcast_to(np.where(x < 0, 3, 8)[:, None, None], shape)
    write_image(tmp_path / "atlas.nii.gz", labels, affine, dtype="uint8")
    return tmp_path / "atlas.nii.gz"


def test_a_table_over_an_atlas_is_the_truth(tmp_path, atlas):
    path = table(tmp_path / "t.tsv", ("parcel", "GAMBLING:punish", "motor_rh"), [(3, 1.5, -0.5), (8, 0.0, 0.7)])
    config = SimulateConfig(resolution_mm=3, activations=path, atlas=atlas, response=SAME)
    subject = Phantom(config).subject(0)
    points = subject.phantom.space.coordinates_V3
    loss = subject.responses.percent_KV[EVENT_LABELS.index("gambling_loss")]
    rh = subject.responses.percent_KV[EVENT_LABELS.index("motor_rh")]
    left, right = points[:, 0] < -3, points[:, 0] > 3
    np.testing.assert_allclose(loss[left], 1.5, rtol=1e-6)
    np.testing.assert_allclose(loss[right], 0.0, rtol=1e-6)
    np.testing.assert_allclose(rh[right], 0.7, rtol=1e-6)
    group = subject.phantom.activations.group_map(subject.phantom.space, subject.anatomy.grey_V, config.response)
    np.testing.assert_array_equal(group, subject.responses.percent_KV)
    assert (subject.responses.percent_KV[EVENT_LABELS.index("language_story")] == 0).all()


def test_a_table_varies_between_subjects(tmp_path, atlas):
    path = table(tmp_path / "t.tsv", ("parcel", "motor_rh"), [(3, 1.0), (8, 0.5)])
    phantom = Phantom(SimulateConfig(resolution_mm=3, activations=path, atlas=atlas))
    one, two = (phantom.subject(i).responses.percent_KV[EVENT_LABELS.index("motor_rh")] for i in (0, 1))
    assert np.abs(one - two).max() > 0.1


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("region", "motor_rh"), [(1, 1)], "first 'parcel'"),
        (("parcel", "motor_rx"), [(1, 1)], "did you mean"),
        (("parcel", "motor_rh"), [(1, "x")], "row 2"),
        (("parcel", "motor_rh"), [(1, "nan")], "not finite"),
        (("parcel", "motor_rh"), [(1, 1), (1, 2)], "twice"),
        (("parcel", "motor_rh"), [(1, 1), (2, -40)], "at most 10 in size; found 40"),
        (("parcel", "motor_rh", "MOTOR:rh"), [(1, 1, 1)], "two columns"),
    ],
)
def test_bad_tables_are_refused(tmp_path, header, rows, message):
    with pytest.raises((FmrisynthError, UsageError), match=message):
        read_activation_table(table(tmp_path / "t.tsv", header, rows))


def test_parcels_must_be_in_the_atlas(tmp_path, atlas):
    path = table(tmp_path / "t.tsv", ("parcel", "motor_rh"), [(3, 1.0), (77, 0.5)])
    with pytest.raises(FmrisynthError, match="parcel 77"):
        Phantom(SimulateConfig(activations=path, atlas=atlas))
