"""The checker finds everything that was broken on purpose, in one go, and nothing where nothing is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.check import check, contact_sheet
from data.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data.check", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_sound_data_set_has_no_problems(scenes: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = run(scenes, "--sheet", sheet)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 68 images, 340 captions" in done.stdout and "0 problems" in done.stdout
    with Image.open(sheet) as drawn:
        assert drawn.size == (6 * 234 + 10, 4 * 300 + 10)
        assert len(drawn.convert("RGB").getcolors(1 << 24) or ()) > 1000  # there is something on it


def test_every_problem_is_listed(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    annotations, folder = root / "dataset_rsicd.json", root / "RSICD_images"
    document = json.loads(annotations.read_text())
    images: list[dict[str, Any]] = document["images"]
    name = [image["filename"] for image in images]
    val = next(i for i, image in enumerate(images) if image["split"] == "val")
    images[0]["split"] = "dev"
    images[1]["sentences"] = [{"raw": " . "}]
    images[2]["filename"] = "../outside.png"
    images[3]["imgid"] = images[4]["imgid"]
    del images[5]["sentences"]
    images[6]["sentences"] = [{"raw": "road " * 40}]
    annotations.write_text(json.dumps(document))
    (folder / name[7]).unlink()
    (folder / name[8]).write_bytes((folder / name[8]).read_bytes()[:200])
    Image.new("RGB", (20, 50)).save(folder / name[9])
    shutil.move(folder / name[13], root / "elsewhere.png")
    (folder / name[13]).symlink_to(root / "elsewhere.png")
    shutil.copy(folder / name[10], folder / name[val])
    shutil.copy(folder / name[11], folder / name[12])
    (folder / "nobody.png").write_bytes((folder / name[11]).read_bytes())

    done = run(root, "--sheet", tmp_path / "sheet.png")
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert done.returncode == 1 and "10 problems" in done.stdout and len(problems) == 10
    for expected in (
        f"images[0] ({name[0]!r}): \"split\" is 'dev'",
        f"{name[1]}: no caption with words",
        "images[2] ('../outside.png'): filename '../outside.png' leaves the folder",
        f"imgid {images[4]['imgid']} stands twice",
        f'images[5] ({name[5]!r}) has no list "sentences"',
        f"{name[7]}: no such image",
        f"{name[8]}: not a readable image",
        f"{name[9]}: 20 x 50 pixels",
        f"{name[13]}: a link that leaves the folder",
        f"one picture in several splits: {name[10]} (train), {name[val]} (val)",
    ):
        assert sum(expected in line for line in problems) == 1, expected
    for note in ("1 captions have more than 30 words", "1 pictures stand more than once", "image files have no annot"):
        assert note in done.stdout
    assert contact_sheet(check(root)).size[0] == 6 * 234 + 10  # broken images are left out


def test_words_that_are_too_rare_to_learn_are_a_problem(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    annotations = tmp_path / "data" / "dataset_rsicd.json"
    document = json.loads(annotations.read_text())
    for image in document["images"]:
        image["sentences"] = [{"raw": f"thing{image['imgid']} thing{image['imgid']}"}]
    annotations.write_text(json.dumps(document))
    assert any("no word stands 3 times" in problem for problem in check(tmp_path / "data").problems)
    document["images"][0]["sentences"] *= 2  # of train
    annotations.write_text(json.dumps(document))
    assert document["images"][0]["split"] == "train"
    assert not any("no word stands" in problem for problem in check(tmp_path / "data").problems)


def test_what_is_no_data_set_ends_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotations there; expected one of dataset_rsicd"):
        check(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="no folder of images"):
        check(tmp_path)
    (tmp_path / "images").mkdir()
    done = run(tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "not valid JSON" in done.stderr
