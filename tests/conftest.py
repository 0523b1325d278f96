"""Shared by all tests: a fixed seed, and a small data set of synthetic scenes."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# New examples are for people, who can look at what is found; a gate must say the same thing twice. No deadlines: a busy
# machine is no finding.
settings.register_profile("nadir", derandomize=bool(os.environ.get("CI")), deadline=None)
settings.load_profile("nadir")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as RSICD's: 68 train, 17 val and 17 test scenes of 96 pixels."""
    from data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("scenes") / "data"
    write_dataset(root, 68, 17, 17, seed=0, size=96, processes=1)
    return root
