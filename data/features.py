"""The feature store: what a frozen encoder makes of every image, computed once, kept in HDF5, read record by record."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with h5py.File(unfinished, "w") as file:
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
            file.attrs.update({name: json.dumps(value) for name, value in attributes.items()})
        with open(unfinished, "rb") as finished:
            os.fsync(finished.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class FeatureStore:
    """Reads a store that `build_store` wrote. Opened at the first read, so that each worker has a handle of its own.

    Of an image's views one is read, drawn anew in every epoch; `seed` fixes which.
    """

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path, self.seed = path, seed
        self._records: h5py.Dataset | None = None

    def _open(self) -> h5py.Dataset:
        if self._records is None:
            try:
                self._records = h5py.File(self.path, "r")["features"]
            except (OSError, KeyError):
                raise UserError(f"{self.path}: not a readable feature store; delete it to have it made anew") from None
        return self._records

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "seed": self.seed, "_records": None}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, views, N cells, D channels)."""
        images, views, cells, channels = self._open().shape
        return images, views, cells, channels

    def read(self, rows: Sequence[int], epoch: int = 0) -> Tensor:
        """Features of these images, each in its view of `epoch`, float16 [len(rows), N, D]."""
        records = self._open()
        views = records.shape[1]
        out = np.empty((len(rows), *records.shape[2:]), np.float16)
        for i, row in enumerate(rows):
            records.read_direct(out, np.s_[row, view_of(self.seed, epoch, row, views)], np.s_[i])
        return torch.from_numpy(out)
