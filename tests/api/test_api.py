"""fmrisynth in Python: light to import, the same samples as the command line, and results with tables and pictures."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest

import fmrisynth as fs
from fmrisynth import api
from fmrisynth.cli.main import run
from fmrisynth.errors import UsageError
from tests.sample.test_run import digest_tree

FEW_STEPS = 2


@pytest.fixture(scope="module")
def samples() -> fs.Samples:
    return fs.load().sample(["gambling_loss", "motor_rh"], n=1, seed=7, steps=FEW_STEPS)


def test_the_import_is_light():
    code = (
        "import time; start = time.perf_counter(); import fmrisynth as fs; dir(fs); end = time.perf_counter(); import sys; "
        "heavy = {'numpy', 'torch', 'pandas', 'nibabel', 'nilearn', 'pydantic'} & set(sys.modules); print(end - start, *heavy)"
    )
    seconds, *heavy = min(
        (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)
        ),
        key=lambda words: float(words[0]),
    )
    assert heavy == []
    assert float(seconds) < 0.3


@pytest.mark.parametrize("name", fs.COMMANDS)
def test_a_command_is_its_package_and_can_be_called(name):
    package = getattr(fs, name)
    assert inspect.ismodule(package)
    assert callable(package)
    assert getattr(api, name).__doc__
    if name == "check":
        return  # it has no settings
    with pytest.raises(UsageError, match="there is no setting named 'nonsense'"):
        package(*["nowhere"] * (2 if name in ("prepare", "tokenize", "train", "glm", "embed") else 1), nonsense=1,
                **({"real": "a", "synthetic": "b"} if name == "evaluate" else {}))  # fmt: skip


def test_the_same_samples_as_the_command_line(samples, tmp_path):
    asked = ["--condition", "gambling_loss", "--condition", "motor_rh", "--seed", "7", "--steps", str(FEW_STEPS)]
    assert run(["sample", str(tmp_path / "line"), *asked]) == 0
    samples.save(tmp_path / "python")
    assert digest_tree(tmp_path / "python") == digest_tree(tmp_path / "line")
    # Either goes on with the folder of the other.
    assert samples.save(str(tmp_path / "line")).to_frame()["condition"].tolist() == ["gambling_loss", "motor_rh"]


def test_samples_know_what_they_are(samples):
    assert samples.bold.shape == (2, *samples.mask.shape, 12)
    assert (samples.bold[:, ~samples.mask] == 0).all()
    assert samples.conditions == ["gambling_loss", "motor_rh"]
    assert "phantom" in repr(samples)
    assert samples.to_frame()["seed"].nunique() == 2
    assert samples.plot(1)._repr_png_().startswith(b"\x89PNG")


def test_nilearn_takes_them_as_they_are(samples):
    from nilearn.glm.first_level import FirstLevelModel

    image = samples.images[0]
    assert image.header.get_zooms() == pytest.approx((3, 3, 3, 1.44))
    assert np.shares_memory(np.asarray(image.dataobj), samples.bold)
    model = FirstLevelModel(t_r=samples.tr_s, mask_img=samples.mask_image, drift_model=None, noise_model="ols")
    fitted = model.fit(image, samples.events[0])
    effect = fitted.compute_contrast("gambling_loss", output_type="effect_size").get_fdata()
    assert np.isfinite(effect).all()
    assert effect[samples.mask].any()


def test_what_cannot_be_drawn_is_refused():
    model = fs.load()
    with pytest.raises(UsageError, match="gambling_loss"):
        model.sample("gambling_los")
    with pytest.raises(UsageError, match="did you mean steps"):
        model.sample("motor_rh", step=3)


def test_errors_fit_python_as_well_as_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: fs.sample("o3"), lambda: fs.load("nope"), lambda: fs.check("nope")):
        with pytest.raises(UsageError) as told:
            call()
        assert "--" not in str(told.value)
    with pytest.raises(UsageError, match="not trained on a condition 'gambling_win': it knows"):
        fs.sample("o3", conditions="gambling_win", checkpoint="bundled")
    assert not list(tmp_path.iterdir())


def test_groups_of_settings_are_dictionaries():
    from fmrisynth.config.prepare import PrepareConfig

    config = api.commands.settings_of(
        PrepareConfig, "prepare", {"split": {"train": 0.5, "val": 0.25, "test": 0.25}, "native": True}
    )
    assert config.split.train == 0.5
    assert config.native
