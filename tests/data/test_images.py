import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from data.errors import UserError
from data.images import read_image

RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


@pytest.mark.parametrize(
    ("image", "pixels"),
    [
        (Image.fromarray(RAMP), RAMP),
        (Image.fromarray(RAMP).convert("P"), RAMP),
        (Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP),
        (Image.fromarray(np.round(RAMP * (4095 / 255)).astype(np.uint16)), RAMP),
        (Image.fromarray(np.round(RAMP * (2047 / 255)).astype(np.uint16)), RAMP),
        (Image.fromarray(RAMP.astype(np.int32)), RAMP),
        (Image.fromarray(np.dstack([RAMP] * 3 + [np.full_like(RAMP, 255)])), RAMP),
        (Image.fromarray(np.dstack([RAMP] * 3 + [np.zeros_like(RAMP)])), np.zeros_like(RAMP)),
        (Image.fromarray(np.dstack([RAMP, np.full_like(RAMP, 255)])), RAMP),
    ],
    ids=["grey", "palette", "16 bits", "12 bits", "11 bits", "32 bits", "opaque", "transparent", "grey with alpha"],
)
def test_modes(tmp_path: Path, image: Image.Image, pixels: np.ndarray) -> None:
    path = tmp_path / "image.tif" if image.mode == "I" else tmp_path / "image.png"
    image.save(path)
    read = read_image(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.dstack([pixels] * 3))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert read_image(tmp_path / "red.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_is_shown_the_way_to_its_reader(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "scene.tif", "w", "GTiff", 8, 8, 5, dtype="uint16") as file:
        file.write(np.ones((5, 8, 8), np.uint16))
    with pytest.raises(
        UserError, match=r"scene\.tif: not a readable TIFF of 8 bits or of one band; caption\.py --tile 224"
    ):
        read_image(tmp_path / "scene.tif")


def test_exif_orientation_is_undone(tmp_path: Path) -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255
    turned = Image.fromarray(np.rot90(upright))  # a quarter turn to the left
    exif = Image.Exif()
    exif[274] = 6  # "turn a quarter to the right to see it upright"
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), upright)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    content = whole.read_bytes()
    damaged = {
        "empty.jpg": b"",
        "truncated.jpg": content[: len(content) // 2],
        "text.jpg": b"not an image",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="no such image"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(UserError, match=str(tmp_path)):
        read_image(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png.*pixels"):
        read_image(tmp_path / "bomb.png")


def test_values_that_are_not_finite_are_black(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.0, 100.0, 200.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0, 0, 0, 128, 255]


def test_nothing_is_read_that_starts_a_program_or_waits(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")  # EPS: Ghostscript
    os.mkfifo(tmp_path / "b.jpg")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)


def test_libtiff_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.tif", compression="tiff_deflate")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[8:48] = bytes(40)  # the beginning of the compressed pixels
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: not a readable image"):
        read_image(tmp_path / "a.tif")
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_damaged_exif_costs_only_the_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "red")
    image.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\x06")
    assert read_image(tmp_path / "a.jpg").shape == (2, 4, 3)
