"""Box regression by overlap: IoU, GIoU, DIoU and CIoU of paired boxes."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from loss.boxes import elementwise_iou
from loss.common import check_choice, check_reduction, reduce, upcast

KINDS = ("iou", "giou", "diou", "ciou")
BOX_FORMATS = ("xyxy", "xywh", "cxcywh")


def check_options(kind: str, squared: bool, box_format: str, reduction: str) -> None:
    """Raise ValueError for an unknown option, or for ``squared`` with another kind than "iou"."""
    check_choice("kind", kind, KINDS)
    check_choice("box_format", box_format, BOX_FORMATS)
    check_reduction(reduction)
    if squared and kind != "iou":
        raise ValueError(f"squared=True belongs to kind='iou', not to {kind!r}")


def _aspect_gap(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return v = 4 / pi^2 * (arctan(w1 / h1) - arctan(w2 / h2))^2, and 0 where a box is a point."""
    angles, points = [], torch.zeros_like(boxes1[..., 0], dtype=torch.bool)
    for boxes in (boxes1, boxes2):
        width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
        point = (width == 0) & (height == 0)
        points = points | point
        # atan2 is arctan(w / h), also where h = 0; it has no gradient at (0, 0).
        sign = torch.where(height < 0, -1.0, 1.0)
        angles.append(torch.atan2(width * sign, torch.where(point, 1.0, height * sign)))
    return torch.where(points, 0.0, 4 / math.pi**2 * (angles[0] - angles[1]) ** 2)


def box_iou_loss(
    pred: Tensor,
    target: Tensor,
    kind: str = "iou",
    squared: bool = False,
    box_format: str = "xyxy",
    eps: float = 1e-7,
    reduction: str = "mean",
) -> Tensor:
    """Compute :class:`BoxIoULoss` as a function."""
    check_options(kind, squared, box_format, reduction)
    if pred.shape != target.shape or pred.shape[-1:] != (4,):
        raise ValueError(f"boxes must be two tensors [..., 4], not {list(pred.shape)} and {list(target.shape)}")
    pred = box_convert(upcast(pred), box_format, "xyxy")
    target = box_convert(upcast(target).to(pred.dtype), box_format, "xyxy")

    if kind == "giou":
        return reduce(generalized_box_iou_loss(pred, target, reduction="none", eps=eps), reduction)
    iou = elementwise_iou(pred, target, eps)
    if kind == "iou":
        return reduce(1 - iou ** (2 if squared else 1), reduction)
    # ciou needs diou's IoU, so that torchvision's distance_box_iou_loss would compute it twice
    hull = torch.max(pred[..., 2:], target[..., 2:]) - torch.min(pred[..., :2], target[..., :2])
    apart = (pred[..., :2] + pred[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    loss = 1 - iou + apart.square().sum(-1) / (hull.square().sum(-1) + eps)
    if kind == "ciou":
        v = _aspect_gap(pred, target)
        with torch.no_grad():
            alpha = v / (1 - iou + v + eps)
        loss = loss + alpha * v
    return reduce(loss, reduction)


class BoxIoULoss(nn.Module):
    r"""One minus the overlap of predicted box and its target.

    .. math::
        L_{iou} = 1 - IoU \quad (squared: 1 - IoU^2) \qquad
        L_{giou} = 1 - IoU + \frac{|C| - |A \cup B|}{|C|} \\
        L_{diou} = 1 - IoU + \frac{d^2}{c^2} \qquad
        L_{ciou} = L_{diou} + \alpha v, \quad
        v = \tfrac{4}{\pi^2} (\arctan \tfrac{w_B}{h_B} - \arctan \tfrac{w_A}{h_A})^2, \quad
        \alpha = \frac{v}{1 - IoU + v}

    C is the smallest box around both, c its diagonal, d the distance of the centres; alpha carries no
    gradient. ``eps`` stands in every denominator. Without overlap, "iou" has no gradient; the others pull
    the boxes together. A box without area gives a finite loss and gradient.

    Args:
        kind: "iou", "giou", "diou" or "ciou".
        squared: 1 - IoU^2 (YOLOX); with "iou" only.
        box_format: "xyxy", "xywh" or "cxcywh", of both inputs.
        eps: px^2.
        reduction: "mean" over boxes, "sum" or "none".

    Shape:
        - pred: [..., 4] px; target: [..., 4] px
        - Output: scalar, or [...] with reduction "none"

    Raises:
        ValueError: an unknown ``kind``, ``box_format`` or ``reduction``; ``squared`` with another kind than
            "iou"; shapes that differ.

    Reference:
        Yu et al., UnitBox, arXiv 1608.01471; Rezatofighi et al., Generalized IoU, CVPR 2019 (arXiv
        1902.09630), algorithm 1; Zheng et al., Distance-IoU loss, AAAI 2020 (arXiv 1911.08287), eq. 7 and 8
        to 11.

    Example:
        >>> pred, target = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])
        >>> BoxIoULoss("iou")(pred, target), BoxIoULoss("diou")(pred, target)
        (tensor(0.6667), tensor(0.7436))
    """

    reads: ClassVar[dict[str, str]] = {"pred": "out.boxes", "target": "target.boxes"}

    def __init__(
        self,
        kind: str = "iou",
        squared: bool = False,
        box_format: str = "xyxy",
        eps: float = 1e-7,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_options(kind, squared, box_format, reduction)
        self.kind = kind
        self.squared = squared
        self.box_format = box_format
        self.eps = eps
        self.reduction = reduction

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare boxes pairwise; see the class for shapes."""
        return box_iou_loss(pred, target, self.kind, self.squared, self.box_format, self.eps, self.reduction)
