"""Pictures: where the decoder looked for each word of a caption."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.files import write_whole


class Panel(NamedTuple):
    """An image uint8 [H, W, 3], a caption's words, and the attention float [words, N] of each over the regions."""

    image: np.ndarray
    words: Sequence[str]
    attention: np.ndarray


def attention_maps(attention: np.ndarray) -> np.ndarray:
    """Attention [words, N] over the N = h * h cells of the encoder's grid as [words, h, h]."""
    words, regions = attention.shape
    side = round(regions**0.5)
    if side * side != regions:
        raise ValueError(f"{regions} regions are no square grid")
    return attention.reshape(words, side, side)


def attention_figure(path: Path, rows: Sequence[Panel], columns: int = 14) -> None:
    """Draw one row an image: the image with its caption, then a panel a word with the word's attention laid over it.

    All panels share one scale up to the largest attention in the figure, or twice an even look; where a word looks no
    more than evenly the grey image shows through. The bar at the right is the legend. Panels end after `columns` words,
    the caption does not.

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
    even = 1 / max(row.attention.shape[1] for row in rows)
    most = max(2 * even, *(float(row.attention.max(initial=0)) for row in rows))
    above = (np.linspace(0, most, 256) - even) / (most - even)
    colours[:, 3] = np.clip(above, 0, 1) ** 0.7 * 0.85  # only what is looked at more than evenly has a colour
    scale = ScalarMappable(Normalize(0, most), ListedColormap(colours))
    shown = min(columns, max(len(row.words) for row in rows))
    figure = Figure(figsize=(1.3 * (shown + 1.3) + 0.9, 1.85 * len(rows)), dpi=110, layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[shown + 1.3, 1.0])
    left, right = halves
    strips: Any = left.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, strip in zip(rows, strips, strict=True):
        caption = textwrap.shorten(" ".join(row.words), 12 * (shown + 1), placeholder=" …")
        strip.suptitle(caption, fontsize=10, x=0.008, ha="left", fontweight="bold")
        panels = strip.subplots(1, shown + 1, width_ratios=[1.3] + [1] * shown)
        for panel in panels:
            panel.set_axis_off()
        panels[0].imshow(row.image)
        height, width = row.image.shape[:2]
        grey = row.image.mean(-1)
        maps = attention_maps(row.attention)
        for panel, word, looked in zip(panels[1:], row.words, maps, strict=False):
            panel.set_title(word, fontsize=9)
            panel.imshow(grey, cmap="gray", vmin=-60, vmax=300)
            panel.imshow(
                looked,
                cmap=scale.cmap,
                norm=scale.norm,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
            )
    figure.colorbar(scale, cax=right.add_axes((0.1, 0.25, 0.2, 0.5)), label=f"attention (an even look is {even:.3f})")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
