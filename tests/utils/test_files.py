import json
from pathlib import Path

import pytest

from data.errors import UserError
from utils.files import write_json, write_whole


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"file\.txt.*No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "file" / "below.txt", "text")


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"caption": "caf\u00e9"})
    assert "caf\u00e9" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text()) == {"caption": "caf\u00e9"}
