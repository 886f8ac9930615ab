"""One percent signal change, and one floor under it, for tokenizers, blocks and runs."""

from __future__ import annotations

import numpy as np

from fmrisynth.data.blocks import BlockData
from fmrisynth.data.normalisation import normalise
from fmrisynth.data.percent import MIN_REFERENCE_FRACTION, percent_change, usable_voxels
from fmrisynth.glm.windows import percent_signal


def test_one_number_everywhere(rng):
    mask = np.ones((4, 4, 4), bool)
    reference = rng.uniform(9000, 11000, mask.shape).astype(np.float32)
    reference[0, 0, :2] = [100.0, np.nan]  # hardly any signal, and none
    bold = reference[..., None] * (1 + 0.01 * rng.standard_normal((*mask.shape, 12))).astype(np.float32)
    usable = usable_voxels(reference, mask)
    assert usable.sum() == 62
    data = BlockData(bold, reference, mask)
    percent_TV = percent_signal(data, usable)
    np.testing.assert_array_equal(percent_TV.T, percent_change(bold[usable], reference[usable][:, None]))
    np.testing.assert_allclose(normalise(bold, reference, mask, "dynamics")[usable], percent_TV.T, rtol=1e-6, atol=1e-6)
    assert (normalise(bold, reference, mask, "dynamics")[~usable] == 0).all()


def test_the_floor_is_a_fraction_of_the_median():
    reference = np.array([100.0, 100.0, 100.0, 4.9, 5.1, -3.0, *[100.0] * 9])
    mask = np.ones(15, bool)
    assert usable_voxels(reference, mask)[:6].tolist() == [True, True, True, False, True, False]
    assert usable_voxels(reference, mask, 0.0)[:6].tolist() == [True, True, True, True, True, False]
    assert MIN_REFERENCE_FRACTION == 0.05
    assert not usable_voxels(reference, ~mask).any()
