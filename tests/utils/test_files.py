import json
import subprocess
import sys
from pathlib import Path

from utils.files import one_line, write_json

ROOT = Path(__file__).parents[2]


def test_json(tmp_path: Path) -> None:
    value = {"caption": "caf\u00e9", "file": "\udcff.jpg"}
    write_json(tmp_path / "a.json", value)
    assert "caf\u00e9" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text()) == value


def test_one_line_has_one_line_and_no_commands() -> None:
    assert one_line("a plane, café") == "a plane, café"
    assert one_line("a\nb\x1b[2J\udcff\u202e") == r"a\nb\x1b[2J\udcff\u202e"


def end(body: str, **options: str) -> subprocess.CompletedProcess[bytes]:
    code = f"from utils.files import *\nfrom data.errors import UserError\ndef main():\n  {body}\nrun_program(main)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=options or None)


def test_programs_end_as_they_should() -> None:
    slip = end("raise UserError('a\\nb')")
    assert (slip.returncode, slip.stderr) == (2, b"error: a\\nb\n")
    stopped = end("raise KeyboardInterrupt")
    assert (stopped.returncode, stopped.stderr) == (130, b"interrupted\n")
    plain = end("print('caf\\xe9')", PYTHONIOENCODING="ascii")
    assert (plain.returncode, plain.stdout) == (0, b"caf\\xe9\n")


def test_a_reader_that_has_enough_is_no_error() -> None:
    body = "exec('for i in range(100000): print(i)')"
    code = f"from utils.files import run_program\nrun_program(lambda: {body})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_what_runs_out_is_named_with_what_to_lower() -> None:
    for raised, advice in (
        ("raise OSError(28, 'No space left on device', 'cache/a.h5')", "cache/a.h5: no space left"),
        ("raise MemoryError", "lower train.batch_size"),
        ("import torch; torch.empty(10**15)", "lower train.batch_size"),
        ("import torch; raise torch.OutOfMemoryError('CUDA out of memory')", "out of GPU memory"),
    ):
        done = end(raised)
        assert done.returncode == 2 and advice in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1
    assert b"Traceback" in end("raise RuntimeError('a mistake of the program')").stderr


def test_garbage_is_collected_once_a_program_has_imported_all() -> None:
    code = "import gc; gc.disable(); from utils.files import run_program; print(run_program(gc.isenabled))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "True\n"
