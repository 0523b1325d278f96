"""Fetching, from a server on this machine that can cut connections, forget ranges and lose files."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from data import fetch
from data.datasets import load_dataset
from data.errors import UserError
from data.fetch import Source, download, unpack

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Served:
    """A server's files, what it was asked for, and how it misbehaves."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    cut_after: int | None = None
    ranges: bool = True


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            state.asked.append((name, wanted))
            if name not in state.files:
                self.send_error(404, "it has moved")
                return
            content, status, start = state.files[name], 200, 0
            if wanted and state.ranges:
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                if start >= len(content):
                    self.send_error(416)
                    return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : None if state.cut_after is None else start + state.cut_after])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (colour, 90, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def published(served: Served, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """RSICD in small on the server, and `fetch` told that it stands there; returns the archive."""
    names = ["airport_1.png", "river_2.png"]
    entries = [
        {"filename": name, "imgid": i, "split": "train", "sentences": [{"raw": "a road"}]}
        for i, name in enumerate(names)
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i, name in enumerate(names):
            file.writestr(f"RSICD_images/{name}", picture(i))
    archive = buffer.getvalue()
    served.files = {"dataset_rsicd.json": json.dumps({"images": entries}).encode(), "RSICD_images.zip": archive}
    sources = (
        Source("dataset_rsicd.json", f"{served.url}/dataset_rsicd.json"),
        Source(
            "RSICD_images.zip", f"{served.url}/RSICD_images.zip", hashlib.sha256(archive).hexdigest(), "RSICD_images"
        ),
    )
    monkeypatch.setitem(fetch.SOURCES, "RSICD", sources)
    return archive


def test_fetched_is_what_was_published(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published(served, monkeypatch)
    fetch.fetch("RSICD", tmp_path)
    dataset = load_dataset("RSICD", tmp_path)
    assert [dataset.path(image).read_bytes() for image in dataset.images] == [picture(0), picture(1)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["RSICD_images", "RSICD_images.zip", "dataset_rsicd.json"]
    asked = len(served.asked)
    fetch.fetch("RSICD", tmp_path)
    assert len(served.asked) == asked  # what is there is not fetched again


def test_a_cut_download_goes_on_where_it_stopped(served: Served, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    served.files = {"f.zip": content}
    source = Source("f.zip", f"{served.url}/f.zip", hashlib.sha256(content).hexdigest())
    path = tmp_path / "f.zip"
    served.cut_after = 40_000
    for _ in range(2):
        with pytest.raises(OSError, match="connection ended"):
            download(source, path)
        assert not path.exists()
    download(source, path)
    assert path.read_bytes() == content
    assert [wanted for _, wanted in served.asked] == [None, "bytes=40000-", "bytes=80000-"]
    # all came, but the name was not given yet
    path.rename(tmp_path / "f.zip.part")
    download(source, path)
    assert path.read_bytes() == content
    # a server that knows no ranges sends all of it again
    (tmp_path / "f.zip.part").write_bytes(b"other")
    served.ranges, served.cut_after = False, None
    download(source, path)
    assert path.read_bytes() == content
    # without a checksum nothing would tell that the file changed in between
    (tmp_path / "f.zip.part").write_bytes(b"other")
    served.ranges = True
    download(Source("f.zip", source.url), path)
    assert path.read_bytes() == content


def test_what_is_gone_or_not_the_published_file_is_said(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = published(served, monkeypatch)
    served.files.pop("RSICD_images.zip")
    with pytest.raises(UserError, match=r"404: it has moved.*drive.google.com.*put it there as .*RSICD_images.zip"):
        fetch.fetch("RSICD", tmp_path)
    (tmp_path / "RSICD_images.zip").write_bytes(b"This repository is over its data quota.")
    with pytest.raises(UserError, match="SHA-256 differs"):
        fetch.fetch("RSICD", tmp_path)
    (tmp_path / "RSICD_images.zip").write_bytes(archive)  # put there by hand
    fetch.fetch("RSICD", tmp_path)
    assert len(load_dataset("RSICD", tmp_path).images) == 2


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(fetch.SOURCES, "NWPU", (Source("dataset_nwpu.json", "http://127.0.0.1:9/x"),))
    with pytest.raises(UserError, match=r"cannot be had.*refused"):
        fetch.fetch("NWPU", tmp_path)
    assert not list(tmp_path.iterdir())


def test_archives_stay_in_their_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../../outside.png", picture(1))
        file.writestr("deep/er/inside.png", picture(2))
    unpack(tmp_path / "a.zip", tmp_path / "zip" / "images")
    assert not (tmp_path / "outside.png").exists() and not (tmp_path.parent / "outside.png").exists()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../outside.png")
        tar.addfile(member, io.BytesIO())
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "tar")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "broken.zip", tmp_path / "broken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "a.zip", "broken.zip", "zip"]


def test_a_tar_is_unpacked_from_its_outermost_folder_that_branches(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in ("x/NWPU_images/airport/1.png", "x/NWPU_images/river/2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(3))
            tar.addfile(member, io.BytesIO(picture(3)))
    unpack(tmp_path / "a.tar.gz", tmp_path / "NWPU_images")
    assert (tmp_path / "NWPU_images" / "river" / "2.png").read_bytes() == picture(3)


@pytest.mark.parametrize("name", ["UCM", "Sydney"])
def test_what_no_program_can_fetch_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data.fetch", name, "--data-root", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "browser" in done.stderr and "imgs/" in done.stderr
