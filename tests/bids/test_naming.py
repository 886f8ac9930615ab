"""File names cannot leave the dataset."""

import pytest

from fmrisynth.bids.naming import Entities
from fmrisynth.errors import UsageError


@pytest.mark.parametrize("label", ["", "..", "a/b", "a_b", "a-b", "01\n", "é", "a b", "01/../.."])
def test_labels_that_no_bids_name_can_hold_are_refused(label):
    with pytest.raises(UsageError, match="letters and digits"):
        Entities(sub=label)
    with pytest.raises(UsageError, match="letters and digits"):
        Entities(sub="01").name("bold", ".nii.gz", desc=label)


def test_entities_come_in_bids_order():
    entities = Entities(sub="01", task="rest", run=2, space="MNI152NLin6Asym", res="3")
    assert entities.name("bold", ".nii.gz", desc="preproc") == (
        "sub-01_task-rest_run-02_space-MNI152NLin6Asym_res-3_desc-preproc_bold.nii.gz"
    )
