"""Fixtures for all tests: seeded numbers, real data where it is at hand, small block datasets."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
from hypothesis import settings

# The same commit gets the same verdict. New cases: `pytest tests/reliability --hypothesis-profile=default`.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(20251122)


@pytest.fixture(scope="session")
def shared_data():
    """Look up a folder of real data; the test is skipped, with the reason, where it is missing."""

    def find(name: str) -> Path:
        folder = SHARED_DATA / name
        if not folder.is_dir():
            pytest.skip(f"real data not found: {name} (expected in ../shared/data beside the checkout)")
        return folder

    return find


def pytest_configure(config: pytest.Config) -> None:
    """The marker that fills a cell of docs/reliability.md."""
    config.addinivalue_line("markers", "fault(command, fault, outcome): proves a cell of the reliability matrix")
