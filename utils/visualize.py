"""Pictures: where the decoder looked for each word of a caption."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.files import write_whole

IMAGE, PANEL, GAP, STRIP, LEGEND = 1.55, 1.2, 0.08, 2.0, 0.95
"""Inches of a figure: an image's side and that of a word's panel, what lies between, a row's height, the legend."""


class Panel(NamedTuple):
    """An image uint8 [H, W, 3], a caption's words, and the attention float [words, N] of each over the regions.

    `masks` bool [N, h, w] are the regions, over the whole image in any resolution; None: the cells of a square grid.
    `name` stands before the caption.
    """

    image: np.ndarray
    words: Sequence[str]
    attention: np.ndarray
    masks: np.ndarray | None = None
    name: str = ""


def paint(attention: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """Attention [words, N] as it lies on the image, [words, h, w]: a pixel has that of all regions that it lies in.

    `masks` as in `Panel`; a grid of cells gives a pixel a cell. `ValueError` where cells are no square grid.
    """
    if masks is not None:
        return np.tensordot(attention, masks.astype(attention.dtype), 1)
    words, cells = attention.shape
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"{cells} regions are no square grid, and there are no masks of them")
    return attention.reshape(words, side, side)


def outlines(masks: np.ndarray) -> np.ndarray:
    """Where regions bool [N, h, w] end: bool [h, w], pixels whose right or lower neighbour is in other regions."""
    edges = np.zeros(masks.shape[1:], bool)
    edges[:, :-1] |= (masks[:, :, 1:] != masks[:, :, :-1]).any(0)
    edges[:-1] |= (masks[:, 1:] != masks[:, :-1]).any(0)
    return edges


def attention_figure(path: Path, rows: Sequence[Panel], columns: int = 14) -> None:
    """Draw one row an image: the image with its caption, then a panel a word with the word's attention laid over it.

    All panels share one scale, in multiples of an even look at the image's regions, up to the largest in the figure or
    2; where a word looks no more than evenly the grey image shows through. Regions have outlines; under each panel
    stands its largest attention, in the same multiples. The bar at the right is the legend. Panels end after `columns`
    words, the caption does not.

    Raises:
        ValueError: there is no row.
        UserError: the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("there is nothing to draw")
    colours = colormaps["YlOrRd"](np.linspace(0, 1, 256))
    counts = [row.attention.shape[1] if row.masks is None else int(row.masks.any((1, 2)).sum()) for row in rows]
    painted = [paint(row.attention * count, row.masks) for row, count in zip(rows, counts, strict=True)]
    most = max(2.0, *(float(maps.max(initial=0)) for maps in painted))
    above = (np.linspace(0, most, 256) - 1) / (most - 1)
    colours[:, 3] = np.clip(above, 0, 1) ** 0.7 * 0.85  # only what is looked at more than evenly has a colour
    scale = ScalarMappable(Normalize(0, most), ListedColormap(colours))
    shown = min(columns, max(len(row.words) for row in rows))

    # One sheet for all: an axes a panel takes matplotlib seconds to lay out.
    width, height = IMAGE + GAP + (PANEL + GAP) * shown, STRIP * len(rows)
    figure = Figure(figsize=(width + LEGEND, height), dpi=110)
    sheet = figure.add_axes((0, 0, width / (width + LEGEND), 1), xlim=(0, width), ylim=(height, 0))
    sheet.set_axis_off()
    for row, maps, top in zip(rows, painted, np.arange(len(rows)) * STRIP, strict=True):
        name = [f"{'…' * (len(row.name) > 40)}{row.name[-40:]}:"] if row.name else []
        caption = textwrap.shorten(" ".join([*name, *row.words]), 12 * (shown + 1), placeholder=" …")
        sheet.text(GAP, top + 0.2, caption, fontsize=10, fontweight="bold")
        middle = top + STRIP - 0.25 - IMAGE / 2
        _lay(sheet, row.image, GAP, middle, IMAGE, row.image)
        grey = row.image.mean(-1)
        lines = None if row.masks is None else outlines(row.masks)[..., None] * np.array([1, 1, 1, 0.55])
        for i, (word, looked) in enumerate(zip(row.words[:shown], maps, strict=False)):
            left = IMAGE + 2 * GAP + i * (PANEL + GAP)
            _lay(sheet, row.image, left, middle, PANEL, grey, cmap="gray", vmin=-60, vmax=300)
            smooth = "bilinear" if row.masks is None else "nearest"
            _lay(sheet, row.image, left, middle, PANEL, looked, cmap=scale.cmap, norm=scale.norm, interpolation=smooth)
            if lines is not None:
                _lay(sheet, row.image, left, middle, PANEL, lines)
            centre, half = left + PANEL / 2, PANEL / 2 + 0.03
            size = min(9, 126 / max(1, len(word)))  # some 14 letters fit over a panel
            sheet.text(centre, middle - half, word, fontsize=size, ha="center", va="bottom")
            sheet.text(centre, middle + half, f"{looked.max():.1f} ×", fontsize=7, ha="center", va="top")
    bar = figure.add_axes(((width + 0.15) / (width + LEGEND), 0.15, 0.15 / (width + LEGEND), 0.7))
    figure.colorbar(scale, cax=bar).set_label("attention, in multiples\nof an even look", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _lay(
    sheet: Any, image: np.ndarray, left: float, middle: float, side: float, pixels: np.ndarray, **how: Any
) -> None:
    """Draw `pixels` in a square of `side` inches, in the shape of `image`, whatever their own resolution."""
    down, across = side * np.array(image.shape[:2]) / (2 * max(image.shape[:2]))
    x = left + side / 2
    sheet.imshow(pixels, extent=(x - across, x + across, middle + down, middle - down), aspect="auto", **how)
