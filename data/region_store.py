"""The store of regions: found once for every image by all cores, kept in HDF5, read record by record."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.features import Store, new_store
from data.loading import ImageFiles, Readable, leave_to_the_parent
from data.regions import Found, RegionFinder, unpacked

FEW = 64  # images that are not worth starting processes for

Looked = tuple[Found, str]
"""The regions of an image, and why it could not be looked at ("": it could)."""


def find_all(files: ImageFiles, finder: RegionFinder) -> Iterator[Looked]:
    """The regions of every file, in order, found by as many processes as there are cores.

    A file that cannot be read ends no pass over thousands: its one region is the whole image. The caller's script must
    be importable (`if __name__ == "__main__":`), since the processes start afresh.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = len(files.paths)
    if cores == 1 or count <= FEW:
        yield from (_look(files, finder, row) for row in range(count))
        return
    with (
        _single_threads(),
        ProcessPoolExecutor(
            cores, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(files, finder)
        ) as pool,
    ):
        try:
            yield from pool.map(_task, range(count), chunksize=8)
        except BrokenProcessPool:
            raise UserError(
                "a process that finds regions died, perhaps for want of memory; free some, or make the largest images "
                "smaller, and run it again"
            ) from None


def build_regions(path: Path, found: Iterable[Looked], count: int, attributes: dict[str, Any]) -> list[str]:
    """Write the regions of `count` images to `path`, whole or not at all; returns what was wrong with which image.

    The file holds `shares` and `masks` of `Found`, [count, ...], compressed image by image.

    Raises:
        UserError: no image could be looked at.
    """
    problems = []
    with new_store(path, attributes) as file:
        records: dict[str, Any] = {}
        for row, (regions, problem) in enumerate(found):
            for name, values in regions._asdict().items():
                if name not in records:
                    shape = values.shape
                    records[name] = file.create_dataset(
                        name, (count, *shape), values.dtype, chunks=(1, *shape), compression="gzip"
                    )
                records[name][row] = values
            problems += [problem] if problem else []
        if len(problems) == count:
            raise UserError(problems[0])
    return problems


class FoundRegions:
    """The regions of images that are found when they are asked for: of images that are looked at once.

    `names` are those of the images' files, without suffixes, which given masks go by.
    """

    def __init__(self, content: Readable[Tensor], names: Sequence[str], finder: RegionFinder) -> None:
        self.content, self.names, self.finder = content, names, finder

    def read(self, rows: Sequence[int]) -> Tensor:
        """Of each cell the share that each region covers, float16 [len(rows), N, h * w]."""
        return torch.from_numpy(np.stack([self._find(self._image(row), row).shares for row in rows]))

    def masks(self, row: int) -> np.ndarray:
        """The regions of image `row`, bool [N, S, S]."""
        image = self._image(row)
        return unpacked(self._find(image, row).masks, len(image))

    def _image(self, row: int) -> np.ndarray:
        return self.content.read([row])[0].permute(1, 2, 0).numpy()

    def _find(self, image: np.ndarray, row: int) -> Found:
        return self.finder.find(image, self.names[row])


class RegionStore(Store):
    """Reads what `build_regions` wrote of images of `size` pixels a side."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path)
        self.size = size

    def read(self, rows: Sequence[int]) -> Tensor:
        """Of each cell the share that each region covers, float16 [len(rows), N, h * w]."""
        records = self.records("shares")
        return torch.from_numpy(np.stack([records[row] for row in rows]))

    def masks(self, row: int) -> np.ndarray:
        """The regions of image `row`, bool [N, S, S]."""
        return unpacked(self.records("masks")[row], self.size)


def _look(files: ImageFiles, finder: RegionFinder, row: int) -> Looked:
    try:
        image = files.read([row])[0].permute(1, 2, 0).numpy()
        return finder.find(image, files.paths[row].stem), ""
    except UserError as error:
        return finder.whole(files.size), str(error)


_JOB: list[Any] = []  # what a process of the pool works on, sent to it once


def _begin(files: ImageFiles, finder: RegionFinder) -> None:
    leave_to_the_parent()
    torch.set_num_threads(1)
    _JOB[:] = [files, finder]


def _task(row: int) -> Looked:
    files, finder = _JOB
    return _look(files, finder, row)


@contextmanager
def _single_threads() -> Iterator[None]:
    """Libraries of processes that are started here use one thread each: there are as many processes as cores.

    glibc keeps there 64 MB of what is freed, for the next image's arrays (as `tune_memory` in utils/devices.py).
    """
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENCV_FOR_THREADS_NUM="1")
    os.environ.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(2**26))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
