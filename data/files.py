"""Files that are written whole or not at all, and what they are known by."""

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from data.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under; at the end of the block it is flushed to the disk and becomes `path`.

    Where the block fails, `path` is as it was. What a process that was killed left behind goes when the same file is
    written again. `UserError` where the file cannot be written.
    """
    unfinished = _unfinished(path, os.getpid())
    try:
        _refuse_others(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        yield unfinished
        _flush(unfinished)
        os.replace(unfinished, path)
        _flush(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); check space and rights") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """Where to make what becomes the folder `path` by `replace`; what is left there at the end of the block goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent) as scratch:
        yield Path(scratch) / path.name  # within it, so that the folder has the usual rights


@contextmanager
def making(path: Path) -> Iterator[bool]:
    """A block that makes `path` where it says that it is missing; other processes that want it wait for its end.

    Where the block fails or its process dies, the next one makes it. `UserError` where nothing can be written there.
    """
    if path.exists():
        yield False
        return
    lock = FileLock(lock_file(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); check space and rights") from None
    try:
        yield not path.exists()
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it finds `path`
    finally:
        lock.release()


def held(path: Path) -> FileLock:
    """The lock of a file that this process writes bit by bit, until it is released, forgotten or the process ends.

    A process may take its own lock again. `UserError` where another one has it, or nothing can be written there.
    """
    lock = FileLock(lock_file(path), timeout=0, is_singleton=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{path}: another process is writing it; wait for its end, or name another output") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); check space and rights") from None
    return lock


def lock_file(path: Path) -> Path:
    """The file beside `path` that says whether a process is at it."""
    return path.with_name(f".{path.name}.lock")


def check_writable(path: Path) -> None:
    """`UserError` where `writing(path)` would not come to its end."""
    unfinished = _unfinished(path, os.getpid())
    try:
        _refuse_others(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check space and rights") from None


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """`UserError` where files to write cannot be, or are each other or one of `inputs`.

    `outputs` are by the option that names each; None is not to be written.
    """
    there = [path for path in inputs if path.exists()]
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        check_writable(path)
        if path.exists() and any(path.samefile(read) for read in there):
            raise UserError(f"{option} {path}: is what is to be read; name another file to write")
        if other := taken.get(path.resolve()):
            raise UserError(f"{option} {path}: {other} has the same name; give them two")
        taken[path.resolve()] = option


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all; text as UTF-8, a lone surrogate as its escape (which JSON reads back)."""
    with writing(path) as unfinished:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_others(path: Path) -> None:
    """`UserError` where `path` is there and no file: a folder, or a device or pipe, which a file would replace."""
    if path.exists() and not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file"
        raise UserError(f"{path}: {kind}; name a file to write")


def _unfinished(path: Path, process: int | str) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}.{process}.unfinished")


def _remove_stale(path: Path) -> None:
    """Remove what processes of this machine that are gone have left of `path`."""
    for left in path.parent.glob(_unfinished(Path(escape(path.name)), "*").name):
        process = left.suffixes[-2].removeprefix(".")
        if process.isdecimal() and not _runs(int(process)):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
