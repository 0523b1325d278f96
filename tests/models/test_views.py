import numpy as np
import pytest
import torch
from torch import Tensor

from models.views import VIEWS, mean_over_views, turned, turned_back


def test_turning_back_undoes_turning() -> None:
    images = torch.randn(2, 3, 5, 5)
    for view in range(VIEWS):
        assert torch.equal(turned_back(turned(images, view), view), images)


def mean_of_patches(images: Tensor) -> Tensor:
    """An encoder that sees its cells one by one, without a sense of direction: the mean of each 4 x 4 patch."""
    return torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)


def test_an_encoder_without_a_sense_of_direction_gains_nothing() -> None:
    images = torch.randn(2, 3, 12, 12)
    # eight sums of 16 numbers, each in another order
    torch.testing.assert_close(
        mean_over_views(mean_of_patches, images, VIEWS), mean_of_patches(images), rtol=1e-5, atol=1e-6
    )


def top_left(images: Tensor) -> Tensor:
    """An encoder with a sense of direction: the top left pixel of each 2 x 2 patch."""
    return images[:, :, ::2, ::2].flatten(2).transpose(1, 2)


def test_each_cell_is_averaged_with_itself() -> None:
    """The four corners of a patch take turns at being its top left, so that the mean over the views is the patch's."""
    images = torch.randn(1, 2, 6, 6)
    expected = np.zeros((9, 2), np.float32)
    for cell in range(9):
        y, x = divmod(cell, 3)
        expected[cell] = images[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)).numpy()
    found = mean_over_views(top_left, images, VIEWS)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order


@pytest.mark.parametrize("at_once", [1, 2, 3, 8, None])
def test_views_are_encoded_together_as_many_as_asked(at_once: int | None) -> None:
    images, sizes = torch.randn(5, 2, 6, 6), []

    def encode(some: Tensor) -> Tensor:
        sizes.append(len(some))
        return top_left(some)

    found = mean_over_views(encode, images, VIEWS, at_once)
    torch.testing.assert_close(found, mean_over_views(top_left, images, VIEWS, 1), rtol=0, atol=0)
    expected = {1: 8 * [5], 2: 4 * [10], 3: [15, 15, 10], 8: [40], None: [30, 10]}  # None: at most 32 images
    assert sizes == expected[at_once]


def test_one_view_is_the_image_as_it_is() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(mean_over_views(top_left, images, 1), top_left(images))
