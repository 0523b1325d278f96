"""The eight turns and flips of a square image (its symmetry group, D4): an aerial image has no up."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

VIEWS = 8
AT_ONCE = 32  # images that are encoded together, views counted


def turned(images: Tensor, view: int) -> Tensor:
    """One of the eight turns and flips of square images [..., S, S]; view 0 is the image as it is.

        view = 4 flip + quarters:  rot90(fliplr(image) if flip else image, quarters), anticlockwise, as numpy's

    A grid of cells turns like the image that it lies on, so a map of regions and what an encoder sees stay in step.
    """
    flip, quarters = divmod(view, 4)
    return torch.rot90(images.flip(-1) if flip else images, quarters, (-2, -1))


def turned_back(images: Tensor, view: int) -> Tensor:
    """The inverse: `turned_back(turned(images, view), view)` are the images [..., S, S]."""
    flip, quarters = divmod(view, 4)
    upright = torch.rot90(images, -quarters, (-2, -1))
    return upright.flip(-1) if flip else upright


def in_views(encode: Callable[[Tensor], Tensor], images: Tensor, views: int) -> Tensor:
    """Features [B, h * h, D] of images [B, 3, S, S]: of one view as `encode` gives them, else `mean_over_views`."""
    return encode(images) if views == 1 else mean_over_views(encode, images, views)


def mean_over_views(
    encode: Callable[[Tensor], Tensor], images: Tensor, views: int, at_once: int | None = None
) -> Tensor:
    """The features of images [B, 3, S, S] averaged over their first `views` turns and flips, float32 [B, h * h, D].

        f = 1/views sum_v turned_back(encode(turned(images, v)), v)

    Every cell is averaged with itself as the other views show it. `encode` gives features [b, h * h, D], of `at_once`
    views of all images together; None: of so many that they are `AT_ONCE` images, since few take nearly as long.
    """
    total = torch.zeros(())
    step = at_once or max(1, AT_ONCE // len(images))
    for some in (range(first, min(first + step, views)) for first in range(0, views, step)):
        seen = encode(torch.cat([turned(images, view) for view in some])).float()
        for view, features in zip(some, seen.unflatten(0, (len(some), -1)), strict=True):
            side = math.isqrt(features.shape[1])
            grid = features.transpose(1, 2).unflatten(2, (side, side))  # [B, D, h, h]
            total = total.to(grid.device) + turned_back(grid, view)
    return (total / views).flatten(2).transpose(1, 2)
