"""Rows on their way to a file: kept as they are made, so that a program that was killed goes on where it stopped."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError

Row = dict[str, Any]


class Journal:
    """JSON lines beside the file that they are made for; `file in journal` tells whether its row is there.

    The first line says what the rows depend on. A row with an `error` does not count, so that it is tried again; a last
    line that was cut off is dropped. In memory is one number a row.

    Args:
        path: the finished file; the rows lie in `path` + ".partial".
        about: what the rows depend on. `UserError` where there are rows that depend on something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path.with_name(f"{path.name}.partial")
        self._places: dict[str, int] = {}  # where each file's row begins
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as rows come)
            end = self._read(about)
            self._file.truncate(end)
            if not end:
                self._append(about)
        except OSError as error:
            raise self._failed(error) from None

    def _read(self, about: Mapping[str, Any]) -> int:
        """Find the rows that are there; returns where the last whole one ends."""
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                row = _parsed(line)
                if row is None:
                    break
                if not end and row != about:
                    raise UserError(f"{self.path}: made with another checkpoint or decoding; delete it to start again")
                if end and "error" not in row:
                    self._places[row["file"]] = end
                end += len(line)
        return end

    def __contains__(self, file: str) -> bool:
        return file in self._places

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows; they are on the disk when this returns."""
        try:
            for row in rows:
                self._places[row["file"]] = self._append(row)
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
        with open(self.path, "rb") as lines:
            for file in files:
                lines.seek(self._places[file])
                yield json.loads(lines.readline())

    def remove(self) -> None:
        """Forget the rows: the finished file is there."""
        self._file.close()
        self.path.unlink()

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
