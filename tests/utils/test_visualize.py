from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.visualize import Panel, attention_figure, attention_maps


def test_maps_are_the_grid_row_by_row() -> None:
    maps = attention_maps(np.arange(18.0).reshape(2, 9))
    assert maps.shape == (2, 3, 3)
    assert maps[1, 0].tolist() == [9, 10, 11]
    with pytest.raises(ValueError, match="no square grid"):
        attention_maps(np.zeros((2, 8)))


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
