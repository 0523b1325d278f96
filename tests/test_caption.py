"""caption.py over many files, broken ones among them, cut off and started again."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import caption
from data.errors import UserError
from data.loading import Visuals
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from models.pooling import Visual
from utils.visualize import Panel

ROOT = Path(__file__).resolve().parent.parent


def photos(folder: Path, count: int, broken: int = 0) -> list[Path]:
    """Images of noise, the last `broken` of them text."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:05}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    for path in paths[count - broken :]:
        path.write_text("no image")
    return paths


def call(*words: str | Path) -> None:
    caption.main(caption.parse_arguments(list(map(str, words))))


def command(*words: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "caption.py"), *map(str, words)]


def test_broken_images_are_named_and_end_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = photos(tmp_path / "in", 5, broken=2)
    for suffix in ("json", "jsonl", "csv"):
        output = tmp_path / f"out.{suffix}"
        call(tmp_path / "in", "--checkpoint", checkpoint, "--output", output)
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 3 and str(paths[3]) in errors[0] and str(paths[4]) in errors[1]
        assert errors[2] == f"3 images captioned, 2 left out: {output}"
        text = output.read_text()
        rows = {
            "json": lambda text=text: json.loads(text),
            "jsonl": lambda text=text: [json.loads(line) for line in text.splitlines()],
            "csv": lambda text=text: [{k: v for k, v in r.items() if v} for r in csv.DictReader(text.splitlines())],
        }[suffix]()
        assert [row["file"] for row in rows] == [str(path) for path in paths]
        assert [sorted(row) for row in rows] == [["caption", "file", "score"]] * 3 + [["error", "file"]] * 2
    call(tmp_path / "in", "--checkpoint", checkpoint)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out.json", "out.jsonl", "out.csv"}


def test_nothing_but_broken_images_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    one, two = photos(tmp_path / "in", 2, broken=2)
    arguments: list[str | Path] = ["--checkpoint", checkpoint, "--output", tmp_path / "out.csv"]
    with pytest.raises(UserError, match=f"{one}: not a readable image"):
        call(one, *arguments)
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        call(one, two, *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_killed_run_goes_on_where_it_stopped(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = photos(tmp_path / "in", 6 * caption.BATCH, broken=1)
    arguments: list[str | Path] = [tmp_path / "in", "--checkpoint", checkpoint, "--output"]
    call(*arguments, tmp_path / "whole.csv")
    output = tmp_path / "killed.csv"
    partial = tmp_path / "killed.csv.partial"
    process = subprocess.Popen(command(*arguments, output), stderr=subprocess.PIPE)
    while not (partial.exists() and partial.read_bytes().count(b"\n") > caption.BATCH):  # a line is about them all
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=r"killed\.csv\.partial: another process is writing it"):
        call(*arguments, output)
    process.kill()
    process.wait()
    assert not output.exists()
    made = len(partial.read_text().splitlines()) - 1
    assert caption.BATCH <= made < len(paths)
    call(*arguments, output)
    assert f"going on after {made} of {len(paths)} images" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


def test_memory_is_flat(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a batch is captioned, what was read and found for those before it is gone."""
    photos(tmp_path / "in", 5 * caption.BATCH, broken=3)
    read: list[tuple[weakref.ref, int]] = []  # what was made, and of how many images it is
    found: list[tuple[weakref.ref, int]] = []
    alive: list[tuple[int, int]] = []  # images of either that are left when a batch is captioned, itself among them
    plain_read, plain_batch = caption.Visuals.read, caption.caption_batch

    def left(made: list[tuple[weakref.ref, int]]) -> int:
        return sum(count for reference, count in made if reference() is not None)

    def reading(visuals: Visuals, rows: Sequence[int]) -> Visual:
        visual = plain_read(visuals, rows)
        read.append((weakref.ref(visual.content), len(visual.content)))
        return visual

    def captioning(captioner: Captioner, vocabulary: Vocabulary, batch: Visual, *more: Any, **named: Any) -> Any:
        read.append((weakref.ref(batch.content), len(batch.content)))
        alive.append((left(read), left(found)))
        beams = plain_batch(captioner, vocabulary, batch, *more, **named)
        found.extend((weakref.ref(beam[0].attention), 1) for beam in beams)
        return beams

    monkeypatch.setattr(caption.Visuals, "read", reading)
    monkeypatch.setattr(caption, "caption_batch", captioning)
    call(tmp_path / "in", "--checkpoint", checkpoint, "--output", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text())) == 5 * caption.BATCH == len(found) + 3
    assert len(alive) == 5 and max(max(counts) for counts in alive) <= 2 * caption.BATCH, alive


def test_what_cannot_be_written_is_found_first(checkpoint: Path, tmp_path: Path) -> None:
    photos(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    for option, name in (("--output", "x.csv"), ("--attention", "x.png")):
        (tmp_path / name).mkdir()
        for path in (tmp_path / name, tmp_path / "file" / name):
            with pytest.raises(UserError, match=str(path)):
                call(tmp_path / "in", "--checkpoint", "missing", option, path)  # before the checkpoint is looked at
    (photo,) = (tmp_path / "in").iterdir()
    before = photo.read_bytes()
    with pytest.raises(UserError, match="is one of the images; name another file to write"):
        call(tmp_path / "in", "--attention", photo)
    with pytest.raises(UserError, match=r"--map .*y\.png: --attention has the same name"):
        call(tmp_path / "in", "--attention", tmp_path / "y.png", "--map", tmp_path / "y.png", "--tile", "8")
    (tmp_path / "model.png").write_bytes(checkpoint.read_bytes())
    with pytest.raises(UserError, match=r"--attention .*: is what is to be read"):
        call(tmp_path / "in", "--checkpoint", tmp_path / "model.png", "--attention", tmp_path / "model.png")
    with pytest.raises(UserError, match="--tile 0"):
        call(tmp_path / "in", "--tile", "0")
    assert photo.read_bytes() == before


def test_patterns_and_repeated_names(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = photos(tmp_path / "in" / "deep", 3)
    (paths[0].with_name("a[1].png")).write_bytes(paths[0].read_bytes())
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "jp2").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "jp2" / "a.jp2")
    assert caption.find_images([str(tmp_path / "jp2")]) == [str(tmp_path / "jp2" / "a.jp2")]
    assert caption.find_images([f"{tmp_path}/in/**/*"]) == [*map(str, paths), str(paths[0].with_name("a[1].png"))]
    assert caption.find_images([str(paths[1]), f"{tmp_path}/in"])[:2] == [str(paths[1]), str(paths[0])]
    assert caption.find_images([str(paths[0].with_name("a[1].png"))])
    with pytest.raises(UserError, match="no images fit this pattern"):
        caption.find_images([f"{tmp_path}/*.jpg"])
    with pytest.raises(UserError, match="no such file"):
        caption.find_images([str(paths[0]), f"{tmp_path}/missing.jpg"])


def test_a_picture_of_many_is_bounded(checkpoint: Path, tmp_path: Path) -> None:
    photos(tmp_path / "in", caption.PICTURED + 4)
    call(tmp_path / "in", "--checkpoint", checkpoint, "--attention", tmp_path / "many.png")
    call(tmp_path / "in" / "00000.png", "--checkpoint", checkpoint, "--attention", tmp_path / "one.png")
    many, one = (Image.open(tmp_path / name).height for name in ("many.png", "one.png"))
    assert many == pytest.approx(caption.PICTURED * one, rel=0.01)  # whole pixels


def test_a_picture_is_whole_after_a_restart(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = photos(tmp_path / "in", caption.PICTURED + 4, broken=1)
    drawn: list[list[str]] = []

    def draw(path: Path, panels: list[Panel]) -> None:
        drawn.append([panel.name for panel in panels])
        if len(drawn) == 1:
            raise UserError("the disk is full")

    monkeypatch.setattr(caption, "attention_figure", draw)
    words: list[str | Path] = [tmp_path / "in", "--checkpoint", checkpoint, "--attention", tmp_path / "p.png"]
    words += ["--output", tmp_path / "o.csv"]
    with pytest.raises(UserError, match="full"):
        call(*words)
    before = (tmp_path / "o.csv").read_text()
    call(*words)
    assert "going on after 19 of 20 images" in capsys.readouterr().err
    assert drawn == [list(map(str, paths[: caption.PICTURED]))] * 2
    assert (tmp_path / "o.csv").read_text() == before


def test_names_that_are_not_text(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = photos(tmp_path / "in", 1)
    odd = os.fsencode(tmp_path / "in") + b"/\xff\n\x1b[2J.png"
    try:
        os.link(path, odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "in" / "broken\n.png").touch()
    call(tmp_path / "in", "--checkpoint", checkpoint)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2 and "\x1b" not in printed.out
    assert len(printed.err.splitlines()) == 2
    call(tmp_path / "in", "--checkpoint", checkpoint, "--output", tmp_path / "o.json")
    assert odd in [os.fsencode(row["file"]) for row in json.loads((tmp_path / "o.json").read_text())]


def test_a_full_disk_keeps_what_is_done(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "in", 2 * caption.BATCH)
    output = tmp_path / "o.csv"
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # bytes: less than two batches
    try:
        with pytest.raises(UserError, match=r"o\.csv\.partial: cannot be written"):
            call(tmp_path / "in", "--checkpoint", checkpoint, "--output", output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    call(tmp_path / "in", "--checkpoint", checkpoint, "--output", output)
    assert "going on after" in capsys.readouterr().err
    assert len(output.read_text().splitlines()) == 1 + 2 * caption.BATCH
