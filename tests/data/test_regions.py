import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import label

from data.errors import UserError
from data.images import read_image
from data.loading import ImageFiles, Visuals
from data.region_store import FoundRegions, RegionStore, build_regions, find_all
from data.regions import (
    RegionFinder,
    RegionSpec,
    cell_shares,
    enlarged,
    mask_side,
    segment,
    unpacked,
)
from data.transforms import Preprocessing, view_of
from models.views import VIEWS, turned

BLOCKS = np.zeros((64, 64, 3), np.uint8)  # four flat quarters
BLOCKS[:32, :32], BLOCKS[:32, 32:], BLOCKS[32:, :32], BLOCKS[32:, 32:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), 120


@pytest.fixture(scope="module")
def paths(scenes: Path) -> list[Path]:
    return sorted((scenes / "RSICD_images").iterdir())[:6]


def naive_shares(mask: np.ndarray, cells: int, fine: int) -> np.ndarray:
    """By counting points, `fine` in every pixel along each side."""
    dense = mask.repeat(fine, 0).repeat(fine, 1)
    side = len(dense) // cells
    return dense.reshape(cells, side, cells, side).mean((1, 3))


@pytest.mark.parametrize(("size", "cells", "fine"), [(12, 3, 1), (8, 3, 3), (10, 4, 2), (4, 4, 1)])
def test_shares_are_counted_points(size: int, cells: int, fine: int) -> None:
    masks = np.random.default_rng(0).random((5, size, size)) < 0.3
    found = cell_shares(masks, (cells, cells))
    expected = np.stack([naive_shares(mask, cells, fine) for mask in masks])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cell_shares(np.ones((1, size, size), bool), (cells, 2)), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["slic", "felzenszwalb"])
@pytest.mark.parametrize("count", [4, 9])
def test_partitions_share_out_the_image(paths: list[Path], kind: str, count: int) -> None:
    for path in paths:
        masks = segment(read_image(path), RegionSpec(kind, count))
        assert 1 < len(masks) <= count
        assert (masks.sum(0) == 1).all()
        assert all(label(mask, np.ones((3, 3)))[1] == 1 for mask in masks)  # in one piece each


@pytest.mark.parametrize(("kind", "count"), [("slic", 4), ("felzenszwalb", 12), ("selective_search", 12)])
def test_what_is_plainly_there_is_found(kind: str, count: int) -> None:
    masks = enlarged(segment(BLOCKS, RegionSpec(kind, count)), 64)
    quarters = [np.zeros((64, 64), bool) for _ in range(4)]
    for i, quarter in enumerate(quarters):
        quarter[32 * (i // 2) :, 32 * (i % 2) :][:32, :32] = True
        best = max((quarter & mask).sum() / (quarter | mask).sum() for mask in masks)
        assert best > 0.85  # the smoothing before the graph moves edges by a pixel


def test_selective_search_has_regions_of_all_sizes(paths: list[Path]) -> None:
    masks = segment(read_image(paths[0]), RegionSpec("selective_search", 15))
    assert len(masks) == 15
    assert masks[-1].all()  # the last that grouping makes
    for one in masks:  # a hierarchy: two regions lie apart or one in the other
        for other in masks:
            both = (one & other).sum()
            assert both in (0, one.sum(), other.sum())


def test_fewer_regions_than_asked_for_leave_the_rest_missing() -> None:
    found = RegionFinder(RegionSpec("felzenszwalb", 40), 4).find(BLOCKS, "blocks")
    there = found.shares.sum(1) > 0
    assert found.shares.shape == (40, 16) and 4 <= there.sum() < 40
    masks = unpacked(found.masks, 64)
    assert masks.shape == (40, 64, 64)
    assert masks.any((1, 2)).tolist() == there.tolist()
    flat = RegionFinder(RegionSpec("selective_search", 3), 2).find(np.full((32, 32, 3), 9, np.uint8), "flat")
    assert flat.shares.tolist() == [[1] * 4, [0] * 4, [0] * 4]  # nothing to be told apart: the whole image


@pytest.mark.parametrize(("side", "size"), [(1, 5), (5, 5), (8, 32), (16, 33), (9, 13)])
def test_a_mask_is_enlarged_to_the_pixels_that_lie_in_it(side: int, size: int) -> None:
    masks = np.random.default_rng(side).random((3, side, side)) < 0.5
    large = unpacked(np.packbits(masks, axis=-1), size)
    for y, x in itertools.product(range(size), repeat=2):
        inside = (2 * y + 1) * side // (2 * size), (2 * x + 1) * side // (2 * size)  # where the pixel's middle lies
        assert (large[:, y, x] == masks[:, *inside]).all()


@pytest.mark.parametrize(
    ("kind", "size"), [("slic", 50), ("felzenszwalb", 50), ("selective_search", 64), ("selective_search", 50)]
)
def test_shares_are_those_of_the_mask_to_be_seen(paths: list[Path], kind: str, size: int) -> None:
    finder = RegionFinder(RegionSpec(kind, 6), 2)
    found = finder.find(Preprocessing(size).resized(read_image(paths[0])), "scene")
    assert found.masks.shape == finder.whole(size).masks.shape  # a store has one shape for all
    assert found.masks.shape[1] == mask_side(kind, size)
    seen = unpacked(found.masks, size)
    assert seen.shape == (6, size, size) and seen.any(0).all()
    if size % mask_side(kind, size) == 0:  # else a pixel that lies in several of the mask's is that of its middle
        np.testing.assert_allclose(found.shares, cell_shares(seen, (2, 2)).reshape(6, -1), atol=1e-3)  # float16


def test_the_store_holds_what_is_found_and_a_broken_image_is_its_one_region(paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = ImageFiles([paths[0], broken, paths[1]], Preprocessing(64))
    finder = RegionFinder(RegionSpec("slic", 9), 2)
    store_path = tmp_path / "regions.h5"
    problems = build_regions(store_path, find_all(files, finder), 3, {"kind": "slic"})
    assert len(problems) == 1 and "broken.png" in problems[0]
    store = RegionStore(store_path, 64)
    assert store.masks(1).shape == (9, 64, 64) and store.masks(1)[0].all()
    assert store.read([1])[0].tolist() == [[1] * 4] + [[0] * 4] * 8
    live = FoundRegions(ImageFiles(paths, Preprocessing(64)), [path.stem for path in paths], finder)
    assert torch.equal(store.read([2, 0]), live.read([1, 0]))
    np.testing.assert_array_equal(store.masks(2), live.masks(1))
    none = ImageFiles([broken], Preprocessing(64))
    with pytest.raises(UserError, match=r"broken\.png"):
        build_regions(tmp_path / "none.h5", find_all(none, finder), 1, {})
    assert not (tmp_path / "none.h5").exists()


def test_many_processes_find_what_one_finds(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ImageFiles(paths, Preprocessing(32))
    finder = RegionFinder(RegionSpec("slic", 4), 2)
    alone = list(find_all(files, finder))
    monkeypatch.setattr("data.region_store.FEW", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    for one, other in zip(alone, find_all(files, finder), strict=True):
        np.testing.assert_array_equal(one[0].masks, other[0].masks)


def test_regions_turn_with_the_image(paths: list[Path]) -> None:
    files = ImageFiles(paths, Preprocessing(64), augment=True, seed=4)
    plain = ImageFiles(paths, Preprocessing(64))
    regions = FoundRegions(plain, [path.stem for path in paths], RegionFinder(RegionSpec("felzenszwalb", 8), 4))
    seen = set()
    for epoch in range(12):
        visual = Visuals(files, regions).read([1], epoch)
        view = view_of(4, epoch, 1)
        masks = turned(torch.from_numpy(regions.masks(1)), view)  # the masks themselves, turned
        assert visual.shares is not None
        expected = cell_shares(masks.numpy(), (4, 4)).reshape(8, -1)
        np.testing.assert_allclose(visual.shares[0].numpy(), expected, atol=1e-3)  # float16
        grey = turned(plain.read([1]), view).float().mean((1, 2, 3))
        assert abs(float(visual.content.float().mean() - grey)) < 40  # the same image but for its colours
        seen.add(view)
    assert len(seen) > 4 and VIEWS == 8


def test_given_masks_are_taken_as_they_are(tmp_path: Path) -> None:
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :2, :2], masks[1, :, :4], masks[2, :, 3:] = True, True, True
    np.savez_compressed(tmp_path / "scene.npz", masks=masks)
    finder = RegionFinder(RegionSpec("masks", 2, masks=str(tmp_path)), 2)
    found = unpacked(finder.find(BLOCKS, "scene").masks, 64)
    assert found[0].sum() == 64 * 64 * 5 / 8 and found[1].sum() == 64 * 64 / 2  # the two largest, largest first
    Image.fromarray(masks[2].astype(np.uint8)).save(tmp_path / "other.png")
    np.testing.assert_array_equal(unpacked(finder.find(BLOCKS, "other").masks, 64)[0], found[0])
    with pytest.raises(UserError, match=r"no third\.npz"):
        finder.find(BLOCKS, "third")


class Deadly:
    """A finder that ends each process that it is sent to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_process_that_dies_is_an_error_of_one_line(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.region_store.FEW", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(UserError, match="a process that finds regions died"):
        list(find_all(ImageFiles(paths, Preprocessing(32)), Deadly()))  # type: ignore[arg-type]
