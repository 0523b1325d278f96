"""Captions as files: JSON, JSON lines and CSV of images, and GeoJSON and GeoParquet of the tiles of scenes."""

import csv
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby, islice, pairwise, product
from pathlib import Path
from typing import Any

from data.errors import UserError, reason
from data.scenes import Scene, Tile, Tiling, parse_tile_name
from utils.journal import Row

Ring = list[tuple[float, float]]
ROWS = 10_000  # in a row group of parquet


def write_json(rows: Iterator[Row], path: Path) -> None:
    """One list of objects."""
    with _text(path) as file:
        for i, row in enumerate(rows):
            file.write(",\n  " if i else "[\n  ")
            file.write(json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def write_lines(rows: Iterator[Row], path: Path) -> None:
    """An object a line."""
    with _text(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_csv(rows: Iterator[Row], path: Path) -> None:
    """A line a row; with a column `match` where the first row has one."""
    first = next(rows)
    columns = ["file", "caption", "score", *(["match"] if "match" in first else []), "error"]
    with _text(path) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(chain([first], rows))


def write_geojson(rows: Iterator[Row], path: Path) -> None:
    """A feature collection (RFC 7946): each tile a polygon in WGS84, longitude first, counterclockwise.

    A tile that crosses the antimeridian is cut there into a multi-polygon (section 3.1.9).
    """
    from rasterio.warp import transform_geom

    with _text(path) as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for scene, group in _by_scene(rows):
            while part := list(islice(group, ROWS)):
                polygons = [{"type": "Polygon", "coordinates": [scene.outline(tile)]} for tile, _ in part]
                # antimeridian_cutting is always on since GDAL 2.2
                placed = transform_geom(scene.crs, "OGC:CRS84", polygons, precision=7)
                for (tile, row), geometry in zip(part, placed, strict=True):
                    properties = _properties(row, scene, tile)
                    feature = {"type": "Feature", "properties": properties, "geometry": _as_geojson(geometry)}
                    file.write(separator + json.dumps(feature, ensure_ascii=False))
                    separator = ",\n"
        file.write("\n]}\n")


def write_geoparquet(rows: Iterator[Row], path: Path) -> None:
    """GeoParquet 1.1: each tile a WKB polygon in its scene's coordinate system, counterclockwise."""
    import pyarrow
    import pyarrow.parquet

    text, number, whole = pyarrow.string(), pyarrow.float32(), pyarrow.int32()
    kinds = {"scene": text, "x": whole, "y": whole, "width": whole, "height": whole, "caption": text, "score": number}
    kinds |= {"confidence": number, "match": number, "error": text, "geometry": pyarrow.binary()}
    writer = None
    try:
        for scene, group in _by_scene(rows):
            if writer is None:
                column = {
                    "encoding": "WKB",
                    "geometry_types": ["Polygon"],
                    "crs": scene.crs.to_dict(projjson=True),
                    "orientation": "counterclockwise",
                }
                geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
                schema = pyarrow.schema(kinds, metadata={"geo": json.dumps(geo)})
                writer = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
            while part := list(islice(group, ROWS)):
                table = [_properties(row, scene, tile) | {"geometry": _wkb(scene.outline(tile))} for tile, row in part]
                writer.write_table(pyarrow.Table.from_pylist(table, schema))
    finally:
        if writer is not None:
            writer.close()


FORMATS: dict[str, Callable[[Iterator[Row], Path], None]] = {
    ".json": write_json,
    ".jsonl": write_lines,
    ".csv": write_csv,
    ".geojson": write_geojson,
    ".parquet": write_geoparquet,
}
PLACED = (".geojson", ".parquet")  # formats that need to know where on Earth a tile lies


def _check_known(scene: Scene) -> None:
    """`UserError` where a scene's corners have no place in WGS84: its coordinates are a building's, or no one's."""
    from rasterio.warp import transform_geom

    try:
        whole = scene.outline(Tile(0, 0, scene.width, scene.height))
        transform_geom(scene.crs, "OGC:CRS84", {"type": "Polygon", "coordinates": [whole]})
    except Exception as error:  # rasterio's are of a private module
        raise UserError(
            f"{scene.path}: its coordinates have no place in WGS84 ({reason(error)}); write .parquet, .json or .csv"
        ) from None


def check_placed(names: Sequence[str], output: Path, tiling: Tiling) -> None:
    """`UserError` where tiles cannot be written to `output`: none can be read, or they do not say where they lie."""
    found: dict[str, Path] = {}
    for path in dict.fromkeys(path for path, tile in map(parse_tile_name, names) if tile):
        scene = Scene(path)
        scene.close()
        if scene.crs is None or scene.transform.is_identity:
            raise UserError(
                f"{path}: does not say where on Earth it lies; write .json or .csv, or place it with gdal_edit -a_srs"
            )
        if output.suffix == ".geojson":
            _check_known(scene)
        found.setdefault(scene.crs.to_wkt(), path)
    if len(found) > 1 and output.suffix == ".parquet":
        one, other, *_ = found.values()
        raise UserError(f"{output}: holds one coordinate system, {one} and {other} have two; write .geojson")
    if not found:
        tiling.open(Path(names[0])).close()  # says what is wrong
        raise UserError(f"{output}: needs scenes that can be read; write .json or .csv")


def _text(path: Path) -> Any:
    return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")


def _by_scene(rows: Iterator[Row]) -> Iterator[tuple[Scene, Iterator[tuple[Tile, Row]]]]:
    """The scenes, opened, with the tiles of each; rows that belong to no tile are left out."""
    for path, group in groupby(rows, lambda row: parse_tile_name(row["file"])[0]):
        tiles = ((tile, row) for row in group if (tile := parse_tile_name(row["file"])[1]))
        if (first := next(tiles, None)) is None:
            continue
        scene = Scene(path)
        yield scene, chain([first], tiles)
        scene.close()


def _properties(row: Row, scene: Scene, tile: Tile) -> Row:
    """What is said of a tile; confidence is exp(score), with length penalty 1 the geometric mean of p of its words."""
    about: Row = {"scene": scene.path.name, **tile._asdict()}
    about |= {key: value for key, value in row.items() if key != "file"}
    if "score" in row:
        about["confidence"] = round(math.exp(row["score"]), 4)
    return about


def _wkb(ring: Ring) -> bytes:
    """A polygon of one ring as little-endian well-known binary."""
    return struct.pack("<BIII", 1, 3, 1, len(ring)) + b"".join(struct.pack("<dd", *point) for point in ring)


def _as_geojson(geometry: dict[str, Any]) -> dict[str, Any]:
    """A polygon or multi-polygon as RFC 7946 has it: outer rings counterclockwise, longitudes of -180 to 180 degrees.

    GDAL cuts what it transforms; a scene in degrees stays as it is, and may count to 360 or run over the edge.
    """
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    if any(abs(x) > 180 for polygon in polygons for x, _ in polygon[0]):
        polygons = _within_180(polygons)
    turned = [[ring if _area(ring) > 0 else ring[::-1] for ring in polygon] for polygon in polygons]
    one = len(turned) == 1
    return {"type": "Polygon" if one else "MultiPolygon", "coordinates": turned[0] if one else turned}


def _within_180(polygons: Sequence[Sequence[Ring]]) -> list[list[Ring]]:
    """Polygons of an outer ring each, cut at 180 degrees and moved to where longitudes are -180 to 180."""
    found = []
    for (ring, *_), turn in product(polygons, (-360, 0, 360)):
        moved = [(x + turn, y) for x, y in ring]
        inside = _left_of(_left_of(moved, 180, 1), -180, -1)
        if len(inside) > 3 and _area(inside):
            found.append([[(round(x, 7), round(y, 7)) for x, y in inside]])
    return found


def _left_of(ring: Ring, limit: float, sign: int) -> Ring:
    """What of a closed ring has sign x <= sign limit, closed (Sutherland & Hodgman, CACM 1974)."""
    kept: Ring = []
    for (x, y), (next_x, next_y) in pairwise(ring):
        if sign * x <= sign * limit:
            kept.append((x, y))
        if (sign * x <= sign * limit) != (sign * next_x <= sign * limit):
            kept.append((limit, y + (next_y - y) * (limit - x) / (next_x - x)))
    return [*kept, *kept[:1]]


def _area(ring: Sequence[Sequence[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2
