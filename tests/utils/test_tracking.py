import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.config import Config, parse_config
from utils.tracking import Tracker


def config(mode: str) -> Config:
    return parse_config({"tracking": {"mode": mode}, "seed": 41}, "")


def test_the_log_is_a_line_a_step_and_is_cut_where_a_run_resumes(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, config("none"))
    for step in (10, 20, 30):
        tracker.log(step, {"loss": 1 / step})
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 40, "lo')  # killed while it wrote
    Tracker(tmp_path, config("none"), lines=2).log(30, {"loss": 0.5})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"step": 10, "loss": 0.1}, {"step": 20, "loss": 0.05}, {"step": 30, "loss": 0.5}]


def records(folder: Path) -> list[Any]:
    """All records of the offline run in `folder`, once its writer, another process, has written the last."""
    until = time.monotonic() + 30
    while True:
        found = records_so_far(folder)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < until, "the run's file is never finished"
        time.sleep(0.1)


def records_so_far(folder: Path) -> list[Any]:
    """Protocol buffers in LevelDB's log format behind 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in folder.rglob("*.wandb"):
        content, place, data = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:  # no header fits into what is left of a block
                place += 32768 - place % 32768
                continue
            _, length, kind = struct.unpack_from("<IHB", content, place)
            data += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
                record.ParseFromString(data)
                found.append(record)
                data = b""
    return found


def test_an_offline_run_can_be_read_back(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    tracker = Tracker(tmp_path, config("offline"))
    assert tracker.active
    tracker.log(20, {"train/loss": 0.25, "val/CIDEr": 1.5})
    tracker.table(20, ("image", "caption"), [(image, "a plane")])
    tracker.finish()

    history: dict[str, object] = {}
    settings: dict[str, object] = {}
    for record in records(tmp_path):
        for item in record.history.item:
            history["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for kind in (record.run.config.update, record.config.update):
            settings |= {item.key: json.loads(item.value_json) for item in kind}
    assert history["train/loss"] == 0.25
    assert history["val/CIDEr"] == 1.5
    assert settings["seed"] == 41
    assert "git_sha" in settings
    tables = list(tmp_path.rglob("*.table.json"))
    assert json.loads(tables[0].read_text())["data"][0][1] == "a plane"


def test_without_a_key_online_becomes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = Tracker(tmp_path, config("online"))
    assert tracker.active
    tracker.log(1, {"loss": 1.0})
    tracker.finish()
    assert "online cannot start" in capsys.readouterr().err
    assert records(tmp_path)


def test_a_tracker_that_breaks_takes_nothing_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(tmp_path, config("offline"))
    tracker._wandb.finish()  # as when its process dies under the run
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 0.5})
    tracker.finish()
    assert capsys.readouterr().err.count("tracking stopped") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_the_library_tracking_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(tmp_path, config("offline"))
    assert not tracker.active
    assert "pip install wandb" in capsys.readouterr().err
