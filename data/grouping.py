"""Segments of an image merge, the two most alike neighbours first, until few are left (Uijlings et al., IJCV 2013).

n segments; H, W pixels of an image.
"""

from functools import partial

import cv2
import numpy as np
from scipy.ndimage import find_objects

from data.compiled import compiled

COLOURS, ORIENTATIONS, STRENGTHS = 25, 8, 10  # histogram bins, as in the paper


def grouping(labels: np.ndarray, image: np.ndarray, left: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Merge the most similar two neighbours of n segments again and again, until `left` are left.

        similarity = colour + texture + size + fill                                  (Uijlings et al., eq. 2-6)

    Colour and texture are intersections of histograms; size and fill prefer what is small and what fits together.

    Args:
        labels: int [H, W], segments 0 to n - 1. image: uint8 [H, W, 3]. left: 1 to n.

    Returns:
        members bool [2n - left, n], the segments of every node, in the order in which they were made; parents int
        [2n - left], the node that each was merged into (2n - left: none).
    """
    n = int(labels.max()) + 1
    looks = np.concatenate([colours(labels, image), textures(labels, image)], 1)
    boxes = find_objects(labels + 1, n)
    corners = np.array([[y.start, x.start, 1 - y.stop, 1 - x.stop] for y, x in boxes], float)  # of two the smaller
    return _merged(looks, np.bincount(labels.ravel(), minlength=n), corners, _neighbours(labels, n), labels.size, left)


def colours(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Histograms of hue, saturation and value over each segment, [n, 3 * 25], rows sum to 1."""
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV) / (360, 1, 1)
    return _histograms(labels, np.minimum(hsv * COLOURS, COLOURS - 1).astype(np.uint8), COLOURS)


def textures(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Histograms of each colour's Gaussian derivatives in eight directions, [n, 3 * 8 * 10]; rows sum to 1."""
    values = image.astype(np.float32)
    smooth = cv2.getGaussianKernel(9, 1.0)
    slope = smooth * np.arange(-4, 5)[:, None]
    to_x = cv2.sepFilter2D(values, -1, slope, smooth, borderType=cv2.BORDER_REFLECT)
    to_y = cv2.sepFilter2D(values, -1, smooth, slope, borderType=cv2.BORDER_REFLECT)
    angles = np.arange(ORIENTATIONS, dtype=np.float32) * (2 * np.pi / ORIENTATIONS)
    return _histograms(labels, _strengths(to_x, to_y, np.cos(angles), np.sin(angles)), STRENGTHS)


@compiled
def _strengths(to_x: np.ndarray, to_y: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Slopes float32 [H, W, C] in each direction, those downwards 0, as bins uint8 [H, W, C * directions]."""
    height, width, channels = to_x.shape
    slopes = np.empty((height, width, channels * len(cos)), np.float32)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                for d in range(len(cos)):
                    slopes[y, x, c * len(cos) + d] = max(0, to_x[y, x, c] * cos[d] + to_y[y, x, c] * sin[d])
    return np.minimum(slopes * (STRENGTHS / max(slopes.max(), 1e-9)), STRENGTHS - 1).astype(np.uint8)


@compiled
def _histograms(labels: np.ndarray, bins: np.ndarray, count: int) -> np.ndarray:
    """Histograms of `bins` [H, W, C] in 0 to `count` - 1 over each segment, [n, C * count], rows sum to 1."""
    height, width, channels = bins.shape
    counts = np.zeros((labels.max() + 1, channels * count))
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                counts[labels[y, x], c * count + bins[y, x, c]] += 1
    return counts / counts.sum(1).reshape(-1, 1)


def _neighbours(labels: np.ndarray, n: int) -> np.ndarray:
    """Which segments touch along an edge, bool [n, n]."""
    near = np.zeros((n, n), bool)
    for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        near[a, b] = near[b, a] = True
    np.fill_diagonal(near, False)
    return near


@compiled
def _merged(
    looks: np.ndarray, sizes: np.ndarray, corners: np.ndarray, near: np.ndarray, pixels: int, left: int
) -> tuple[np.ndarray, np.ndarray]:
    n = len(sizes)
    total = 2 * n - left
    members, parents = np.zeros((total, n), np.bool_), np.full(total, total)
    node = np.arange(n)  # of two that merge the first stands for both from then on, the second for nothing
    similarity = np.full((n, n), -np.inf)  # of those that do not touch
    closest = np.zeros(n, np.int64)
    for one in range(n):
        members[one, one] = True
        for other in range(n):
            if near[one, other]:
                similarity[one, other] = _similarity(looks, corners, pixels, one, other)
        closest[one] = similarity[one].argmax()
    for made in range(n, total):
        one = 0
        for row in range(1, n):
            if similarity[row, closest[row]] > similarity[one, closest[one]]:
                one = row
        other = int(closest[one])
        members[made] = members[node[one]] | members[node[other]]
        parents[node[one]] = parents[node[other]] = node[one] = made
        both = sizes[one] + sizes[other]
        looks[one] = (sizes[one] * looks[one] + sizes[other] * looks[other]) / both
        corners[one] = np.minimum(corners[one], corners[other])
        sizes[one] = both
        for row in range(n):
            near_either = max(similarity[row, one], similarity[row, other]) > -np.inf
            similarity[other, row] = similarity[row, other] = -np.inf
            if near_either and row != one and row != other:
                similarity[one, row] = similarity[row, one] = _similarity(looks, corners, pixels, one, row)
                closest[row] = similarity[row].argmax()
        closest[one], closest[other] = similarity[one].argmax(), similarity[other].argmax()
    return members, parents


@partial(compiled, fastmath={"reassoc"})  # so that the sum may be taken eight numbers at a time
def _similarity(looks: np.ndarray, corners: np.ndarray, pixels: int, one: int, other: int) -> float:
    look = 0.0  # of colours and of textures
    for k in range(looks.shape[1]):
        look += min(looks[one, k], looks[other, k])
    top, left, bottom, right = np.minimum(corners[one], corners[other])
    box = (1 - bottom - top) * (1 - right - left)
    return look + 2 - box / pixels  # size and fill: 1 - size / pixels and 1 - (box - size) / pixels
