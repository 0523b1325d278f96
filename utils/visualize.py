"""Pictures: where the decoder looked for each word of a caption."""

import importlib.util
import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.files import write_whole

IMAGE, PANEL, GAP, STRIP, LEGEND = 170, 132, 9, 216, 96
"""Pixels of a figure: an image's side and that of a word's panel, what lies between, a row's height, the legend."""

HEAT = np.array(
    [
        *((255, 255, 204), (255, 237, 160), (254, 217, 118), (254, 178, 76), (253, 141, 60)),
        *((252, 78, 42), (227, 26, 28), (189, 0, 38), (128, 0, 38)),
    ]
)
"""ColorBrewer's YlOrRd, from faint to strong."""


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


def heat(share: np.ndarray) -> np.ndarray:
    """The colour of attention as RGBA uint8 [..., 4]: from nothing at a share of 0 to strong at 1."""
    place = np.clip(share, 0, 1)
    steps = np.linspace(0, 1, len(HEAT))
    colours = [np.interp(place, steps, HEAT[:, channel]) for channel in range(3)]
    return np.stack([*colours, 255 * 0.85 * place**0.7], -1).astype(np.uint8)


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
    if not rows:
        raise ValueError("there is nothing to draw")
    counts = [row.attention.shape[1] if row.masks is None else int(row.masks.any((1, 2)).sum()) for row in rows]
    painted = [paint(row.attention * count, row.masks) for row, count in zip(rows, counts, strict=True)]
    most = max(2.0, *(float(maps.max(initial=0)) for maps in painted))
    shown = min(columns, max(len(row.words) for row in rows))
    width, height = IMAGE + 2 * GAP + (PANEL + GAP) * shown, STRIP * len(rows)
    sheet = Image.new("RGB", (width + LEGEND, height), "white")
    draw = ImageDraw.Draw(sheet)
    for top, row, maps in zip(range(0, height, STRIP), rows, painted, strict=True):
        name = [f"{'…' * (len(row.name) > 40)}{row.name[-40:]}:"] if row.name else []
        caption = textwrap.shorten(" ".join([*name, *row.words]), 12 * (shown + 1), placeholder=" …")
        draw.text((GAP, top + 22), caption, "black", _font(15, "Bold"), anchor="ls")
        middle = top + STRIP - GAP - IMAGE // 2
        _paste(sheet, Image.fromarray(row.image), (GAP + IMAGE // 2, middle), IMAGE)
        grey, lines = _ground(row)
        for i, (word, looked) in enumerate(zip(row.words[:shown], maps, strict=False)):
            centre = IMAGE + 2 * GAP + i * (PANEL + GAP) + PANEL // 2
            smooth = Image.Resampling.BILINEAR if row.masks is None else Image.Resampling.NEAREST
            values = np.asarray(Image.fromarray(looked.astype(np.float32)).resize(grey.size, smooth))
            panel = Image.alpha_composite(grey, Image.fromarray(heat((values - 1) / (most - 1))))
            _paste(sheet, Image.alpha_composite(panel, lines), (centre, middle), PANEL)
            title = " ".join(word[:30].split())  # words may be anybody's text
            size = min(14, int(14 * PANEL / max(1.0, draw.textlength(title, _font(14)))))
            draw.text((centre, middle - PANEL // 2 - 5), title, "black", _font(size), anchor="ms")
            draw.text((centre, middle + PANEL // 2 + 4), f"{looked.max():.1f} ×", "black", _font(11), anchor="mt")
    _draw_legend(sheet, width, most)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)  # a sixth larger, in a third of the time
    write_whole(path, buffer.getvalue())


def _ground(row: Panel) -> tuple[Image.Image, Image.Image]:
    """The image in grey, and the outlines of its regions, if it has any, to be laid over it: RGBA of a panel's size."""
    size = _fitted(row.image.shape[1], row.image.shape[0], PANEL)
    grey = Image.fromarray((row.image.mean(-1) * 255 / 360 + 42).astype(np.uint8)).resize(size).convert("RGBA")
    white = np.full((*size[::-1], 4), 255, np.uint8)
    white[..., 3] = 0
    if row.masks is not None:
        edges = Image.fromarray(np.float32(255) * outlines(row.masks)).resize(size, Image.Resampling.BILINEAR)
        white[..., 3] = np.minimum(np.asarray(edges), 140)  # thin lines pale where the picture shrinks
    return grey, Image.fromarray(white)


def _draw_legend(sheet: Image.Image, left: int, most: float) -> None:
    """Draw what the colours mean into the strip from `left` on: even looks from 0, below, to `most`."""
    draw = ImageDraw.Draw(sheet)
    top, bottom = sheet.height * 3 // 20, sheet.height * 17 // 20
    levels = np.linspace(most, 0, bottom - top)
    bar = Image.new("RGBA", (18, len(levels)), "white")
    bar.alpha_composite(Image.fromarray(np.repeat(heat((levels - 1) / (most - 1))[:, None], bar.width, 1)))
    sheet.paste(bar, (left + 12, top))
    draw.rectangle((left + 11, top - 1, left + 12 + bar.width, bottom), outline="black")
    for level in range(0, int(most) + 1, math.ceil(most / 7)):
        y = bottom - round(level / most * (bottom - top))
        draw.line((left + 30, y, left + 35, y), "black")
        draw.text((left + 38, y), str(level), "black", _font(12), anchor="lm")
    note = Image.new("L", (sheet.height, 34), 255)
    words = "attention, in multiples\nof an even look"
    ImageDraw.Draw(note).multiline_text((note.width // 2, 17), words, 0, _font(12), anchor="mm", align="center")
    sheet.paste(note.rotate(90, expand=True), (left + 60, 0))


def _paste(sheet: Image.Image, picture: Image.Image, centre: tuple[int, int], side: int) -> None:
    """Paste a picture of any size, fitted into a square of `side` pixels around `centre`."""
    fitted = picture.resize(_fitted(*picture.size, side))
    sheet.paste(fitted, (centre[0] - fitted.width // 2, centre[1] - fitted.height // 2))


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    return max(1, side * width // max(width, height)), max(1, side * height // max(width, height))


@cache
def _font(size: int, weight: str = "") -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib and knows more scripts than Pillow's own; matplotlib itself is slow here."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-' * bool(weight)}{weight}.ttf", size)
