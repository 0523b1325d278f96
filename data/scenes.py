"""Scenes: georeferenced rasters of any size, band count and data type, read one tile at a time."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError, reason
from data.transforms import Preprocessing, to_channels_first

CACHE = 64 << 20  # bytes of GDAL's block cache, which would otherwise grow to a twentieth of the memory
SAMPLE = 1024  # pixels along the longer side of the decimated read that the stretch is taken from
PIECE = 1024  # pixels of a scene's side that are reduced at once
EMPTY = 0.1  # a tile with less than this share of pixels with data is empty

# a scene need not be placed to be read; who writes maps says so in a line of its own
warnings.filterwarnings("ignore", "Dataset has no geotransform")


class Tile(NamedTuple):
    """A window of a scene in pixels: its left and top edge, width and height."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Tiling:
    """How scenes become images: `size` of a tile and pixels in common, and `bands` and `percentiles` as in `Scene`."""

    size: int = 224
    overlap: int = 0
    bands: tuple[int, ...] | None = None
    percentiles: tuple[float, float] | None = None

    def open(self, path: Path) -> "Scene":
        """The scene in this file, with these bands and percentiles."""
        return Scene(path, self.bands, self.percentiles)


def tile_grid(width: int, height: int, tiling: Tiling) -> list[Tile]:
    """Square tiles that cover a scene, row by row from the top left.

    The last of a row or column ends flush with the scene's edge (and overlaps more); a scene smaller than a tile is
    one tile.
    """
    size, overlap = tiling.size, tiling.overlap
    if size < 32 or not 0 <= overlap < size:
        raise UserError(f"tiles of {size} pixels with {overlap} in common; sizes start at 32, overlaps are smaller")

    def starts(length: int) -> list[int]:
        last = max(0, length - size)
        return [*range(0, last, size - overlap), last]

    wide, high = min(size, width), min(size, height)
    return [Tile(x, y, wide, high) for y in starts(height) for x in starts(width)]


def tile_name(path: Path, tile: Tile) -> str:
    """What a tile is called: the scene's path with the tile as a media fragment (W3C Media Fragments, 4.2.2).

    Examples:
        >>> tile_name(Path("port.tif"), Tile(448, 0, 224, 224))
        'port.tif#xywh=448,0,224,224'
    """
    return f"{path}#xywh={','.join(map(str, tile))}"


def parse_tile_name(name: str) -> tuple[Path, Tile | None]:
    """The scene and the tile that `tile_name` named; no tile where the name has none.

    Examples:
        >>> parse_tile_name("port.tif#xywh=448,0,224,224")[1]
        Tile(x=448, y=0, width=224, height=224)
    """
    found = re.fullmatch(r"(.*)#xywh=(\d+),(\d+),(\d+),(\d+)", name, re.DOTALL)
    return (Path(found[1]), Tile(*map(int, found.groups()[1:]))) if found else (Path(name), None)


def tile_names(files: Sequence[str], tiling: Tiling) -> list[str]:
    """The names of all tiles of these scenes; a file that is no scene stays as it is (reading it says why)."""
    names = []
    for file in files:
        try:
            scene = tiling.open(Path(file))
        except UserError:
            names.append(file)
            continue
        names += [tile_name(scene.path, tile) for tile in tile_grid(scene.width, scene.height, tiling)]
        scene.close()
    return names


class SceneTiles:
    """Reads named tiles as the encoder sees them, one scene open at a time."""

    def __init__(self, names: Sequence[str], preprocessing: Preprocessing, tiling: Tiling) -> None:
        self.names, self.tiling = names, tiling
        self.size = preprocessing.size
        self._resized = preprocessing.resized
        self._scene: Scene | None = None

    def read(self, rows: Sequence[int], epoch: int = 0) -> Tensor:
        """The tiles of these rows that have data, uint8 [b, 3, size, size]; the same in every epoch."""
        found = []
        for row in rows:
            path, tile = parse_tile_name(self.names[row])
            if self._scene is None or self._scene.path != path:
                if self._scene is not None:
                    self._scene.close()
                self._scene = None
                self._scene = self.tiling.open(path)
            pixels = self._scene.read(tile or Tile(0, 0, self._scene.width, self._scene.height))
            if pixels is not None:
                found.append(to_channels_first(self._resized(pixels)))
        return torch.from_numpy(np.array(found, np.uint8).reshape(-1, 3, self.size, self.size))

    def view(self, row: int, epoch: int) -> int:
        """Which turn or flip of the tile that is: none."""
        return 0


class Scene:
    """A raster that rasterio opens, as RGB tiles of uint8.

        value -> 255 (value - low_band) / (high_band - low_band), clipped

    `limits`, low and high, are percentiles of each band over the pixels with data of the reduced scene, found when the
    first pixels are asked for; without percentiles 8-bit data stay as they are and everything else takes the 2nd and
    98th. Pixels without data (the nodata value, a mask, alpha, NaN or infinity) become black.

    Args:
        path: the file. bands: numbers of the bands, from 1, for red, green and blue, or one for grey; by default those
            that the file calls red, green and blue, else the first three, else the first; a palette is resolved.
        percentiles: (low, high) in percent.

    Raises `UserError` where the file is no raster or lacks these bands. A handle stays open until `close`; the GDAL
    block cache is bounded, so that memory depends on the tile and not on the scene.
    """

    def __init__(
        self, path: Path, bands: tuple[int, ...] | None = None, percentiles: tuple[float, float] | None = None
    ) -> None:
        try:
            import rasterio
            from rasterio.enums import ColorInterp
        except ImportError:
            raise UserError(f"{path}: reading scenes needs pip install -r requirements-geo.txt") from None
        self.path = path
        self._env = rasterio.Env(GDAL_CACHEMAX=CACHE)
        try:
            with self._env:
                self._file = rasterio.open(path)
        except rasterio.RasterioIOError as error:
            raise UserError(f"{path}: not a readable raster ({reason(error)})") from None
        except UnicodeEncodeError:  # GDAL's names are UTF-8
            raise UserError(f"{path}: its name is no UTF-8, which a scene's has to be; rename it") from None
        self.width, self.height = self._file.width, self._file.height
        self.transform, self.crs = self._file.transform, self._file.crs
        named = {interpretation: i for i, interpretation in enumerate(self._file.colorinterp, 1)}
        colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if bands is None:
            known = tuple(named[c] for c in colours if c in named)
            bands = known if len(known) == 3 else (1, 2, 3) if self._file.count >= 3 else (1,)
        if len(bands) not in (1, 3) or not all(1 <= band <= self._file.count for band in bands):
            asked = ",".join(map(str, bands))
            raise UserError(f"{path}: has bands 1 to {self._file.count}, not {asked}; choose one or three of them")
        self.bands = bands
        self._palette = self._colours() if ColorInterp.palette in named and bands == (1,) else None
        kind = np.dtype(self._file.dtypes[bands[0] - 1])
        if kind.kind == "c":
            raise UserError(f"{path}: complex values; take their magnitude first")
        self._percentiles = percentiles or (None if kind == np.uint8 else (2, 98))

    def read(self, tile: Tile) -> np.ndarray | None:
        """The tile as RGB uint8 [height, width, 3]; None where it is empty.

        Empty is a tile of which less than a tenth has data, or whose data are all of one value.
        """
        from rasterio.windows import Window

        values, there = self._values(window=Window(*tile))
        if there.mean() < EMPTY or all(np.ptp(band[there]) == 0 for band in values):
            return None
        return self._to_rgb(values, there)

    def overview(self, side: int) -> np.ndarray:
        """The whole scene as RGB uint8 with at most `side` pixels along its longer side."""
        return self._to_rgb(*self._reduced(side))

    def outline(self, tile: Tile) -> list[tuple[float, float]]:
        """The tile's corners in the scene's coordinates, counterclockwise from the lower left, closed."""
        left, top, right, bottom = tile.x, tile.y, tile.x + tile.width, tile.y + tile.height
        corners = [(left, bottom), (right, bottom), (right, top), (left, top)]
        if self.transform.determinant > 0:  # south is up: the other way round
            corners.reverse()
        placed = [self.transform @ corner for corner in corners]
        return [(x, y) for x, y in [*placed, placed[0]]]

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _reduced(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole scene as `_values` gives it, with at most `side` pixels along its longer side.

        Piece by piece: GDAL reads line by line, and of a wide scene's blocks one line's do not fit into its cache, so
        that it would unpack all of them for each line. A file in strips is as well read across.
        """
        scale = min(1.0, side / max(self.width, self.height))
        height, width = (max(1, round(length * scale)) for length in (self.height, self.width))
        across = self.width if self._file.block_shapes[0][1] == self.width else PIECE
        bands = []
        for top, bottom, high in _pieces(self.height, height, PIECE):
            row = [
                self._values(window=((top, bottom), (left, right)), out_shape=(high, wide))
                for left, right, wide in _pieces(self.width, width, across)
            ]
            bands.append([np.concatenate(part, axis=-1) for part in zip(*row, strict=True)])
        values, there = (np.concatenate(part, axis=-2) for part in zip(*bands, strict=True))
        return values, there

    def _values(self, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        """Values [bands, h, w] and where all of them are there [h, w]."""
        import rasterio

        try:
            with self._env:
                read = self._file.read(self.bands, masked=True, **how)
        except rasterio.RasterioIOError as error:
            raise UserError(f"{self.path}: broken inside ({reason(error)}); restore it") from None
        there = np.asarray(~np.ma.getmaskarray(read).any(0))
        if read.dtype.kind == "f":
            there &= np.isfinite(read.data).all(0)
        return read.data, there

    @cached_property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The values of each band that become black and white, [bands, 1, 1] or [1]."""
        if self._percentiles is None:
            return np.zeros(1), np.full(1, 255.0)
        values, there = self._reduced(SAMPLE)
        if not there.any():
            return np.zeros((len(values), 1, 1)), np.ones((len(values), 1, 1))
        low, high = np.percentile(values[:, there].astype(np.float64), self._percentiles, axis=1)[..., None, None]
        return low, np.where(high > low, high, low + 1)

    def _colours(self) -> np.ndarray:
        table = self._file.colormap(1)
        values = np.iinfo(self._file.dtypes[0]).max + 1
        return np.array([table.get(i, (0, 0, 0, 255))[:3] for i in range(values)], np.uint8)

    def _to_rgb(self, values: np.ndarray, there: np.ndarray) -> np.ndarray:
        if self._palette is not None:
            rgb = self._palette[values[0]]
        else:
            low, high = self.limits
            scaled = (np.where(there, values, 0).astype(np.float64) - low) * (255 / (high - low))
            rgb = np.clip(np.round(scaled), 0, 255).astype(np.uint8).transpose(1, 2, 0)
            rgb = np.repeat(rgb, 3, axis=2) if len(values) == 1 else rgb
        return np.where(there[..., None], rgb, np.uint8(0))


def _pieces(length: int, count: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Where pieces of about `size` of `length` pixels begin and end, and how many of `count` pixels each becomes."""
    for start, stop in pairwise([*range(0, count, max(1, round(size * count / length))), count]):
        yield round(start * length / count), round(stop * length / count), stop - start
