import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data.grouping import ORIENTATIONS, STRENGTHS, colours, grouping, textures
from data.images import read_image
from data.transforms import Preprocessing


@pytest.fixture(scope="module")
def paths(scenes: Path) -> list[Path]:
    return sorted((scenes / "RSICD_images").iterdir())[:6]


def test_grouping_merges_what_is_alike_first() -> None:
    labels = np.repeat(np.arange(4), 16)[None].repeat(16, 0)  # four strips
    image = np.array([[200, 0, 0], [196, 0, 0], [0, 0, 90], [0, 0, 94]], np.uint8)[labels]
    members, parents = grouping(labels, image)
    pairs = {tuple(np.flatnonzero(row)) for row in members[4:]}
    assert pairs == {(0, 1), (2, 3), (0, 1, 2, 3)}
    assert parents.tolist() == [parents[0], parents[0], parents[2], parents[2], 6, 6, 7]


def naive_grouping(labels: np.ndarray, image: np.ndarray) -> list[frozenset[int]]:
    """What is made one after the other, all pairs looked at each time; looks of a group are means over its pixels."""
    looks = np.concatenate([colours(labels, image), textures(labels, image)], 1)
    sizes = np.bincount(labels.ravel())
    groups = [frozenset([segment]) for segment in range(labels.max() + 1)]
    made = []

    def similarity(one: frozenset[int], other: frozenset[int]) -> float:
        masks = [np.isin(labels, list(group)) for group in (one, other)]
        grown = np.pad(masks[0], 1)
        around = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
        if not (around & masks[1]).any():
            return -np.inf
        mean = [np.average(looks[list(group)], axis=0, weights=sizes[list(group)]) for group in (one, other)]
        rows, columns = np.nonzero(masks[0] | masks[1])
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        size = len(rows)
        return float(np.minimum(*mean).sum()) + 1 - size / labels.size + 1 - (box - size) / labels.size

    while len(groups) > 1:
        pair = max(itertools.combinations(groups, 2), key=lambda two: similarity(*two))
        made.append(pair[0] | pair[1])
        groups = [group for group in groups if group not in pair] + [made[-1]]
    return made


@pytest.mark.parametrize("left", [1, 5])
def test_grouping_is_that_of_all_pairs_looked_at_each_time(paths: list[Path], left: int) -> None:
    for path in paths[:2]:
        image = Preprocessing(32).resized(read_image(path))
        labels = np.kron(np.arange(16).reshape(4, 4), np.ones((8, 8), int))
        members, parents = grouping(labels, image, left)
        found = [frozenset(np.flatnonzero(row).tolist()) for row in members]
        assert found[16:] == naive_grouping(labels, image)[: 16 - left]
        whole = [found[node] for node in np.flatnonzero(parents == len(found))]
        assert len(whole) == left and sorted(itertools.chain(*whole)) == list(range(16))
        assert all(found[node] < found[parent] for node, parent in enumerate(parents) if parent < len(found))


def test_texture_tells_apart_what_has_the_same_colours() -> None:
    labels = np.repeat(np.arange(4), 16)[None].repeat(64, 0)  # four strips
    stripes = np.tile(np.repeat(np.array([80, 160], np.uint8), 4), 8)
    image = np.where(labels < 2, stripes[:, None], stripes)[..., None].repeat(3, 2)  # lying, lying, upright, upright
    members, _ = grouping(labels, image)
    assert {tuple(np.flatnonzero(row)) for row in members[4:6]} == {(0, 1), (2, 3)}


def test_a_colour_has_its_own_texture() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = np.tile(np.repeat(np.array([0, 200], np.uint8), 4), 4)  # upright stripes of red
    red, green, blue = textures(np.zeros((32, 32), int), image)[0].reshape(3, ORIENTATIONS, STRENGTHS)
    assert red[0, 1:].any() and not red[2, 1:].any()  # steep to the side, flat downwards
    assert (green[:, 0] == green.sum(1)).all() and (blue[:, 0] == blue.sum(1)).all()  # flat in every direction


def test_textures_are_counts_of_gaussian_derivatives(paths: list[Path]) -> None:
    image = Preprocessing(48).resized(read_image(paths[0]))
    labels = np.kron(np.arange(6).reshape(2, 3), np.ones((24, 16), int))
    down, right = (gaussian_filter(image.astype(float), 1.0, order=order, axes=(0, 1)) for order in ((1, 0), (0, 1)))
    turns = 2 * np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS
    slopes = (right[..., None] * np.cos(turns) + down[..., None] * np.sin(turns)).clip(0)
    bins = np.minimum(slopes * STRENGTHS / slopes.max(), STRENGTHS - 1).astype(int)
    found = textures(labels, image).reshape(6, 3, ORIENTATIONS, STRENGTHS)
    for segment, colour, turn in itertools.product(range(6), range(3), range(ORIENTATIONS)):
        counts = np.bincount(bins[labels == segment][:, colour, turn], minlength=STRENGTHS)
        # of 384 pixels one on a bin's edge may fall on its other side, as ours are of single precision
        assert np.abs(found[segment, colour, turn] * 3 * ORIENTATIONS * 384 - counts).sum() < 2.5


def test_colours_are_counts_of_hue_saturation_and_value() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, :2], image[:, 2:] = (255, 0, 0), (0, 128, 128)
    labels = np.repeat([[0, 0, 1, 1]], 4, 0)
    found = colours(labels, image).reshape(2, 3, -1) * 3
    assert [row.argmax(-1).tolist() for row in found] == [[0, 24, 24], [12, 24, 12]]  # hues 0 and 180 of 360 degrees
    assert (found.max(-1) == 1).all()
