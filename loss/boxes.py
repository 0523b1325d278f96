"""Boxes: overlap, regression targets, and ground truth without its degenerate boxes.

Boxes are float tensors [..., 4] in pixels; "xyxy" are corners, "cxcywh" centre and size. Conversions between
formats are ``torchvision.ops.box_convert``.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.ops import box_iou

from loss.common import check_labels

MAX_LOG_RATIO = math.log(64.0)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return the IoU of every box of one set with every box of another; two boxes without area have IoU 0.

    Args:
        boxes1: [N, 4] xyxy.
        boxes2: [M, 4] xyxy, same dtype.

    Returns:
        [N, M] in [0, 1], never NaN.

    >>> boxes = torch.tensor([[0.0, 0, 2, 2], [5, 5, 5, 5]])
    >>> pairwise_iou(boxes, torch.tensor([[1.0, 0, 3, 2], [5, 5, 5, 5]]))
    tensor([[0.3333, 0.0000],
            [0.0000, 0.0000]])
    """
    return torch.nan_to_num(box_iou(boxes1, boxes2), nan=0.0)


def elementwise_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """Return intersection / (union + eps) of box i of one set with box i of the other, with gradient to both.

    Args:
        boxes1: [..., 4] xyxy.
        boxes2: [..., 4] xyxy, same shape.
        eps: added to the union, px^2.

    Returns:
        [...] in [0, 1]; 0 without overlap, and there the gradient is 0 too.

    >>> elementwise_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]]))
    tensor([0.3333])
    """
    ax1, ay1, ax2, ay2 = boxes1.unbind(-1)
    bx1, by1, bx2, by2 = boxes2.unbind(-1)
    width = torch.relu(torch.min(ax2, bx2) - torch.max(ax1, bx1))
    height = torch.relu(torch.min(ay2, by2) - torch.max(ay1, by1))
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    return intersection / (union + eps)


def is_proper(boxes: Tensor) -> Tensor:
    """Return which boxes can be found at all: finite, with positive width and height.

    Args:
        boxes: [N, 4] xyxy.

    Returns:
        [N] bool.

    >>> is_proper(torch.tensor([[0.0, 0, 1, 1], [3, 0, 3, 9], [5, 0, 4, 9], [0, 0, float("inf"), 1]]))
    tensor([ True, False, False, False])
    """
    return boxes.isfinite().all(-1) & (boxes[:, 2:] > boxes[:, :2]).all(-1)


def proper_targets(target: Mapping[str, Tensor], num_classes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return one image's boxes and labels without the degenerate ones, where and as precise as ``like``.

    A zero-area box would be "found" by every anchor that ties at IoU 0, and its log-size target is -inf.

    Args:
        target: "boxes" [n, 4] xyxy px and "labels" [n] int64; neither is changed.
        num_classes: labels lie in [0, num_classes); those of dropped boxes are not looked at.
        like: tensor whose device and dtype the boxes get.

    Returns:
        boxes [m, 4] and labels [m] with m <= n.

    Raises:
        ValueError: not as many labels as boxes. IndexError: a label outside the classes.

    >>> gt = {"boxes": torch.tensor([[0, 0, 4, 4], [2, 2, 2, 6]]), "labels": torch.tensor([1, 0])}
    >>> proper_targets(gt, 2, like=torch.zeros(1))
    (tensor([[0., 0., 4., 4.]]), tensor([1]))
    """
    boxes = target["boxes"].detach().to(like).reshape(-1, 4)
    labels = target["labels"].to(like.device, torch.int64).reshape(-1)
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes but {len(labels)} labels in one image")
    proper = is_proper(boxes)
    boxes, labels = boxes[proper], labels[proper]
    check_labels(labels, num_classes)
    return boxes, labels


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the regression targets of boxes relative to anchors (Faster R-CNN, arXiv 1506.01497, eq. 2).

    dx = (x - x_a) / w_a, dy = (y - y_a) / h_a, dw = log(w / w_a), dh = log(h / h_a), x and y the centre.

    Args:
        boxes: [N, 4] xyxy with positive area.
        anchors: [N, 4] xyxy with positive area.

    Returns:
        [N, 4] deltas (dx, dy, dw, dh).

    >>> encode_boxes(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 8]]))
    tensor([[ 0.0000, -0.2500,  0.0000, -0.6931]])
    """
    size, anchor_size = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    shift = (boxes[:, :2] + size / 2) - (anchors[:, :2] + anchor_size / 2)
    return torch.cat([shift / anchor_size, (size / anchor_size).log()], dim=1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Return the boxes [N, 4] xyxy px that deltas [N, 4] make of anchors [N, 4]: the inverse of :func:`encode_boxes`.

    Logarithms of sizes are cut at log 64, so that no box grows beyond all bounds.

    >>> anchors = torch.tensor([[0.0, 0, 4, 8]])
    >>> decode_boxes(encode_boxes(torch.tensor([[0.0, 0, 4, 4]]), anchors), anchors)
    tensor([[0., 0., 4., 4.]])
    """
    anchor_size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + (0.5 + deltas[:, :2]) * anchor_size
    half = 0.5 * anchor_size * deltas[:, 2:].clamp(max=MAX_LOG_RATIO).exp()
    return torch.cat([centre - half, centre + half], dim=1)
