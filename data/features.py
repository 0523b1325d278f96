"""The feature store: what a frozen encoder makes of every image, computed once, kept in HDF5, read record by record."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.files import writing
from data.transforms import view_of

LAYOUT = 2  # raise when what a store holds changes: older files are then made anew, not misread


def store_key(description: dict[str, Any], paths: Sequence[Path]) -> str:
    """A name for the features of exactly these files made in exactly this way.

    `description` says how (encoder, digest of its weights, preprocessing); of each file name, size and time of change
    count, so that a store made from other files, or before a file was replaced, is never found.
    """
    files = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            raise UserError(f"{path}: no such image; restore the data set's folder of images") from None
        files.append((path.name, status.st_size, status.st_mtime_ns))
    text = json.dumps([LAYOUT, description, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def new_store(path: Path, attributes: dict[str, Any]) -> Iterator[h5py.File]:
    """An HDF5 file to be filled, with `attributes`; it gets its name when the block ends well, else it is gone."""
    with writing(path) as unfinished, h5py.File(unfinished, "w") as file:
        file.attrs.update({name: json.dumps(value) for name, value in attributes.items()})
        yield file


def build_store(
    path: Path,
    images: Iterable[Tensor],
    count: int,
    encode: Callable[[Tensor], Tensor],
    attributes: dict[str, Any],
) -> None:
    """Write `encode` of every image to `path`, whole or not at all.

    `images` yields uint8 batches [b, 3, H, W], `count` images in all; `encode` gives the features of their views
    [b, views, N, D]. The file holds float16 `features` [count, views, N, D] in chunks of one view of one image (the
    unit in which they are read) and `attributes`.
    """
    with new_store(path, attributes) as file:
        records = None
        done = 0
        for batch in images:
            features = encode(batch).to(torch.float16).cpu().numpy()
            if records is None:
                shape = features.shape[1:]
                records = file.create_dataset("features", (count, *shape), "float16", chunks=(1, 1, *shape[1:]))
            records[done : done + len(features)] = features
            done += len(features)
        if done != count:
            raise ValueError(f"{done} images came, {count} were announced")


class Store:
    """A file that `new_store` made, opened at the first read, so that each worker has a handle of its own."""

    remedy = "delete it to have it made anew"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None

    def records(self, name: str) -> h5py.Dataset:
        """One of the file's data sets. `UserError` where it is not there."""
        try:
            if self._file is None:
                self._file = h5py.File(self.path, "r")
            return self._file[name]
        except (OSError, KeyError):
            raise UserError(f"{self.path}: not a readable store of {name}; {self.remedy}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class FeatureStore(Store):
    """Reads what `build_store` wrote. Of an image's views one is seen in an epoch; `seed` fixes which."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        super().__init__(path)
        self.seed = seed

    @cached_property  # HDF5 takes longer to say it than to read an image's features
    def shape(self) -> tuple[int, int, int, int]:
        """(images, views, N cells, D channels)."""
        images, views, cells, channels = self.records("features").shape
        return images, views, cells, channels

    def read(self, rows: Sequence[int], epoch: int = 0) -> Tensor:
        """Features of these images, each in its view of `epoch`, float16 [len(rows), N, D]."""
        records = self.records("features")
        out = np.empty((len(rows), *self.shape[2:]), np.float16)
        for row, features in zip(rows, out, strict=True):
            # a chunk as it lies in the file, which is three times as fast as to select the same numbers
            records.id.read_direct_chunk((row, self.view(row, epoch), 0, 0), out=features.view(np.uint8).ravel())
        return torch.from_numpy(out)

    def view(self, row: int, epoch: int) -> int:
        """Which turn or flip of image `row` is seen in `epoch`."""
        return view_of(self.seed, epoch, row, self.shape[1])
