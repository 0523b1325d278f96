"""Rows on their way to a file: kept as they are made, so that a program that was killed goes on where it stopped."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from glob import escape
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import held, lock_file

Row = dict[str, Any]


class Journal:
    """JSON lines beside the file that they are made for; `file in journal` tells whether its row is there.

    Several processes that share the work keep a file each, and each sees all rows that were there when it began. The
    first line of a file says what the rows depend on. A row with an `error` does not count, so that it is tried again;
    a last line that was cut off is dropped. In memory is one place a row.

    Args:
        path: the finished file; the rows lie in `path` + ".partial", with ".1", ".2", .. behind it for other processes.
        about: what the rows depend on. `UserError` where there are rows that depend on something else, or another
            process is making them.
        rank: of the process.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], rank: int = 0) -> None:
        self._shared = path.with_name(f"{path.name}.partial")
        self.path = self._shared.with_name(f"{self._shared.name}.{rank}") if rank else self._shared
        self._about = about
        self._places: dict[str, tuple[Path, int]] = {}  # where each file's row begins
        self._lock = held(self.path)
        try:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as rows come)
            end = self._read(self.path)
            self._file.truncate(end)
            if not end:
                self._append(about)
            self.look_around()
        except OSError as error:
            raise self._failed(error) from None

    def look_around(self, errors: bool = False) -> None:
        """Find the rows that other processes have made; with `errors` those that tell of an error, too."""
        for path in self._all():
            if path != self.path:
                self._read(path, errors)

    def _all(self) -> list[Path]:
        others = self._shared.parent.glob(f"{escape(self._shared.name)}.[0-9]*")
        return [self._shared, *sorted(others)] if self._shared.exists() else sorted(others)

    def _read(self, path: Path, errors: bool = False) -> int:
        """Find the rows in a file; returns where the last whole one ends."""
        end = 0
        with open(path, "rb") as file:
            for line in file:
                row = _parsed(line)
                if row is None:
                    break
                if not end and row != self._about:
                    if not file.read(1):  # no row came after it
                        break
                    raise UserError(f"{path}: made with another checkpoint or decoding; delete it to start again")
                if end and ("error" not in row or (errors and row["file"] not in self._places)):
                    self._places[row["file"]] = (path, end)
                end += len(line)
        return end

    def __contains__(self, file: str) -> bool:
        return file in self._places

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are on the disk when this returns."""
        try:
            for row in rows:
                self._places[row["file"]] = (self.path, self._append(row))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None

    def _append(self, row: Mapping[str, Any]) -> int:
        line = json.dumps(row).encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.tell() - len(line)

    def rows(self, files: Iterable[str]) -> Iterator[Row]:
        """The rows of these files, in this order."""
        with ExitStack() as stack:
            opened = {path: stack.enter_context(open(path, "rb")) for path in self._all()}
            for file in files:
                path, place = self._places[file]
                opened[path].seek(place)
                yield json.loads(opened[path].readline())

    def remove(self) -> None:
        """Forget the rows: the finished file is there."""
        self._file.close()
        for path in self._all():
            path.unlink()
            lock_file(path).unlink(missing_ok=True)
        self._lock.release()

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: cannot be written ({error.strerror}); check space and rights, then run it again"
        )


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and line.endswith(b"\n") else None
