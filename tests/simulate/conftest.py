"""One small phantom for all tests of the package."""

import pytest

from fmrisynth.config.simulate import NoiseConfig, SimulateConfig
from fmrisynth.simulate import Phantom

QUIET = NoiseConfig.model_validate({name: 0 for name in NoiseConfig.model_fields if name.endswith(("_percent", "_mm"))})
"""No noise of any kind."""


@pytest.fixture(scope="session")
def phantom():
    return Phantom(SimulateConfig(resolution_mm=3, seed=7))


@pytest.fixture(scope="session")
def subject(phantom):
    return phantom.subject(3)
