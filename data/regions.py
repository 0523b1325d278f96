"""Regions of an image, with the shape of what is to be seen there: superpixels, segments, proposals, given masks.

A region is a mask on the preprocessed image [S, S]; an image has at most N of them, and they may overlap. The decoder
needs to know of a region how much of each of the encoder's cells it covers (`cell_shares`), a picture needs its mask.

S pixels a side, h x w cells, n regions found, N regions asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.masks import read_masks

METHOD = 3  # of how regions are found; a store of another's is not taken
COLOURS, ORIENTATIONS, STRENGTHS = 25, 8, 10  # histogram bins of selective search, as in the paper


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
    `masks` uint8 [N, S, ceil(S / 8)]: a bit a pixel, row by row, as `np.packbits` packs them.
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
        """One region, the whole image."""
        return self._found(np.ones((1, size, size), bool))

    def _found(self, masks: np.ndarray) -> Found:
        shares = np.zeros((self.spec.count, self.side**2), np.float16)
        shares[: len(masks)] = cell_shares(masks, (self.side, self.side)).reshape(len(masks), -1)
        bits = np.packbits(masks, axis=-1)
        packed = np.zeros((self.spec.count, *bits.shape[1:]), np.uint8)
        packed[: len(masks)] = bits
        return Found(shares, packed)


def unpacked(masks: np.ndarray) -> np.ndarray:
    """The masks of `Found` as bool [N, S, S]; preprocessed images are square."""
    return np.unpackbits(masks, axis=-1, count=masks.shape[1]).astype(bool)


def segment(image: np.ndarray, spec: RegionSpec) -> np.ndarray:
    """At most `spec.count` regions of an image uint8 [S, S, 3], as bool [n, S, S].

    - `slic`: superpixels (Achanta et al., TPAMI 2012) of the image at half its size, about as many as are asked for;
    - `felzenszwalb`: segments of the graph (Felzenszwalb & Huttenlocher, IJCV 2004), grouped until N are left;
    - `selective_search`: the N regions that the same grouping makes last, the whole image among them, so regions of
      several sizes that overlap (Uijlings et al., IJCV 2013, with one colour space and one start).
    """
    from skimage.segmentation import felzenszwalb, slic  # here, since captioning on the grid does without it

    if spec.kind == "slic":
        # at half the size and in half of the usual rounds: superpixels cover things as well (docs/speed.md)
        small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        labels = slic(small, spec.count, spec.compactness, max_num_iter=5, start_label=0)
        labels = cv2.resize(labels.astype(np.int32), image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    else:
        least = max(1, image.shape[0] * image.shape[1] // 1000)
        labels = felzenszwalb(image, scale=spec.scale, sigma=0.8, min_size=least)
    segments = int(labels.max()) + 1
    if spec.kind != "selective_search" and segments <= spec.count:
        return labels == np.arange(segments)[:, None, None]
    members, parents = grouping(labels, image)
    if spec.kind == "selective_search":
        chosen = np.arange(max(0, 2 * segments - 1 - spec.count), 2 * segments - 1)
    else:
        made = 2 * segments - spec.count  # nodes that there are when N are left
        chosen = np.flatnonzero(parents[:made] >= made)
    return members[chosen][:, labels]


def grouping(labels: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge the most similar two neighbours of n segments again and again, until the whole image is one.

        similarity = colour + texture + size + fill                                  (Uijlings et al., eq. 2-6)

    Colour and texture are intersections of histograms; size and fill prefer what is small and what fits together.

    Args:
        labels: int [S, S], segments 0 to n - 1. image: uint8 [S, S, 3].

    Returns:
        members bool [2n - 1, n], the segments of every node, in the order in which they were made; parents int
        [2n - 1], the node that each was merged into (2n - 1: none).
    """
    n = int(labels.max()) + 1
    total, pixels = 2 * n - 1, labels.size
    members = np.zeros((total, n), bool)
    members[np.arange(n), np.arange(n)] = True
    parents = np.full(total, total)
    near = _neighbours(labels, total)
    looks = _grown(np.concatenate([colours(labels, image), textures(labels, image)], 1), total)
    sizes = _grown(np.bincount(labels.ravel(), minlength=n).astype(float), total)
    corners = _grown(_corners(labels, n), total)  # least y, least x, and -(greatest y), -(greatest x)

    def similar(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        look = np.minimum(looks[ones], looks[others]).sum(-1)  # of colours and of textures
        box = np.minimum(corners[ones], corners[others])
        hull = (1 - box[:, 2] - box[:, 0]) * (1 - box[:, 3] - box[:, 1])
        size = sizes[ones] + sizes[others]
        return look + 2 - size / pixels - (hull - size) / pixels

    similarity = np.full((total, total), -np.inf)
    touching = np.nonzero(np.tril(near))
    similarity[touching] = similar(*touching)
    for made in range(n, total):
        pair = list(np.divmod(int(similarity[:made, :made].argmax()), made))
        sizes[made] = sizes[pair].sum()
        looks[made] = sizes[pair] @ looks[pair] / sizes[made]
        corners[made] = corners[pair].min(0)
        members[made] = members[pair].any(0)
        parents[pair] = made
        near[made] = near[pair].any(0)
        near[made, pair] = False
        near[:, made] = near[made]
        near[pair], near[:, pair] = False, False
        similarity[pair], similarity[:, pair] = -np.inf, -np.inf
        others = np.flatnonzero(near[made])
        similarity[made, others] = similar(np.array([made]), others)
    return members, parents


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


def _grown(values: np.ndarray, total: int) -> np.ndarray:
    """`values` of the segments with room for the nodes that merging makes."""
    return np.concatenate([values, np.zeros((total - len(values), *values.shape[1:]))])


def _neighbours(labels: np.ndarray, total: int) -> np.ndarray:
    """Which segments touch along an edge, bool [total, total]."""
    near = np.zeros((total, total), bool)
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        near[a, b] = near[b, a] = True
    np.fill_diagonal(near, False)
    return near


def _histograms(labels: np.ndarray, bins: np.ndarray, count: int) -> np.ndarray:
    """Histograms of `bins` [S, S, C] in 0 to `count` - 1 over each segment, [n, C * count], rows sum to 1."""
    n, channels = int(labels.max()) + 1, bins.shape[-1]
    places = (labels[..., None] * channels + np.arange(channels)) * count + bins
    counts = np.bincount(places.ravel(), minlength=n * channels * count).reshape(n, -1).astype(float)
    return counts / counts.sum(1, keepdims=True)


def colours(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Histograms of hue, saturation and value over each segment, [n, 3 * 25], rows sum to 1."""
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV) / (360, 1, 1)
    return _histograms(labels, np.minimum(hsv * COLOURS, COLOURS - 1).astype(int), COLOURS)


def textures(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Histograms of each colour's Gaussian derivatives in eight directions, [n, 3 * 8 * 10]; rows sum to 1."""
    from scipy.ndimage import gaussian_filter

    values = image.astype(np.float32)
    slope = np.stack([gaussian_filter(values, 1.0, order=order, axes=(0, 1)) for order in ((0, 1), (1, 0))], -1)
    angles = np.arange(ORIENTATIONS) * 2 * np.pi / ORIENTATIONS
    slopes = slope.reshape(-1, 2) @ np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    most = slopes.max() or 1.0
    bins = (slopes * (STRENGTHS / most)).clip(0, STRENGTHS - 1).astype(int)
    return _histograms(labels, bins.reshape(*labels.shape, -1), STRENGTHS)


def _corners(labels: np.ndarray, n: int) -> np.ndarray:
    from scipy.ndimage import find_objects

    boxes = find_objects(labels + 1, n)
    return np.array([[y.start, x.start, 1 - y.stop, 1 - x.stop] for y, x in boxes], float)
