import json
import resource
import signal
from pathlib import Path

import pytest

from data.errors import UserError
from utils.journal import Journal

ABOUT = {"checkpoint": "abc", "beam_size": 5}


def test_rows_outlive_their_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    Journal(path, ABOUT).add(
        [{"file": "b", "caption": "x"}, {"file": "\udcff", "caption": "é"}, {"file": "c", "error": "e"}]
    )
    with open(tmp_path / "out.csv.partial", "a") as file:
        file.write('{"file": "d", "capt')  # killed while it wrote
    journal = Journal(path, ABOUT)
    assert [name in journal for name in ("b", "\udcff", "c", "d")] == [True, True, False, False]
    journal.add([{"file": "c", "caption": "mended"}, {"file": "a", "error": "f"}])
    assert list(journal.rows(["a", "\udcff", "c"])) == [
        {"file": "a", "error": "f"},
        {"file": "\udcff", "caption": "é"},
        {"file": "c", "caption": "mended"},
    ]
    journal.remove()
    assert not list(tmp_path.iterdir())


def test_rows_made_in_another_way_are_not_mixed_in(tmp_path: Path) -> None:
    Journal(tmp_path / "out", ABOUT).add([{"file": "a", "caption": "x"}])
    with pytest.raises(UserError, match=r"out\.partial: made with another checkpoint"):
        Journal(tmp_path / "out", ABOUT | {"beam_size": 3})
    assert "a" in Journal(tmp_path / "out", ABOUT)
    Journal(tmp_path / "empty", ABOUT)  # stopped before its first row
    Journal(tmp_path / "empty", ABOUT | {"beam_size": 3}).add([{"file": "a", "caption": "y"}])
    with pytest.raises(UserError, match=r"empty\.partial: made with another checkpoint"):
        Journal(tmp_path / "empty", ABOUT)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\n", b"3\n"])
def test_what_is_no_journal_is_begun_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.partial").write_bytes(content)
    Journal(tmp_path / "out", ABOUT).add([{"file": "a"}])
    lines = (tmp_path / "out.partial").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [ABOUT, {"file": "a"}]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path / "file" / "out", ABOUT)


def test_a_full_disk_is_named_and_costs_no_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out", ABOUT)
    journal.add([{"file": "a"}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            journal.add([{"file": "b" * 500}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    journal = Journal(tmp_path / "out", ABOUT)
    assert "a" in journal and "b" * 500 not in journal
