from pathlib import Path

import numpy as np
import pytest
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
        (Image.fromarray(RAMP.astype(np.int32)), RAMP),
        (Image.fromarray(np.dstack([RAMP] * 3 + [np.full_like(RAMP, 255)])), RAMP),
        (Image.fromarray(np.dstack([RAMP] * 3 + [np.zeros_like(RAMP)])), np.zeros_like(RAMP)),
        (Image.fromarray(np.dstack([RAMP, np.full_like(RAMP, 255)])), RAMP),
    ],
    ids=["grey", "palette", "16 bits", "32 bits", "opaque", "transparent", "grey with alpha"],
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
