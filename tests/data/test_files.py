import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from data.files import check_outputs, check_writable, held, lock_file, making, write_whole, writing


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


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    with pytest.raises(ZeroDivisionError), writing(path) as unfinished:
        unfinished.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for attempt in (lambda path: write_whole(path, "text"), check_writable):
        with pytest.raises(UserError, match="cannot be written"):
            attempt(tmp_path / "file" / "below.txt")
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "free.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    path = tmp_path / "with [odd] name.txt"
    child = "import os, sys; from data.files import writing; from pathlib import Path\n"
    child += "with writing(Path(sys.argv[1])) as name: name.write_text('half'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", child, str(path)], cwd=Path(__file__).parents[2])
    (dead,) = tmp_path.iterdir()
    running = tmp_path / f".{path.name}.{platform.node()}.{os.getppid()}.unfinished"
    elsewhere = tmp_path / f".{path.name}.another-machine.{dead.name.split('.')[-2]}.unfinished"
    another = tmp_path / dead.name.replace("name", "other")
    for other in (running, elsewhere, another):
        other.touch()
    write_whole(path, "whole")
    assert {*tmp_path.iterdir()} == {path, running, elsewhere, another}


def test_what_several_processes_want_is_made_by_one(tmp_path: Path) -> None:
    """Also where the first of them dies at it."""
    path = tmp_path / "deep" / "store"
    child = "import os, sys, time; from data.files import making, write_whole; from pathlib import Path\n"
    child += "with making(Path(sys.argv[1])) as missing:\n"
    child += "    print(missing, flush=True)\n"
    child += "    if len(sys.argv) > 2: os.kill(os.getpid(), 9)\n"
    child += "    if missing: time.sleep(0.3); write_whole(Path(sys.argv[1]), 'made')\n"
    command = [sys.executable, "-c", child, str(path)]
    folder = Path(__file__).parents[2]
    assert subprocess.run([*command, "dies"], cwd=folder, stdout=subprocess.PIPE).stdout == b"True\n"
    together = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) for _ in range(3)]
    assert sorted(process.communicate()[0] for process in together) == [b"False\n", b"False\n", b"True\n"]
    assert [p.name for p in path.parent.iterdir()] == ["store"]
    with making(path) as missing:
        assert not missing
    with pytest.raises(UserError, match="cannot be written"), making(path / "below"):
        pass


def test_text_that_utf8_cannot_hold_is_escaped(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "é \udcff")
    assert (tmp_path / "a").read_bytes() == "é \\udcff".encode()


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for attempt in (lambda path: write_whole(path, "text"), check_writable):
        with pytest.raises(UserError, match="is no regular file"):
            attempt(pipe)
        with pytest.raises(UserError, match="is a folder"):
            attempt(tmp_path)
    assert pipe.is_fifo()


def test_outputs_are_neither_each_other_nor_what_is_read(tmp_path: Path) -> None:
    model, alias = tmp_path / "model", tmp_path / "alias"
    model.write_text("weights")
    os.link(model, alias)
    check_outputs({"--output": tmp_path / "a", "--report": tmp_path / "b", "--map": None}, [model, tmp_path / "gone"])
    with pytest.raises(UserError, match=r"--report .*/a: --output has the same name"):
        check_outputs({"--output": tmp_path / "a", "--report": tmp_path / "x" / ".." / "a"}, [])
    with pytest.raises(UserError, match=r"--output .*alias: is what is to be read"):
        check_outputs({"--output": alias}, [model])
    assert model.read_text() == "weights"


def test_what_another_process_writes_is_left_to_it_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    program = (
        "import sys; from pathlib import Path; from data.files import held\n"
        "lock = held(Path(sys.argv[1])); print('mine', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(path)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]
    )
    assert other.stdout and other.stdout.readline()
    with pytest.raises(UserError, match=r"log\.jsonl: another process is writing it"):
        held(path)
    other.kill()
    other.wait()
    one, two = held(path), held(path)  # a process may go on with what is its own
    one.release()
    two.release()
    assert lock_file(path).exists() and not path.exists()
    with pytest.raises(UserError, match="cannot be written"):
        held(lock_file(path) / "below")
