"""Heads that give boxes: of every thing, without anchors or with them, and of the largest one."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_convert

from loss.boxes import decode_boxes
from loss.yolox import gather_levels
from models.heads import Seen
from models.heads.pyramid import Pyramid, block

# Shapes as in pyramid.py, A anchors, C classes.
PRIOR = 0.01  # the probability that a detector begins with: nearly everywhere is nothing (Lin et al., ICCV 2017)


class Found(NamedTuple):
    """What a detector finds in an image: boxes [n, 4] xyxy px, scores [n] in 0..1, labels [n] int64, best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


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
        self.boxes, self.kinds = block(width), block(width)  # shared by the levels
        self.box = nn.Conv2d(width, 5, 1)
        self.kind = nn.Conv2d(width, classes, 1)
        with torch.no_grad():
            for conv, logits in ((self.box, slice(4, 5)), (self.kind, slice(None))):
                assert conv.bias is not None
                conv.bias[logits] = math.log(PRIOR / (1 - PRIOR))

    def forward(self, seen: Seen) -> dict[str, Any]:
        """`pred`: a map [B, 5 + C, h, w] a level of dx, dy, log w, log h, objectness and classes."""
        maps = self.pyramid(seen)
        return {"pred": [torch.cat([self.box(self.boxes(m)), self.kind(self.kinds(m))], 1) for m in maps]}

    def find(self, out: Mapping[str, Any]) -> list[Found]:
        """What stands in the maps: the score of a class is its probability times that of an object."""
        pred = gather_levels(out["pred"], [self.size // level.shape[-1] for level in out["pred"]])
        scores = pred.cls.sigmoid() * pred.obj.sigmoid()[..., None]
        boxes = box_convert(pred.boxes(), "cxcywh", "xyxy")
        return [keep_best(*pair, self.size) for pair in zip(boxes, scores, strict=True)]


class RetinaNetDetector(nn.Module):
    """torchvision's RetinaNet head on three maps, with 9 anchors a cell (Lin et al., ICCV 2017, section 4).

    The anchors' sizes are 2, 2.5 and 3.2 cells of their map, their aspects 1:2, 1:1 and 2:1.

    Args:
        channels: D. width: E. classes: C. size: side of the image, px. side: s.
    """

    gives: ClassVar[tuple[str, ...]] = ("cls_logits", "bbox_regression", "anchors")
    anchors: Tensor

    def __init__(self, channels: int, width: int, classes: int, size: int, side: int) -> None:
        super().__init__()
        self.size = size
        self.pyramid = Pyramid(channels, width, levels=3)
        sides = [side, 2 * side, 4 * side]
        strides = [size / s for s in sides]
        sizes = tuple(tuple(int(2 * stride * 2 ** (octave / 3)) for octave in range(3)) for stride in strides)
        generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
        corners = [[torch.tensor(stride)] * 2 for stride in strides]
        self.register_buffer("anchors", torch.cat(generator.grid_anchors([[s, s] for s in sides], corners)))
        self.head = RetinaNetHead(width, 9, classes, norm_layer=lambda c: nn.GroupNorm(8, c))

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`anchors` [A, 4] xyxy px; `cls_logits` [B, A, C] and `bbox_regression` [B, A, 4] of each."""
        return {**self.head(self.pyramid(seen)), "anchors": self.anchors}

    def find(self, out: Mapping[str, Tensor]) -> list[Found]:
        """What the anchors show, moved and stretched by their deltas."""
        pairs = zip(out["bbox_regression"], out["cls_logits"].sigmoid(), strict=True)
        return [keep_best(decode_boxes(deltas, out["anchors"]), scores, self.size) for deltas, scores in pairs]


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


def keep_best(boxes: Tensor, scores: Tensor, size: int, least: float = 0.01, most: int = 100) -> Found:
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
