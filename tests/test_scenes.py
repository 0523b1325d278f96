"""caption.py on scenes and by several processes, through the command line; its maps read back by other libraries."""

import csv
import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import rasterio
from PIL import Image
from pyproj import CRS
from rasterio.transform import Affine, from_origin
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.ops import unary_union

import caption
from data.errors import UserError
from data.files import file_digest
from utils import outputs
from utils.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def call(*words: object) -> None:
    caption.main(caption.parse_arguments(list(map(str, words))))


def write(path: Path, width: int, height: int, crs: str | None, transform: Affine, **more: Any) -> Path:
    """Noise with an empty lower left quarter."""
    values = np.random.default_rng(1).integers(1, 2000, (4, height, width)).astype("uint16")
    values[:, height // 2 :, : width // 2] = 0
    with rasterio.open(path, "w", driver="GTiff", count=4, height=height, width=width, dtype="uint16", nodata=0,
                       crs=crs, transform=transform, **more) as file:  # fmt: skip
        file.write(values)
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 x 4 tiles of 32 pixels at half a metre in UTM zone 31N; four of them are empty."""
    return write(tmp_path_factory.mktemp("scene") / "s.tif", 128, 128, "EPSG:32631", from_origin(5e5, 54e5, 0.5, 0.5))


def test_geojson_and_geoparquet_tell_the_same(scene: Path, checkpoint: Path, tmp_path: Path) -> None:
    outs = {suffix: tmp_path / f"o.{suffix}" for suffix in ("geojson", "parquet", "csv")}
    for output in outs.values():
        call(scene, "--checkpoint", checkpoint, "--output", output, "--tile", 32, "--bands", "4,3,2")
    metres, degrees = geopandas.read_parquet(outs["parquet"]), geopandas.read_file(outs["geojson"])
    assert metres.crs == "EPSG:32631" and degrees.crs == "EPSG:4326"
    places = {(x, y) for x in range(0, 128, 32) for y in range(0, 128, 32) if x >= 64 or y < 64}
    assert set(zip(metres.x, metres.y, strict=True)) == places and len(metres) == 12
    for _, row in metres.iterrows():
        left, top = 5e5 + row.x / 2, 54e5 - row.y / 2
        assert row.geometry.equals(Polygon([(left, top - 16), (left + 16, top - 16), (left + 16, top), (left, top)]))
        assert row.geometry.exterior.is_ccw and row.confidence == pytest.approx(np.exp(row.score), abs=1e-4)
    back = degrees.to_crs("EPSG:32631")
    for name in ("scene", "x", "y", "width", "height", "caption"):
        assert list(metres[name]) == list(back[name])
    # seven decimals of a degree are a centimetre
    assert max(a.hausdorff_distance(b) for a, b in zip(metres.geometry, back.geometry, strict=True)) < 0.02
    assert all(g.exterior.is_ccw for g in degrees.geometry) and degrees.total_bounds == pytest.approx(
        [3, 48.75, 3, 48.75], abs=0.01
    )
    rows = list(csv.DictReader(outs["csv"].open()))
    assert [row["file"] for row in rows[:2]] == [f"{scene}#xywh=0,0,32,32", f"{scene}#xywh=32,0,32,32"]
    assert [row["caption"] for row in rows] == list(metres.caption)
    assert len(set(metres.caption)) > 1


def test_geoparquet_states_what_the_format_asks_for(scene: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"
    call(scene, "--checkpoint", checkpoint, "--output", output, "--tile", 64)
    table = pyarrow.parquet.read_table(output)
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"], column["orientation"]) == (
        "WKB",
        ["Polygon"],
        "counterclockwise",
    )
    assert CRS.from_json_dict(column["crs"]) == CRS.from_epsg(32631)
    wkb = table["geometry"][0].as_py()
    assert struct.unpack("<BIII", wkb[:13]) == (1, 3, 1, 5) and len(wkb) == 13 + 80


def test_geojson_is_cut_at_the_antimeridian(checkpoint: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "fiji.tif", 64, 64, "EPSG:32760", from_origin(815_000, 8_110_000, 100, 100))
    call(path, "--checkpoint", checkpoint, "--output", tmp_path / "o.geojson", "--tile", 64)
    (feature,) = json.loads((tmp_path / "o.geojson").read_text())["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    for (ring,) in feature["geometry"]["coordinates"]:
        assert max(x for x, _ in ring) - min(x for x, _ in ring) < 1 and ring[0] == ring[-1]
        assert sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) > 0


@pytest.mark.parametrize(("left", "pieces"), [(179.9968, 2), (200.0, 1), (-180.0016, 2), (359.9968, 1), (179.9936, 1)])
def test_geojson_of_degrees_stays_within_180(checkpoint: Path, tmp_path: Path, left: float, pieces: int) -> None:
    path = write(tmp_path / "degrees.tif", 64, 64, "EPSG:4326", from_origin(left, 10, 1e-4, 1e-4))
    call(path, "--checkpoint", checkpoint, "--output", tmp_path / "o.geojson", "--tile", 64)
    (feature,) = json.loads((tmp_path / "o.geojson").read_text())["features"]
    geometry = feature["geometry"]
    found = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    assert len(found) == pieces
    whole = box(left, 10 - 64e-4, left + 64e-4, 10)
    back = []
    for (ring,) in found:
        assert all(-180 <= x <= 180 for x, _ in ring) and ring[0] == ring[-1] and Polygon(ring).exterior.is_ccw
        back += [
            piece
            for turn in (-360, 0, 360)
            if (piece := translate(Polygon(ring), turn)).intersects(whole.buffer(-1e-5))
        ]
    assert len(back) == pieces
    assert unary_union(back).symmetric_difference(whole).area < 1e-3 * whole.area  # seven decimals of a degree


def test_find_ranks_tiles_and_maps_are_drawn(
    scene: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", checkpoint, "--tile", 32]
    call(
        scene,
        *options,
        "--find",
        "a zeppelin by the river",
        "--output",
        tmp_path / "o.json",
        "--map",
        tmp_path / "m.png",
    )
    told = capsys.readouterr()
    assert "does not know zeppelin" in told.err
    rows = json.loads((tmp_path / "o.json").read_text())
    best = sorted(rows, key=lambda row: -row["match"])[: caption.BEST]
    assert told.out.splitlines() == [f"{row['match']:+.2f}  {row['file']}: {row['caption']}" for row in best]
    with Image.open(tmp_path / "m.png") as drawn:
        assert drawn.width == 600 and drawn.height >= 128
    call(scene.parent / "s*.tif", *options, "--map", tmp_path / "plain.png")
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "m.png").read_bytes()
    with pytest.raises(UserError, match="knows none of these words"):
        call(scene, *options, "--find", "zeppelin")


def test_what_cannot_be_placed_is_said_before_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = from_origin(5e5, 54e5, 0.5, 0.5)
    bare = write(tmp_path / "bare.tif", 64, 64, None, here)
    one, other = (write(tmp_path / f"{z}.tif", 64, 64, f"EPSG:326{z}", here) for z in (31, 32))
    empty = tmp_path / "empty.tif"
    with rasterio.open(one) as file, rasterio.open(empty, "w", **file.profile):
        pass
    hall = write(tmp_path / "hall.tif", 64, 64, 'LOCAL_CS["a hall",UNIT["metre",1]]', here)
    (tmp_path / "broken.tif").write_text("no raster")
    options: list[str | Path] = ["--checkpoint", checkpoint, "--output"]
    for words, fault in (
        ([bare, *options, tmp_path / "o.geojson"], "does not say where on Earth"),
        ([hall, *options, tmp_path / "o.geojson"], r"hall\.tif: its coordinates have no place in WGS84"),
        ([one, other, *options, tmp_path / "o.parquet"], "holds one coordinate system"),
        ([tmp_path / "broken.tif", *options, tmp_path / "o.parquet"], "broken.tif: not a readable raster"),
        ([one, *options, tmp_path / "o.geojson", "--bands", "9,2,1"], "31.tif: has bands 1 to 4, not 9,2,1"),
        ([empty, *options, tmp_path / "o.geojson"], "none of the 4 images have data"),
        ([one, *options, tmp_path / "o.json", "--bands", "1,2,3"], "add --tile"),
        ([one, *options, tmp_path / "o.geojson", "--stretch", "98,2"], "rising percentiles"),
        ([one, other, *options, tmp_path / "o.geojson", "--map", tmp_path / "m.png"], "draws one scene"),
    ):
        with pytest.raises(UserError, match=fault):
            call(*words)
    loaded = load_checkpoint(checkpoint)
    regions = loaded.config.regions.model_copy(update={"kind": "masks", "masks": str(tmp_path)})
    masked = replace(loaded, config=loaded.config.model_copy(update={"regions": regions}))
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"^{checkpoint}: looks at masks of whole"):
        patch.setattr(caption, "load_checkpoints", lambda _: masked)
        call(one, "--checkpoint", checkpoint, "--tile", 32)
    call(one, other, tmp_path / "broken.tif", *options, tmp_path / "two.geojson")
    features = json.loads((tmp_path / "two.geojson").read_text())["features"]
    assert {f["properties"]["scene"] for f in features} == {"31.tif", "32.tif"}
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"bare.tif", "hall.tif", "31.tif", "32.tif", "empty.tif", "broken.tif", "two.geojson"}


def test_row_groups_are_bounded(scene: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "ROWS", 5)
    for suffix in ("parquet", "geojson"):
        call(scene, "--checkpoint", checkpoint, "--output", tmp_path / f"o.{suffix}", "--tile", 32)
    assert pyarrow.parquet.ParquetFile(tmp_path / "o.parquet").num_row_groups == 3
    assert len(geopandas.read_file(tmp_path / "o.geojson")) == 12


def test_two_processes_write_what_one_does(scene: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With a broken image among them, and rows that another number of processes left behind."""
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "4.png").write_text("no image")
    options: list[str | Path] = [folder, "--checkpoint", checkpoint, "--output"]
    call(*options, tmp_path / "one.csv")
    rows = list(csv.DictReader((tmp_path / "one.csv").open()))
    about = {"checkpoint_sha256": file_digest(checkpoint)}
    about |= load_checkpoint(checkpoint).config.decoding.model_dump()
    kept = [{"file": row["file"], "caption": "kept", "score": -1.0} for row in (rows[1], rows[8])]
    lines = "".join(json.dumps(line) + "\n" for line in (about, *kept))
    (tmp_path / "two.csv.partial.7").write_text(lines + '{"file": "cut off')
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(ROOT / "caption.py"), *map(str, options), str(tmp_path / "two.csv")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = list(csv.DictReader((tmp_path / "two.csv").open()))
    assert [row["file"] for row in two] == [row["file"] for row in rows]
    assert [row["caption"] for row in two] == ["kept" if i in (1, 8) else row["caption"] for i, row in enumerate(rows)]
    assert "not a readable image" in two[4]["error"] and "8 images captioned, 1 left out" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "one.csv", "two.csv"]


def test_a_scene_whose_name_is_not_text_is_left_out(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "one.tif", 64, 64, "EPSG:32631", from_origin(5e5, 54e5, 0.5, 0.5))
    try:
        os.link(path, os.fsencode(tmp_path / "in") + b"/\xff.tif")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    call(tmp_path / "in", "--checkpoint", checkpoint, "--tile", 32, "--output", tmp_path / "o.json")
    assert "is no UTF-8" in capsys.readouterr().err
    rows = json.loads((tmp_path / "o.json").read_text())
    assert len(rows) > 1 and sum("caption" not in row for row in rows) == 1
