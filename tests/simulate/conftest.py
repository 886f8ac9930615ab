"""One small phantom for all tests of the package."""

import pytest

from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.simulate import Phantom


@pytest.fixture(scope="session")
def phantom():
    return Phantom(SimulateConfig(resolution_mm=3, seed=7))


@pytest.fixture(scope="session")
def subject(phantom):
    return phantom.subject(3)
