"""Pictures: captions beside images, and where the decoder looked for each word."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.files import write_whole


class Panel(NamedTuple):
    """An image uint8 [H, W, 3] with a caption's words and the attention float [words, N] of each over its regions."""

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


def attention_figure(path: Path, rows: Sequence[Panel], columns: int = 12) -> None:
    """Draw one row an image: the image, then one panel a word with the word's attention laid over it.

    All panels share one colour scale, from no attention to the largest in the figure, shown in a bar at the right.
    Captions longer than `columns` words are cut with an ellipsis.
    """
    import io

    from matplotlib.figure import Figure

    top = max((float(row.attention.max(initial=0)) for row in rows), default=1.0) or 1.0
    shown = min(columns, max(len(row.words) for row in rows))
    figure = Figure(figsize=(1.35 * (shown + 1) + 0.9, 1.75 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), shown + 1, squeeze=False)
    mapped = None
    for row, panels in zip(rows, axes, strict=True):
        for panel in panels:
            panel.set_axis_off()
        panels[0].imshow(row.image)
        height, width = row.image.shape[:2]
        maps = attention_maps(row.attention)
        for i, word in enumerate(row.words[:shown]):
            panel = panels[i + 1]
            cut = i == shown - 1 and len(row.words) > shown
            panel.set_title(word + (" …" if cut else ""), fontsize=9)
            panel.imshow(row.image.mean(-1), cmap="gray", vmin=-80, vmax=335)
            mapped = panel.imshow(
                maps[i],
                cmap="inferno",
                vmin=0,
                vmax=top,
                alpha=0.6,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
            )
    if mapped is not None:
        figure.colorbar(mapped, ax=axes, shrink=0.5, aspect=30, label="attention")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
