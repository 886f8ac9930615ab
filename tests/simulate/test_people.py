"""Age, sex, site and diagnosis: who people are, and that the data have the planted effects."""

from dataclasses import replace

import numpy as np
import pytest

from fmrisynth.config.simulate import FamilyConfig
from fmrisynth.simulate.people import AGES, SITES, draw_person
from fmrisynth.simulate.randomness import Traits
from fmrisynth.simulate.truth import anatomy_effects


def test_people_cover_ages_sexes_and_sites():
    people = [draw_person(Traits(1, i, FamilyConfig())) for i in range(600)]
    ages = [p.age for p in people]
    assert (min(ages), max(ages)) == AGES
    assert np.mean(ages) == pytest.approx(np.mean(AGES), abs=2)
    assert np.mean([p.sex == "F" for p in people]) == pytest.approx(0.5, abs=0.07)
    for site in SITES:
        assert np.mean([p.site == site for p in people]) == pytest.approx(1 / len(SITES), abs=0.07)


def test_only_where_it_is_asked_for_are_people_ill():
    well, some = ([draw_person(Traits(1, i, FamilyConfig()), share) for i in range(600)] for share in (0.0, 0.3))
    assert {p.diagnosis for p in well} == {None}
    assert np.mean([p.diagnosis == "patient" for p in some]) == pytest.approx(0.3, abs=0.06)
    assert [replace(p, diagnosis=None) for p in some] == well  # nothing else about them changes


def test_twins_are_of_one_age():
    families = FamilyConfig(size=2)
    pairs = [[draw_person(Traits(1, 2 * f + b, families)) for b in (0, 1)] for f in range(40)]
    assert all(a.age == b.age for a, b in pairs)
    assert all(a == b for a, b in pairs[::2])  # identical twins
    assert any(a.sex != b.sex for a, b in pairs[1::2])


def as_if(phantom, index, **changes):
    """A subject's image (percent of the grand mean) if its age, sex, site or diagnosis were another."""
    subject = phantom.subject(index)
    subject.person = replace(subject.person, **changes)
    mean_V = np.mean(list(subject.anatomy.baseline.values()), axis=0)
    return 100 * mean_V / mean_V[subject.anatomy.mask_V].mean()


@pytest.mark.parametrize(
    ("effect", "low", "high", "least_r"),
    [
        ("age", {"age": 45}, {"age": 55}, 0.7),
        ("sex", {"sex": "F"}, {"sex": "M"}, 0.3),  # dipoles at edges, which lie elsewhere in everyone
        ("site_C", {"site": "A"}, {"site": "C"}, 0.9),
        ("diagnosis", {"diagnosis": "control"}, {"diagnosis": "patient"}, 0.7),
    ],
)
def test_the_images_have_the_planted_effects(phantom, effect, low, high, least_r):
    """The stored truth is the effect on the typical brain; people have it at their own places, hence blurred on average."""
    found = np.mean([as_if(phantom, i, **high) - as_if(phantom, i, **low) for i in range(6)], axis=0)
    truth = anatomy_effects(phantom)
    expected = truth[effect] - (truth["site_A"] if effect == "site_C" else 0)
    inside = phantom.space.depth_mm > 3
    assert np.corrcoef(found[inside], expected[inside])[0, 1] > least_r
    assert 0.15 < (found[inside] @ expected[inside]) / (expected[inside] @ expected[inside]) < 1.2


def test_age_can_be_seen_in_a_cohort(phantom):
    """Regression on age over 24 people, among all their differences: more CSF in the middle of the brain."""
    middle = (np.abs(phantom.space.coordinates_V3[:, 0]) < 22) & (phantom.space.depth_mm > 25)
    people = [phantom.subject(i) for i in range(24)]
    volume = [p.anatomy.csf_V[middle].sum() for p in people]
    assert np.corrcoef([p.person.age for p in people], volume)[0, 1] > 0.4
    old, young = phantom.subject(0), phantom.subject(0)
    old.person, young.person = (replace(old.person, age=age) for age in (75, 25))
    assert old.anatomy.csf_V[middle].sum() > 1.15 * young.anatomy.csf_V[middle].sum()


def test_a_t1w_is_the_same_anatomy_in_another_contrast(subject):
    image_V, brain_V = subject.t1w()
    np.testing.assert_array_equal(brain_V, subject.anatomy.mask_V)
    grey, csf = subject.anatomy.grey_V, subject.anatomy.csf_V
    white = np.clip(1 - grey - csf, 0, 1)
    levels = [np.median(image_V[brain_V & (share > 0.95)]) for share in (white, grey, csf)]
    assert levels[0] > 1.15 * levels[1] > 2 * levels[2]
    epi = subject.anatomy.baseline["LR"]
    assert np.median(epi[brain_V & (csf > 0.95)]) > np.median(epi[brain_V & (white > 0.95)])
    np.testing.assert_array_equal(subject.t1w()[0], image_V)


def test_no_signal_is_lost_above_the_sinuses(subject):
    lost = subject.anatomy.dephasing_V > 0.3
    inside = subject.anatomy.mask_V & (subject.anatomy.grey_V > 0.9)
    means = [
        np.mean(v[inside & lost]) / np.mean(v[inside & ~lost])
        for v in (subject.t1w()[0], subject.anatomy.baseline["LR"])
    ]
    assert means[0] > 0.93
    assert means[1] < 0.8


def test_sessions_of_a_t1w_differ_by_noise_and_age():
    from fmrisynth.config.simulate import SimulateConfig
    from fmrisynth.simulate import Phantom

    phantom = Phantom(SimulateConfig(seed=7, layout="anatomy", sessions=3, years_between=20))
    person = phantom.subject(3)
    (first, brain_V), (second, _), (third, _) = (person.t1w(session) for session in range(3))
    assert person.at_session(2).age == person.person.age + 40
    deep = brain_V & (phantom.space.depth_mm > 25)
    dark = [np.mean(image[deep] < 500) for image in (first, second, third)]
    assert dark[0] < dark[1] < dark[2]  # ventricles widen
    white = phantom.subject(3).anatomy.grey_V + phantom.subject(3).anatomy.csf_V < 0.01
    change = (second / first)[white & brain_V]
    assert 0.004 < change.std() < 0.02  # 0.025 / sqrt(27) in each, and a little movement of tissue
