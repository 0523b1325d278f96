"""Regions of an image, with the shape of what is to be seen there: superpixels, segments, proposals, given masks.

A region is a mask on the preprocessed image [S, S] as it was looked at, made smaller to s pixels a side where regions
are not found at full size; an image has at most N of them, and they may overlap. The decoder needs to know of a region
how much of each of the encoder's cells it covers (`cell_shares`), a picture needs its mask (`unpacked`).

S pixels a side of the image, s of a mask, h x w cells, n regions found, N regions asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.masks import read_masks

METHOD = 7  # of how regions are found; a store of another's is not taken
SMALLER = {"slic": 0.5, "felzenszwalb": 0.5, "selective_search": 0.25}  # s / S (docs/speed.md); of given masks 1


@dataclass(frozen=True)
class RegionSpec:
    """What makes regions; `RegionsConfig` of utils/config.py says what each field means."""

    kind: str
    count: int = 32
    compactness: float = 10.0
    scale: float = 100.0
    masks: str | None = None


class Found(NamedTuple):
    """The regions of one image.

    `shares` float16 [N, h * w]: of each cell, the share that the region covers; all 0 for a region that is missing.
    `masks` uint8 [N, s, ceil(s / 8)]: a bit a pixel, row by row, as `np.packbits` packs them.
    """

    shares: np.ndarray
    masks: np.ndarray


class RegionFinder:
    """Finds the regions of one image at a time.

    Args:
        spec: what makes regions. side: cells of the encoder's grid along each side.
    """

    def __init__(self, spec: RegionSpec, side: int) -> None:
        self.spec, self.side = spec, side

    def find(self, image: np.ndarray, name: str) -> Found:
        """The regions of an image uint8 [S, S, 3]; `name`, its file's without suffix, is what given masks go by.

        Where nothing is found the whole image is the one region. `UserError` where given masks are not to be had.
        """
        if self.spec.kind == "masks":
            masks = read_masks(Path(self.spec.masks or ""), name, len(image))
            masks = masks[np.argsort(-masks.sum((1, 2)), kind="stable")][: self.spec.count]  # the largest
        else:
            masks = segment(image, self.spec)
        return self._found(masks) if len(masks) else self.whole(len(image))

    def whole(self, size: int) -> Found:
        """One region, the whole image of `size` pixels a side."""
        side = mask_side(self.spec.kind, size)
        return self._found(np.ones((1, side, side), bool))

    def _found(self, masks: np.ndarray) -> Found:
        shares = np.zeros((self.spec.count, self.side**2), np.float16)
        shares[: len(masks)] = cell_shares(masks, (self.side, self.side)).reshape(len(masks), -1)
        bits = np.packbits(masks, axis=-1)
        packed = np.zeros((self.spec.count, *bits.shape[1:]), np.uint8)
        packed[: len(masks)] = bits
        return Found(shares, packed)


def mask_side(kind: str, size: int) -> int:
    """Pixels a side of the masks of an image of `size` pixels a side."""
    return max(1, round(size * SMALLER.get(kind, 1)))


def unpacked(masks: np.ndarray, size: int) -> np.ndarray:
    """The masks of `Found` on the image itself, bool [N, size, size]."""
    return enlarged(np.unpackbits(masks, axis=-1, count=masks.shape[1]).astype(bool), size)


def enlarged(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks bool [n, s, s] as bool [n, size, size]: each pixel is as that of the mask which its middle lies in."""
    side = masks.shape[1]
    place = ((np.arange(size) + 0.5) * side / size).astype(int)
    return masks[:, place][:, :, place]


def segment(image: np.ndarray, spec: RegionSpec) -> np.ndarray:
    """At most `spec.count` regions of an image uint8 [S, S, 3], as bool [n, s, s].

    - `slic`: superpixels (Achanta et al., TPAMI 2012), about as many as are asked for;
    - `felzenszwalb`: segments of the graph (Felzenszwalb & Huttenlocher, IJCV 2004), grouped until N are left;
    - `selective_search`: the N regions that the same grouping makes last, the whole image among them, so regions of
      several sizes that overlap (Uijlings et al., IJCV 2013, with one colour space and one start).

    Where the image is made smaller for it (`mask_side`), what is measured in pixels shrinks with it: the least size of
    a segment, the smoothing, and `scale` where segments are to be seen, but not where they are only what groups begin
    with, which get worse.
    """
    # here, since captioning on the grid does without them
    from data.felzenszwalb import felzenszwalb
    from data.grouping import grouping

    several, share, side = spec.kind == "selective_search", SMALLER[spec.kind], mask_side(spec.kind, len(image))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    if spec.kind == "slic":  # in half of the usual rounds
        from skimage.segmentation import slic

        labels = slic(small, spec.count, spec.compactness, max_num_iter=5, start_label=0)
    else:
        least = max(1, side**2 // (400 if several else 1000))
        scale = spec.scale if several else spec.scale * share**2
        labels = felzenszwalb(small, scale, 0.8 * share, least)
    segments = int(labels.max()) + 1
    # by `take` and not by an index, after which masks would lie pixel by pixel in memory, which is slow for all to come
    if several:
        members, _ = grouping(labels, small)
        return members[-spec.count :].take(labels, 1)
    if segments <= spec.count:
        return labels == np.arange(segments)[:, None, None]
    members, parents = grouping(labels, small, spec.count)
    return members[parents == len(members)].take(labels, 1)


def cell_shares(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share of each cell of a grid h x w that each mask covers: bool [n, H, W] to float32 [n, h, w], exact.

    A cell that ends within a pixel counts the part of the pixel that it has.
    """
    rows, columns = (_overlaps(pixels, cells) for pixels, cells in zip(masks.shape[1:], grid, strict=True))
    along = masks.reshape(-1, masks.shape[2]).astype(np.float32) @ columns.T  # [n * H, w]
    return rows @ along.reshape(*masks.shape[:2], -1)


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """Of each cell, the share that each pixel of a line has: float32 [cells, pixels], rows sum to 1."""
    edges = np.arange(cells + 1) * pixels / cells
    starts = np.arange(pixels)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return (covered.clip(0) * cells / pixels).astype(np.float32)
