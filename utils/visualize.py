"""Pictures: where the decoder looked for each word of a caption."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.files import write_whole


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
    figure = Figure(figsize=(1.3 * (shown + 1.3) + 0.9, 1.85 * len(rows)), dpi=110, layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[shown + 1.3, 1.0])
    left, right = halves
    strips: Any = left.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, maps, strip in zip(rows, painted, strips, strict=True):
        name = [f"{row.name[-40:]}:"] if row.name else []
        caption = textwrap.shorten(" ".join([*name, *row.words]), 12 * (shown + 1), placeholder=" …")
        strip.suptitle(caption, fontsize=10, x=0.008, ha="left", fontweight="bold")
        panels = strip.subplots(1, shown + 1, width_ratios=[1.3] + [1] * shown)
        for panel in panels:
            panel.set_axis_off()
        panels[0].imshow(row.image)
        height, width = row.image.shape[:2]
        place = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5)}
        grey = row.image.mean(-1)
        lines = None if row.masks is None else outlines(row.masks)[..., None] * np.array([1, 1, 1, 0.55])
        for panel, word, looked in zip(panels[1:], row.words, maps, strict=False):
            panel.set_title(word, fontsize=min(9, 126 / len(word)))  # some 14 letters fit over a panel
            panel.imshow(grey, cmap="gray", vmin=-60, vmax=300)
            smooth = "bilinear" if row.masks is None else "nearest"
            panel.imshow(looked, cmap=scale.cmap, norm=scale.norm, interpolation=smooth, **place)
            if lines is not None:
                panel.imshow(lines, **place)
            panel.text(
                0.5, -0.03, f"{looked.max():.1f} ×", transform=panel.transAxes, ha="center", va="top", fontsize=7
            )
    figure.colorbar(scale, cax=right.add_axes((0.1, 0.25, 0.2, 0.5)), label="attention, in multiples of an even look")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
