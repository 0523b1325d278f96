"""Structured pooling: the features of regions of any shape from the features of the encoder's cells."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Shapes: B images, h x w cells, D channels, N regions.


class Visual(NamedTuple):
    """What the captioner looks at: B images.

    `content`: images uint8 [B, 3, H, W], or the frozen encoder's features of them, float [B, h * w, D].
    `shares`: float [B, N, h * w], of each cell the share that each region covers, all 0 for a region that is missing;
    None: the cells are the regions.
    """

    content: Tensor
    shares: Tensor | None = None

    def to(self, device: torch.device) -> "Visual":
        """The same on `device`."""
        shares = None if self.shares is None else self.shares.to(device)
        return Visual(self.content.to(device), shares)

    def split(self, size: int) -> list["Visual"]:
        """The same in parts of `size` images, the last one perhaps smaller."""
        contents = self.content.split(size)
        shares = [None] * len(contents) if self.shares is None else self.shares.split(size)
        return [Visual(*part) for part in zip(contents, shares, strict=True)]

    def repeated(self, times: int) -> "Visual":
        """Each image so many times, the copies side by side."""
        shares = None if self.shares is None else self.shares.repeat_interleave(times, 0)
        return Visual(self.content.repeat_interleave(times, 0), shares)


def together(visuals: Sequence[Visual]) -> Visual:
    """These visuals as one batch; all have regions, or none has."""
    shares = [visual.shares for visual in visuals if visual.shares is not None]
    return Visual(torch.cat([visual.content for visual in visuals]), torch.cat(shares) if shares else None)


def pool_regions(features: Tensor, shares: Tensor, by: str = "area") -> tuple[Tensor, Tensor]:
    """The mean feature of each region, and which regions there are.

        region_n = sum_c share_nc feature_c / sum_c share_nc       by="area": of the region
        region_n = sum_c share_nc feature_c / (h w)                by="map": of the whole map, so that small regions
                                                                   have small features

    A region smaller than a cell has the feature of its cell. A missing region has zeros.

    Args:
        features: float [B, h * w, D]. shares: float [B, N, h * w], at least 0. by: "area" or "map".

    Returns:
        regions [B, N, D] in the features' dtype, and bool [B, N], True where a region is there.

    Raises:
        ValueError: any other `by`.

    Reference:
        Zhao, Shi, Zou, "High-Resolution Remote Sensing Image Captioning Based on Structured Attention", TGRS 60, 2021.

    >>> features = torch.tensor([[[1.0], [3.0]]])                   # one image, two cells, one channel
    >>> regions, present = pool_regions(features, torch.tensor([[[1.0, 1.0], [0.0, 0.1], [0.0, 0.0]]]))
    >>> regions.flatten().tolist(), present.tolist()
    ([2.0, 3.0, 0.0], [[True, True, False]])
    """
    if by not in ("area", "map"):
        raise ValueError(f"regions are pooled by 'area' or 'map', not by {by!r}")
    shares = shares.float()
    areas = shares.sum(-1, keepdim=True)
    present = areas > 0
    weights = shares / torch.where(present, areas, 1.0) if by == "area" else shares / shares.shape[-1]
    return torch.bmm(weights.to(features.dtype), features), present.squeeze(-1)
