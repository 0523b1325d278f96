"""A picture of a scene with what its tiles were captioned."""

import io
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from data.files import write_whole
from data.scenes import Tiling, parse_tile_name
from utils.journal import Row

SIDE = 1400  # pixels of the scene's longer side in the picture
NAMED = 12  # captions that have a colour of their own, the most frequent
READABLE = 110  # pixels that a tile needs to hold its caption, beside what it shares with the next
ROOM = 70  # pixels under which a tile's caption is left out, since the next tile lies over it


def draw_map(path: Path, source: Path, tiling: Tiling, rows: Sequence[Row]) -> None:
    """Draw a scene and the outlines of the tiles of `rows`, with each tile's caption in it where there is room.

    Where there is none, a legend names the most frequent captions, each with its number and the colour of its tiles;
    the other tiles are grey. Where rows have a `match` (of `--find`), tiles that match better than no image would are
    framed by how well, from yellow to red, as a legend says, the best one thickest and on top; only these have their
    caption in them, after their match.

    Raises:
        UserError: the scene cannot be read or the picture not written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    scene = tiling.open(source)
    overview = scene.overview(SIDE)
    scale = overview.shape[1] / scene.width
    scene.close()
    counts = Counter(row["caption"] for row in rows)
    readable = (tiling.size - tiling.overlap) * scale >= READABLE
    named = [] if readable else [caption for caption, _ in counts.most_common(NAMED)]
    colours = {caption: colormaps["tab20"](2 * i % 20 + i // 10) for i, caption in enumerate(named)}
    best = max([row["match"] for row in rows if "match" in row], default=0)

    legend = 0.24 * (len(named) + 2) if named else 0.0
    inches = overview.shape[0] / 100
    figure = Figure(figsize=(max(6.0, overview.shape[1] / 100), inches + legend), dpi=100)
    axes = figure.add_axes((0, legend / (inches + legend), 1, inches / (inches + legend)))
    axes.set_axis_off()
    axes.imshow(overview)
    tiles = [(row, tile) for row in rows if (tile := parse_tile_name(row["file"])[1])]
    # where the next column or row begins: the last ones may lie over all but a sliver of those before them
    right, below = (dict(pairwise(sorted({tile[axis] for _, tile in tiles}))) for axis in (0, 1))
    for row, tile in sorted(tiles, key=lambda pair: pair[0].get("match", 0)):
        x, y, width, height = (value * scale for value in tile)
        text = row["caption"]
        colour, line = colours.get(row["caption"], "white" if readable else "lightgrey"), 1.5
        if "match" in row:
            share = max(0.0, row["match"]) / max(best, 1e-9)
            text = f"{row['match']:+.2f}  {text}"
            colour, line = (colormaps["YlOrRd"](share), 1 + 5 * share) if share else ("grey", 0.5)
        corner = (x + line / 2, y + line / 2)
        axes.add_patch(Rectangle(corner, width - line, height - line, fill=False, edgecolor=colour, linewidth=line))
        wide = (right.get(tile.x, tile.x + tile.width) - tile.x) * scale
        high = (below.get(tile.y, tile.y + tile.height) - tile.y) * scale
        if readable and min(wide, high) >= ROOM and row.get("match", 1) > 0:
            words = textwrap.wrap(text, int(wide / 7.5))[: int(high / 20)]
            box = {"facecolor": "black", "alpha": 0.55, "edgecolor": "none", "pad": 2}
            axes.text(x + 8, y + 8, _plain("\n".join(words)), color="white", fontsize=8, va="top", bbox=box)
    if named and not best:
        handles = [Patch(color=colour, label=_plain(f"{counts[text]} × {text}")) for text, colour in colours.items()]
        if others := len(rows) - sum(counts[text] for text in named):
            handles.append(Patch(color="lightgrey", label=f"{others} × another caption"))
        figure.legend(handles=handles, loc="lower left", frameon=False, fontsize=9)
    if best:
        handles = [Patch(color=colormaps["YlOrRd"](share), label=f"{share * best:+.2f}") for share in (1.0, 0.5, 0.0)]
        handles.append(Patch(color="grey", label="below zero, without its caption"))
        figure.legend(handles=handles, loc="lower left", fontsize=9, title="fits the words by")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _plain(text: str) -> str:
    """As matplotlib shows it as it is, which takes what stands between two dollars for mathematics."""
    return text.replace("$", r"\$")
