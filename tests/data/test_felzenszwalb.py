from pathlib import Path

import numpy as np
import pytest
from skimage.segmentation import felzenszwalb as reference

from data.felzenszwalb import felzenszwalb
from data.images import read_image
from data.transforms import Preprocessing


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (31, 64), (112, 112)])
@pytest.mark.parametrize(("scale", "sigma", "least"), [(25.0, 0.4, 12), (100.0, 0.2, 1), (1.0, 0.8, 3), (1e6, 0.8, 1)])
def test_segments_are_those_of_scikit_image(
    scenes: Path, size: tuple[int, int], scale: float, sigma: float, least: int
) -> None:
    for path in sorted((scenes / "RSICD_images").iterdir())[:4]:
        image = Preprocessing(112).resized(read_image(path))[: size[0], : size[1]]
        expected = reference(image, scale=scale, sigma=sigma, min_size=least)
        np.testing.assert_array_equal(felzenszwalb(image, scale, sigma, least), expected)


def test_what_has_no_edges_is_one_segment() -> None:
    assert not felzenszwalb(np.full((20, 30, 3), 7, np.uint8), 25.0, 0.4, 5).any()
    dots = np.zeros((9, 9, 3), np.uint8)
    dots[4, 4] = 255
    assert felzenszwalb(dots, 1e-3, 0.1, 1).max() == 1
    assert felzenszwalb(dots, 1e-3, 0.1, 2).max() == 0  # too small to stay
