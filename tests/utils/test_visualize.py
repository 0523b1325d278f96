from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.visualize import Panel, attention_figure, heat, outlines, paint


def test_a_grid_is_painted_row_by_row() -> None:
    maps = paint(np.arange(18.0).reshape(2, 9), None)
    assert maps.shape == (2, 3, 3)
    assert maps[1, 0].tolist() == [9, 10, 11]
    with pytest.raises(ValueError, match="no square grid"):
        paint(np.zeros((2, 8)), None)


def test_a_pixel_has_the_attention_of_all_its_regions() -> None:
    rng = np.random.default_rng(0)
    attention, masks = rng.random((3, 5)), rng.random((5, 4, 6)) < 0.4
    found = paint(attention, masks)
    for t, y, x in np.ndindex(3, 4, 6):
        assert abs(found[t, y, x] - sum(attention[t, n] for n in range(5) if masks[n, y, x])) < 1e-12
    cells = np.eye(9, dtype=bool).reshape(9, 3, 3)  # a grid, given as masks
    np.testing.assert_allclose(paint(attention[:, :1] * np.ones(9), cells), paint(attention[:, :1] * np.ones(9), None))


def test_outlines_are_where_regions_end() -> None:
    masks = np.zeros((3, 4, 4), bool)  # left half, right half, and a region that is missing
    masks[0, :, :2], masks[1, :, 2:] = True, True
    assert np.argwhere(outlines(masks)).tolist() == [[y, 1] for y in range(4)]


def test_attention_shows_where_it_lies(tmp_path: Path) -> None:
    attention = np.zeros((2, 4))
    attention[0, 1] = attention[1, 2] = 1.0  # the upper right, then the lower left
    panel = Panel(np.full((64, 64, 3), 128, np.uint8), ["one", "two"], attention)
    attention_figure(tmp_path / "a.png", [panel, panel])
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    red = pixels[..., 0] - pixels[..., 2] > 60  # the colour of attention; the image is grey
    red[:, int(0.9 * red.shape[1]) :] = False  # the legend
    upper = red[: red.shape[0] // 2]
    columns = np.flatnonzero(upper.any(0))
    assert len(columns)
    middle = columns.mean()
    left, right = upper[:, : int(middle)], upper[:, int(middle) :]
    assert (
        np.argwhere(left)[:, 0].mean() < np.argwhere(right)[:, 0].mean()
    )  # high in the first panel, low in the second


def test_captions_of_any_length_can_be_drawn(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    rows = [Panel(image, ["word"] * n, np.full((n, 4), 0.25)) for n in (1, 40)]
    attention_figure(tmp_path / "a.png", rows)
    assert Image.open(tmp_path / "a.png").width > 1000
    with pytest.raises(ValueError, match="nothing to draw"):
        attention_figure(tmp_path / "b.png", [])


def test_words_and_images_of_any_kind_can_be_drawn(tmp_path: Path) -> None:
    words = ["two\nlines", "", "\ud800", "w" * 10_000, "река"]
    rows = [Panel(np.zeros(shape, np.uint8), words, np.ones((5, 1))) for shape in ((300, 1, 3), (1, 300, 3))]
    attention_figure(tmp_path / "a.png", rows)
    assert Image.open(tmp_path / "a.png").height > 400


def test_what_is_looked_at_evenly_has_no_colour_and_more_has_more() -> None:
    colours = heat(np.array([-1.0, 0.0, 0.5, 1.0, 2.0]))
    assert colours[:, 3].tolist() == [0, 0, 133, 216, 216]  # 255 * 0.85 * 0.5 ** 0.7
    assert (colours[-1, :3] == colours[-2, :3]).all() and colours[-1, :3].tolist() == [128, 0, 38]
