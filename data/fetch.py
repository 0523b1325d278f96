"""Fetch a public data set: python -m data.fetch RSICD [--data-root DIR].

What its authors put where a program can fetch it is downloaded, checked and unpacked; for the rest it says in one line
what to get by hand and where to put it. A download that was cut off goes on where it stopped.
"""

import argparse
import http.client
import os
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from backports import tarfile  # Python 3.11.2, which Debian 12 has, knows no filter yet
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from data.datasets import DATASETS, load_dataset
from data.errors import UserError, reason
from data.files import drafting, file_digest

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """A file to be had at `url`, for `DIR/name`; an archive is unpacked into the folder `unpacks_to`.

    `sha256` is what its publisher states (Git LFS), None where nobody states one: such a file is checked by what it
    holds, and fetched anew rather than resumed.
    """

    name: str
    url: str
    sha256: str | None = None
    unpacks_to: str | None = None


_GIT, _LFS = "https://raw.githubusercontent.com", "https://media.githubusercontent.com/media"
_RSICD, _NWPU = "201528014227051/RSICD_optimal", "HaiyanHuang98/NWPU-Captions"

SOURCES: dict[str, tuple[Source, ...]] = {
    "RSICD": (
        Source("dataset_rsicd.json", f"{_GIT}/{_RSICD}/HEAD/dataset_rsicd.json"),
        Source(
            "RSICD_images.zip",
            f"{_LFS}/{_RSICD}/30bf7e85ddfb919dc724a7b2b4a46fbd39e8371e/RSICD_images.zip",
            "0d3ebda15b8b1e5c2754270d38462251e8c61489b54e463e499c978da4b91d10",
            "RSICD_images",
        ),
    ),
    "NWPU": (
        Source("dataset_nwpu.json", f"{_GIT}/{_NWPU}/HEAD/dataset_nwpu.json"),
        Source(
            "NWPU_images.tar.gz",
            f"{_LFS}/{_NWPU}/3f57039cd675e2575414d18d53e2d4dae2bcc7ce/NWPU_images.tar.gz",
            "720d6c3430489c9aa99232c3d53b6b9ca48d4b838918d17e7b6e766483fddbec",
            "NWPU_images",
        ),
    ),
}

# Where a person can still get what a program cannot, or what its first source no longer has.
BY_HAND = {
    "RSICD": "drive.google.com/open?id=0B1jt7lJDEXy3aE90cG9YSl9ScUk or pan.baidu.com/s/1bp71tE3",
    "NWPU": "github.com/HaiyanHuang98/NWPU-Captions",
    "UCM": "mega.nz/folder/wCpSzSoS#RXzIlrv--TDt3ENZdKN8JA or pan.baidu.com/s/1mjPToHq",
    "Sydney": "pan.baidu.com/s/1hujEmcG (the folder at mega.nz is empty since 2023)",
}

# Where it also lies in a form of its own.
AS_PARQUET = {
    "RSICD": "; or give the folder of huggingface.co/datasets/arampacha/rsicd as --data-root, which train.py reads"
}


def fetch(name: str, root: Path) -> None:
    """Bring data set `name` into the folder `root`, laid out as `data.datasets.load_dataset` reads it.

    What lies there already is kept; an archive that was put there by hand is checked and unpacked like one that was
    fetched. Raises `UserError` where a source is gone, a checksum differs or the disk is full.
    """
    spec = DATASETS[name]
    if name not in SOURCES and not any((root / annotations).is_file() for annotations in spec.annotations):
        raise UserError(
            f"{name}: its authors offer no direct download; get it in a browser from {BY_HAND[name]}, "
            f"then put {spec.annotations[0]} and {spec.image_folders[0]}/ into {root}"
        )
    for source in SOURCES.get(name, ()):
        folder = root / source.unpacks_to if source.unpacks_to else None
        path = root / source.name
        if folder is not None and folder.is_dir():
            continue
        if not path.is_file():
            try:
                download(source, path)
            except (OSError, http.client.HTTPException) as error:
                raise UserError(
                    f"{source.url}: cannot be had ({reason(error)}); try again later, or get it from {BY_HAND[name]} "
                    f"and put it there as {path}{AS_PARQUET.get(name, '')}"
                ) from None
        if source.sha256 and file_digest(path) != source.sha256:
            raise UserError(f"{path}: not the published file (its SHA-256 differs); delete it and run this again")
        if folder is not None:
            unpack(path, folder)


def download(source: Source, path: Path) -> None:
    """Fetch `source` to `path` by way of `path`.part, going on from what is there where a checksum will tell.

    Raises `OSError` (`urllib.error.URLError` is one) or `HTTPException` where the server or the disk fails.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.sha256 is None:
        part.unlink(missing_ok=True)
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(source.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to fetch
            raise
        part.replace(path)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with response, Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        if response.status != 206:  # it sends the whole file again
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        task = progress.add_task(path.name, total=total, completed=done)
        with open(part, "ab" if done else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")
    part.replace(path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the images of a .zip or .tar.gz into `folder`, whole or not at all; nothing is written outside of it.

    Where all that the archive holds lies in folders of folders, the outermost that branches becomes `folder`.
    """
    try:
        with drafting(folder) as draft:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as file:
                    file.extractall(draft)  # takes `..` and leading slashes out of names
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(draft, filter="data")
            inner = draft
            while len(found := [p for p in inner.iterdir() if not p.name.startswith(("__MACOSX", "."))]) == 1:
                if not found[0].is_dir():
                    break
                inner = found[0]
            inner.replace(folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({error}); make room, or delete it and run this again"
        ) from None


def main() -> None:
    """Fetch, then say what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(BY_HAND), metavar="NAME", help=", ".join(BY_HAND))
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where to (default: datasets/NAME)")
    arguments = parser.parse_args()
    root = arguments.data_root or Path("datasets") / arguments.name
    fetch(arguments.name, root)
    dataset = load_dataset(arguments.name, root)
    print("\n".join([f"{arguments.name}: {len(dataset.images)} images in {root}", *dataset.notes]))
    print(f"python -m data.check {root}   looks at every file")


if __name__ == "__main__":
    from utils.files import run_program  # as a program it stands above the rooms

    run_program(main)
