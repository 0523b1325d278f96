"""Shared by all tests: a small data set of synthetic scenes, and a way to run the programs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
Program = Callable[..., subprocess.CompletedProcess[str]]


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


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """`program("train.py", "--seed", "1")` runs it as a user would, in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(name: str, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        environment = {**os.environ, "WANDB_MODE": "", "PYTHONPATH": ""}
        return subprocess.run(
            command, cwd=options.get("cwd", folder), env=environment, capture_output=True, text=True, timeout=300
        )

    return run
