"""Run folders: each run has its own."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.runs import new_folder


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(new_folder, ["RSICD"] * 40))
    assert len(set(folders)) == 40 and all(Path(folder).is_dir() for folder in folders)
    assert all(re.fullmatch(r"runs/RSICD-\d{8}-\d{6}(-\d+)?", folder) for folder in folders)
