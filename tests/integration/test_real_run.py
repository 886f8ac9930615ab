"""The chain on one real full-size run in scanner space (studyforrest localizer), through the command line."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks


@pytest.mark.slow
def test_native_chain_on_a_real_run(shared_data, tmp_path):
    source = shared_data("studyforrest-localizer")
    blocks, latents, model = tmp_path / "blocks", tmp_path / "latents", tmp_path / "model"
    synthetic, maps, report = tmp_path / "synthetic", tmp_path / "maps", tmp_path / "report"
    assert run(["prepare", str(source), str(blocks), "--native", "--set", "split.all=train"]) == 0
    assert len(read_blocks(blocks)) == 12
    assert run(["tokenize", str(blocks), str(latents), "--set", "report=false"]) == 0
    assert run(["train", str(latents), str(model), "--preset", "smoke"]) == 0
    ask = ["--checkpoint", str(model), "--condition", "oneback_face", "--n", "4"]
    assert run(["sample", str(synthetic), *ask]) == 0
    samples = read_blocks(synthetic)
    assert len(samples) == 4
    assert samples[0].load_grid().same_as(read_blocks(blocks)[0].load_grid())
    assert run(["glm", str(synthetic), str(maps)]) == 0
    z = nib.load(next((maps / "group").glob("*contrast-onebackFace_stat-z_statmap.nii.gz"))).get_fdata()
    assert np.isfinite(z).any()
    assert run(["evaluate", str(report), "--real", str(blocks), "--synthetic", str(synthetic)]) == 0
    assert json.loads((report / "metrics.json").read_text())


def test_scanner_space_without_native_is_refused(shared_data, tmp_path, capsys):
    source = shared_data("studyforrest-localizer")
    assert run(["prepare", str(source), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "fMRIPrep" in error
    assert "--native" in error
    assert not (tmp_path / "out" / "sub-02").exists()
