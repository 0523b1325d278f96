"""A data set read from parquet is the data set that was written to it."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import data.check
import data.parquet
from data.datasets import DATASETS, load_dataset
from data.errors import UserError
from data.parquet import find_parquet, unpack_parquet
from utils.config import parse_config
from utils.sources import open_dataset

NAMES = {"train": "train-00000-of-00001-6e.parquet", "val": "valid-00000-of-00001.parquet", "test": "test/0000.parquet"}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=7)


@pytest.fixture(params=["struct", "bytes"])
def parquet(request: pytest.FixtureRequest, scenes: Path, tmp_path: Path) -> Path:
    """The scenes in the layout of arampacha/rsicd."""
    root = tmp_path / "parquet"
    dataset = load_dataset("RSICD", scenes)
    for split, name in NAMES.items():
        rows = []
        for image in dataset.split(split):
            content: Any = dataset.path(image).read_bytes()
            if request.param == "struct":
                content = {"bytes": content, "path": f"rsicd_images/{image.filename}"}
            captions = list(image.captions)
            rows.append({"filename": f"rsicd_images/{image.filename}", "captions": captions, "image": content})
        write(root / "data" / name, rows)
    return root


def test_it_reads_as_the_files_do(parquet: Path, scenes: Path, tmp_path: Path) -> None:
    tree = {"dataset": "RSICD", "data_root": str(parquet), "data": {"cache_dir": str(tmp_path / "cache")}}
    opened, original = open_dataset(parse_config(tree, "test")), load_dataset("RSICD", scenes)
    for split in NAMES:
        ours, theirs = opened.split(split), original.split(split)
        assert [(i.filename, i.captions) for i in ours] == [(i.filename, i.captions) for i in theirs]
        assert all(
            opened.path(a).read_bytes() == original.path(b).read_bytes() for a, b in zip(ours, theirs, strict=True)
        )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    open_dataset(parse_config(tree, "test"))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}


def test_a_table_beside_the_annotations_is_not_the_data_set(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    write(tmp_path / "data" / "notes.parquet", [{"filename": "a.jpg"}])
    opened = open_dataset(parse_config({"dataset": "RSICD", "data_root": str(tmp_path / "data")}, "test"))
    assert opened.image_root.parent == tmp_path / "data"
    assert find_parquet(tmp_path / "data") == []  # which data.check asks, too


def test_two_processes_unpack_at_once(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"dataset": "RSICD", "data_root": str(parquet), "data": {"cache_dir": str(tmp_path / "cache")}}
    config, original = parse_config(tree, "test"), data.parquet.split_of

    def split_of(path: Path) -> str:
        monkeypatch.setattr(data.parquet, "split_of", original)
        open_dataset(config)  # another one begins and ends while this one is at work
        return original(path)

    monkeypatch.setattr(data.parquet, "split_of", split_of)
    assert open_dataset(config).split("val")
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "rows", "fault"),
    [
        ("part.parquet", [{"filename": "a.jpg", "captions": ["a"], "image": b"x"}], "says no split"),
        ("train.parquet", [{"file": "a.jpg", "captions": ["a"], "image": b"x"}], "no filename, captions and image"),
        ("train.parquet", [{"filename": "a.jpg", "captions": ["a"], "image": None}], "no image bytes"),
        ("train.parquet", [{"filename": "a.jpg", "captions": "a plane", "image": b"x"}], "no list of texts"),
        ("train.parquet", [{"filename": "a.jpg", "captions": [["a"]], "image": b"x"}], "no list of texts"),
        ("train.parquet", [{"filename": "a.jpg", "captions": None, "image": b"x"}], "no list of texts"),
        ("train.parquet", [{"filename": "../..", "captions": ["a"], "image": b"x"}], "no name"),
        ("train.parquet", 2 * [{"filename": "a.jpg", "captions": ["a"], "image": b"x"}], "stands twice"),
    ],
)
def test_what_cannot_be_read_leaves_nothing(name: str, rows: list[dict[str, Any]], fault: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / name, rows)
    with pytest.raises(UserError, match=fault):
        unpack_parquet(tmp_path / "in", DATASETS["RSICD"], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"train\.parquet"):
        unpack_parquet(tmp_path, DATASETS["own"], tmp_path / "cache")


def test_the_checker_reads_it(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet, cache = tmp_path / "sheet.png", tmp_path / "cache"
    monkeypatch.setattr(sys, "argv", ["check", str(parquet), "--sheet", str(sheet), "--cache-dir", str(cache)])
    assert data.check.main() == 0
    assert sheet.exists() and [folder.name.split("-")[0] for folder in cache.iterdir()] == ["RSICD"]
