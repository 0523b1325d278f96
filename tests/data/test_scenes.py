"""Scenes against what rasterio reads whole, and against arithmetic done by hand."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config
from rasterio.transform import Affine, from_origin

from data.errors import UserError
from data.images import read_image
from data.scenes import Scene, SceneTiles, Tile, Tiling, parse_tile_name, tile_grid, tile_name, tile_names
from data.transforms import Preprocessing

UTM = from_origin(500_000, 5_400_000, 0.5, 0.5)


def write(path: Path, values: np.ndarray, transform: Affine = UTM, crs: str | None = "EPSG:32631", **more: Any) -> Path:
    """A GeoTIFF of `values` [bands, h, w]."""
    bands, height, width = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    interpretation = more.pop("colorinterp", None)
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, **more) as file:
        file.write(values)
        if interpretation:
            file.colorinterp = interpretation
    return path


def noise(*shape: int, dtype: Any = np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


@given(width=st.integers(1, 400), height=st.integers(1, 400), size=st.integers(32, 130), share=st.floats(0, 0.99))
def test_tiles_cover_a_scene_and_stay_in_it(width: int, height: int, size: int, share: float) -> None:
    tiles = tile_grid(width, height, Tiling(size, int(share * size)))
    covered = np.zeros((height, width), bool)
    for tile in tiles:
        assert (tile.width, tile.height) == (min(size, width), min(size, height))
        assert 0 <= tile.x <= width - tile.width and 0 <= tile.y <= height - tile.height
        covered[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = True
    assert covered.all()
    assert len(set(tiles)) == len(tiles)


def test_tiles_that_fit_are_a_plain_grid() -> None:
    assert [t[:2] for t in tile_grid(128, 64, Tiling(64))] == [(0, 0), (64, 0)]
    assert [t.x for t in tile_grid(160, 64, Tiling(64, 16))] == [0, 48, 96]
    for size, overlap in ((31, 0), (64, 64), (64, -1)):
        with pytest.raises(UserError, match="overlaps are smaller"):
            tile_grid(100, 100, Tiling(size, overlap))


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    values = noise(3, 90, 70)
    scene = Scene(write(tmp_path / "a.tif", values))
    tile = Tile(11, 22, 40, 50)
    np.testing.assert_array_equal(scene.read(tile), values[:, 22:72, 11:51].transpose(1, 2, 0))


@pytest.mark.parametrize(("dtype", "high"), [("uint16", 2048), ("uint16", 65536), ("int16", 3000), ("float32", 4096)])
def test_wider_values_are_stretched_between_percentiles(dtype: str, high: int, tmp_path: Path) -> None:
    values = noise(3, 80, 60, dtype=dtype, high=high)
    low, top = np.percentile(values.reshape(3, -1).astype(float), (2, 98), axis=1)[..., None, None]
    expected = np.clip(np.round((values - low) * (255 / (top - low))), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    scene = Scene(write(tmp_path / "a.tif", values))
    np.testing.assert_array_equal(scene.read(Tile(0, 0, 60, 80)), expected)
    assert (expected == 0).mean() == pytest.approx(0.02, abs=0.01)  # values are few: ties at the percentile
    all_of_it = Scene(write(tmp_path / "b.tif", values), percentiles=(0, 100)).read(Tile(0, 0, 60, 80))
    assert all_of_it is not None and all_of_it.min() == 0 and all_of_it.max() == 255


def test_pixels_without_data_are_black_and_not_counted(tmp_path: Path) -> None:
    values = noise(3, 100, 100, dtype="uint16", high=1000) + 500
    values[:, :50] = 0
    scene = Scene(write(tmp_path / "a.tif", values, nodata=0))
    assert (scene.limits[0] > 500).all()  # the zeros would have pulled it to 0
    half = scene.read(Tile(0, 0, 100, 100))
    assert half is not None and (half[:50] == 0).all() and half[50:].mean() > 100
    assert scene.read(Tile(0, 0, 40, 40)) is None
    floats = noise(3, 100, 100).astype(np.float32)
    floats[:, :, 20:] = np.nan
    floats[0, 0, 0] = np.inf
    scene = Scene(write(tmp_path / "b.tif", floats))
    seen = scene.read(Tile(0, 0, 100, 100))
    assert seen is not None and (seen[:, 20:] == 0).all() and (seen[0, 0] == 0).all() and seen[1:, :20].any()
    assert scene.read(Tile(30, 0, 50, 50)) is None
    constant = Scene(write(tmp_path / "c.tif", np.full((3, 64, 64), 7, np.uint8)))
    assert constant.read(Tile(0, 0, 64, 64)) is None


def test_alpha_is_a_mask(tmp_path: Path) -> None:
    values = noise(4, 64, 64)
    values[3] = 255
    values[3, :, :32] = 0
    scene = Scene(write(tmp_path / "a.tif", values, photometric="RGB", alpha="YES"))
    seen = scene.read(Tile(0, 0, 64, 64))
    assert seen is not None and (seen[:, :32] == 0).all()
    np.testing.assert_array_equal(seen[:, 32:], values[:3, :, 32:].transpose(1, 2, 0))


def test_bands_are_those_that_are_red_green_and_blue(tmp_path: Path) -> None:
    values = noise(5, 40, 40)
    colours = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    path = write(tmp_path / "a.tif", values, colorinterp=colours)
    tile = Tile(0, 0, 40, 40)
    for bands, expected in ((None, (4, 3, 2)), ((5, 1, 1), (5, 1, 1)), ((2,), (2, 2, 2))):
        np.testing.assert_array_equal(Scene(path, bands).read(tile), np.stack([values[b - 1] for b in expected], -1))
    grey = write(tmp_path / "grey.tif", values[:1])
    np.testing.assert_array_equal(Scene(grey).read(tile), np.repeat(values[0][..., None], 3, 2))
    for wrong in ((1, 2), (0, 1, 2), (4, 5, 6), ()):
        with pytest.raises(UserError, match="choose one or three"):
            Scene(path, wrong)


def test_a_palette_is_resolved_as_pillow_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(1, 40, 40, high=4))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0), 1: (0, 255, 0), 2: (9, 9, 9), 3: (1, 2, 3)})
    np.testing.assert_array_equal(Scene(path).read(Tile(0, 0, 40, 40)), read_image(path))
    wide = write(tmp_path / "b.tif", noise(1, 40, 40, high=4).astype(np.uint16))
    with rasterio.open(wide, "r+") as file:
        file.write_colormap(1, {3: (1, 2, 3)})
        values = file.read(1)
    found = Scene(wide).read(Tile(0, 0, 40, 40))
    assert found is not None and (found[values == 3] == (1, 2, 3)).all() and (found[values != 3] == 0).all()


def test_outlines_run_counterclockwise_wherever_north_is(tmp_path: Path) -> None:
    values = noise(1, 40, 60)
    scene = Scene(write(tmp_path / "a.tif", values))
    assert scene.outline(Tile(20, 10, 30, 30)) == [
        (500_010.0, 5_399_980.0),
        (500_025.0, 5_399_980.0),
        (500_025.0, 5_399_995.0),
        (500_010.0, 5_399_995.0),
        (500_010.0, 5_399_980.0),
    ]
    for transform in (UTM, Affine(0.5, 0, 5, 0, 0.5, 7), UTM @ Affine.rotation(30)):
        ring = Scene(write(tmp_path / "b.tif", values, transform)).outline(Tile(3, 4, 33, 32))
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2
        assert area == pytest.approx(33 * 32 * 0.25)


def test_names_lead_back_to_tiles(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a#b.tif", noise(3, 64, 130)), tmp_path / "broken.tif"
    other.write_text("no raster")
    names = tile_names([str(one), str(other)], Tiling(64))
    assert names == [*(f"{one}#xywh={x},0,64,64" for x in (0, 64, 66)), str(other)]
    assert [parse_tile_name(name) for name in names[:2]] == [(one, Tile(0, 0, 64, 64)), (one, Tile(64, 0, 64, 64))]
    assert tile_name(*parse_tile_name(names[2])) == names[2]  # type: ignore[arg-type]
    reader = SceneTiles(names, Preprocessing(64), Tiling(64))
    read = reader.read([2, 0])
    with rasterio.open(one) as file:
        np.testing.assert_array_equal(read[0].numpy(), file.read()[:, :, 66:130])
    with pytest.raises(UserError, match="not a readable raster"):
        reader.read([3])
    assert reader.read([1]).shape == (1, 3, 64, 64)  # and goes on


def test_what_is_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable raster"):
        Scene(tmp_path / "missing.tif")
    path = write(tmp_path / "cut.tif", noise(3, 300, 300, dtype="uint8"), compress="deflate", tiled=True, blockxsize=64,
                 blockysize=64)  # fmt: skip
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cut\.tif"):
        Scene(path).read(Tile(230, 230, 64, 64))
    with pytest.raises(UserError, match="complex"):
        Scene(write(tmp_path / "c.tif", noise(1, 40, 40).astype(np.complex64)))


def test_an_overview_is_the_scene_in_small(tmp_path: Path) -> None:
    values = np.repeat(np.repeat(noise(3, 20, 30), 10, 1), 10, 2)
    small = Scene(write(tmp_path / "a.tif", values)).overview(30)
    np.testing.assert_array_equal(small, values[:, 5::10, 5::10].transpose(1, 2, 0))
    assert Image.fromarray(small).size == (30, 20)


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 32, "blockysize": 32}, {}], ids=["blocks", "strips"])
def test_a_wide_scene_is_reduced_piece_by_piece(
    layout: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (np.arange(200)[:, None] + 1000 * np.arange(60)[None, :])[None].astype("int32")
    scene = Scene(write(tmp_path / "a.tif", values, nodata=0, **layout))
    monkeypatch.setattr("data.scenes.PIECE", 48)
    reduced, there = scene._reduced(100)
    rows, columns = reduced[0] % 1000, reduced[0] // 1000
    assert reduced.shape == (1, 100, 30) and there.sum() >= 100 * 30 - 1  # at most the one corner is 0
    # nearest neighbours: every pixel comes from the 2 x 2 that it stands for, or one beside them at a piece's edge
    assert (abs(rows - 2 * np.arange(100)[:, None]) <= 2).all() and (abs(columns - 2 * np.arange(30)) <= 2).all()


def test_blocks_are_unpacked_once_and_not_for_every_line(tmp_path: Path) -> None:
    """rasterio takes GDAL_CACHEMAX in bytes, GDAL itself in megabytes."""
    scene = Scene(write(tmp_path / "a.tif", noise(3, 64, 64)))
    with scene._env:
        assert get_gdal_config("GDAL_CACHEMAX") == 64 << 20


def test_nothing_is_read_before_pixels_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene is opened several times in a run; its stretch costs a pass over the file."""
    path = write(tmp_path / "a.tif", noise(3, 64, 64, dtype="uint16", high=4096))
    monkeypatch.setattr(Scene, "_values", None)
    assert len(tile_names([str(path)], Tiling(32))) == 4
    assert Scene(path, percentiles=(1, 99)).width == 64
