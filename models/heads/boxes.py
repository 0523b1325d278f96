"""Heads that give boxes: of every thing, without anchors or with them, and of the largest one."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import batched_nms, box_convert

from loss.boxes import decode_boxes
from loss.yolox import gather_levels
from models.heads import Seen
from models.heads.pyramid import Pyramid, block

# Shapes as in pyramid.py, A anchors, C classes.
ANCHORS = 9  # a place
PRIOR = 0.01  # the probability that a detector begins with: nearly everywhere is nothing (Lin et al., ICCV 2017)


class Found(NamedTuple):
    """What a detector finds in an image: boxes [n, 4] xyxy px, scores [n] in 0..1, labels [n] int64, best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Tower(nn.Module):
    """What each place of a map says of boxes and of classes: a block and a 1x1 convolution for either, [B, n, h, w].

    All levels share one. Confidences begin at PRIOR.

    Args:
        width: channels of the maps. boxes, classes: numbers a place for either. confidence: those of `boxes` that are
            logits of there being anything.
    """

    def __init__(self, width: int, boxes: int, classes: int, confidence: slice) -> None:
        super().__init__()
        box, kind = nn.Conv2d(width, boxes, 1), nn.Conv2d(width, classes, 1)
        with torch.no_grad():
            for conv, logits in ((box, confidence), (kind, slice(None))):
                assert conv.bias is not None
                conv.bias[logits] = math.log(PRIOR / (1 - PRIOR))
        self.boxes, self.kinds = nn.Sequential(block(width), box), nn.Sequential(block(width), kind)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, boxes, h, w] and class logits [B, classes, h, w]."""
        return self.boxes(level), self.kinds(level)


class YOLOXDetector(nn.Module):
    """A decoupled head without anchors on three maps (Ge et al., arXiv 2107.08430, section 2.1).

    Args:
        channels: D. width: E. classes: C. size: side of the image, px.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred",)

    def __init__(self, channels: int, width: int, classes: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.pyramid = Pyramid(channels, width, levels=3)
        self.tower = Tower(width, 5, classes, slice(4, 5))

    def forward(self, seen: Seen) -> dict[str, Any]:
        """`pred`: a map [B, 5 + C, h, w] a level of dx, dy, log w, log h, objectness and classes."""
        return {"pred": [torch.cat(self.tower(level), 1) for level in self.pyramid(seen)]}

    def find(self, out: Mapping[str, Any]) -> list[Found]:
        """What stands in the maps: the score of a class is its probability times that of an object."""
        pred = gather_levels(out["pred"], [self.size // level.shape[-1] for level in out["pred"]])
        scores = pred.cls.sigmoid() * pred.obj.sigmoid()[..., None]
        boxes = box_convert(pred.boxes(), "cxcywh", "xyxy")
        return [keep_best(*pair, self.size, least=0.01) for pair in zip(boxes, scores, strict=True)]


class RetinaNetDetector(nn.Module):
    """Nine anchors at each place of three maps (Lin et al., ICCV 2017, section 4, with towers of one layer).

    The anchors' sides are 2, 2.5 and 3.2 cells of their map, their aspects 1:2, 1:1 and 2:1.

    Args:
        channels: D. width: E. classes: C. size: side of the image, px. side: s.
    """

    gives: ClassVar[tuple[str, ...]] = ("cls_logits", "bbox_regression", "anchors")
    anchors: Tensor

    def __init__(self, channels: int, width: int, classes: int, size: int, side: int) -> None:
        super().__init__()
        self.size = size
        self.pyramid = Pyramid(channels, width, levels=3)
        self.tower = Tower(width, 4 * ANCHORS, classes * ANCHORS, slice(0))
        sides = [side, 2 * side, 4 * side]
        sizes = tuple(tuple(int(2 * size / s * 2 ** (octave / 3)) for octave in range(3)) for s in sides)
        generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
        strides = [[torch.tensor(size / s)] * 2 for s in sides]
        self.register_buffer("anchors", torch.cat(generator.grid_anchors([[s, s] for s in sides], strides)))

    def forward(self, seen: Seen) -> dict[str, Any]:
        """`anchors` [A, 4] xyxy px; `cls_logits` and `bbox_regression`, a level [B, A_l, C] and [B, A_l, 4] of each."""
        boxes, kinds = zip(*map(self.tower, self.pyramid(seen)), strict=True)
        # [B, 9 n, h, w] -> [B, h * w * 9, n], the anchors' order
        deltas, logits = (
            [one.unflatten(1, (ANCHORS, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3) for one in levels]
            for levels in (boxes, kinds)
        )
        return {"anchors": self.anchors, "cls_logits": logits, "bbox_regression": deltas}

    def find(self, out: Mapping[str, Any]) -> list[Found]:
        """What the anchors show, moved and stretched by their deltas."""
        deltas, logits = torch.cat(out["bbox_regression"], 1), torch.cat(out["cls_logits"], 1)
        boxes = [decode_boxes(one, out["anchors"]) for one in deltas]
        return [keep_best(*pair, self.size, least=0.05) for pair in zip(boxes, logits.sigmoid(), strict=True)]


class SubjectHead(nn.Module):
    """The box of one thing, read from the whole grid at once.

    Args:
        channels: D. width: E. size: side of the image, px. side: s.
    """

    gives: ClassVar[tuple[str, ...]] = ("boxes",)

    def __init__(self, channels: int, width: int, size: int, side: int) -> None:
        super().__init__()
        self.size = size
        self.cells = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width), nn.ReLU(), nn.Flatten())
        self.box = nn.Sequential(nn.Linear(side * side * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, 4))

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`boxes` [B, 4] xyxy px, centre within the image and no side longer than the image's."""
        relative = self.box(self.cells(seen.features)).float().sigmoid()
        return {"boxes": box_convert(self.size * relative, "cxcywh", "xyxy")}


def keep_best(boxes: Tensor, scores: Tensor, size: int, least: float, most: int = 100) -> Found:
    """The best of what overlaps: class by class, a box goes where a better one has IoU 0.6 or more with it.

    Args:
        boxes: [A, 4] xyxy px, cut at the image's border. scores: [A, C]. size: side of the image, px. least: score
            below which nothing is found. most: how many are kept; ten times as many go into the comparison.
    """
    place, label = (scores > least).nonzero(as_tuple=True)
    score, first = scores[place, label].sort(descending=True, stable=True)
    place, label, score = place[first[: 10 * most]], label[first[: 10 * most]], score[: 10 * most]
    candidates = boxes[place].clamp(0, size)
    kept = batched_nms(candidates, score, label, 0.6)[:most]
    return Found(candidates[kept], score[kept], label[kept])
