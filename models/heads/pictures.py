"""Heads that give a map or a picture: what covers the ground, and the scene itself."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.heads import Seen
from models.heads.pyramid import Pyramid, block

# Shapes as in pyramid.py, and C classes.


class SegmentationHead(nn.Module):
    """The class of each quarter of a quarter of a cell.

    Args:
        channels: D. width: E. classes: C.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred", "masks")

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(channels, width, levels=3)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """The logits [B, C, 4 s, 4 s], under the two names that losses read them by."""
        logits = self.classifier(self.pyramid(seen)[-1])
        return {"pred": logits, "masks": logits}


class PIDNetHead(nn.Module):
    """Three branches for detail, context and boundaries (Xu et al., PIDNet, CVPR 2023, section 3).

        pred = classify(sigmoid(D) P + (1 - sigmoid(D)) I)    (Bag: detail at boundaries, context inside)

    P and D see the finest map, I the coarsest.

    Args:
        channels: D. width: E. classes: C.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred", "extra_p", "extra_d")

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(channels, width, levels=3)
        self.detail, self.context, self.boundary = block(width), block(width), block(width)
        self.up = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)
        self.detail_classifier, self.classifier = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)
        self.boundary_classifier = nn.Conv2d(width, 1, 1)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`pred` and `extra_p`, logits [B, C, 4 s, 4 s]; `extra_d`, boundary logits [B, 1, 4 s, 4 s]."""
        coarse, _, fine = self.pyramid(seen)
        detail, context = self.detail(fine), self.up(self.context(coarse))
        boundary = self.boundary_classifier(self.boundary(fine))
        gate = boundary.sigmoid()
        pred = self.classifier(gate * detail + (1 - gate) * context)
        return {"pred": pred, "extra_p": self.detail_classifier(detail), "extra_d": boundary}


class RestorationHead(nn.Module):
    """The scene as a picture of 8 times the grid's side.

    Args:
        channels: D. width: E.
    """

    gives: ClassVar[tuple[str, ...]] = ("images",)

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(channels, width, levels=4)
        self.colours = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`images` [B, 3, 8 s, 8 s], RGB in 0..1."""
        return {"images": torch.sigmoid(self.colours(self.pyramid(seen)[-1]))}
