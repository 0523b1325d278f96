"""YOLOX: SimOTA assignment, then overlap, objectness, class and optional L1 terms."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from loss.assign import SimOTAAssigner
from loss.box_iou import box_iou_loss
from loss.boxes import proper_targets
from loss.common import bounded, sum_terms, upcast

# exp(35) strides is far beyond any image, and width * height still fits float32, so that the gradient is
# finite.
MAX_LOG_SIZE = 35.0


class Predictions(NamedTuple):
    """Raw head output of all A anchors, and where they stand: maps of all levels behind one another."""

    reg: Tensor  # [B, A, 4] (dx, dy, log w, log h) in strides
    obj: Tensor  # [B, A] logits
    cls: Tensor  # [B, A, C] logits
    grid: Tensor  # [A, 2] column and row
    strides: Tensor  # [A] px

    def boxes(self) -> Tensor:
        """Return the predicted boxes [B, A, 4], cxcywh px."""
        strides = self.strides[:, None]
        size = self.reg[..., 2:].clamp(max=MAX_LOG_SIZE).exp()
        return torch.cat([(self.reg[..., :2] + self.grid) * strides, size * strides], dim=-1)


def gather_levels(maps: Sequence[Tensor], strides: Sequence[float]) -> Predictions:
    """Line up the levels' maps [B, 5 + C, h_i, w_i] anchor by anchor, row by row."""
    levels: list[Predictions] = []
    for one, stride in zip(maps, strides, strict=True):
        height, width = one.shape[-2:]
        # [B, 5 + C, h, w] -> [B, h * w, ...], as views
        reg, obj, cls = upcast(one).flatten(2).transpose(1, 2).split([4, 1, one.shape[1] - 5], dim=2)
        cells = torch.arange(height * width, device=one.device)
        grid = torch.stack([cells % width, cells // width], dim=1).to(reg.dtype)
        levels.append(Predictions(reg, obj.squeeze(2), cls, grid, torch.full_like(grid[:, 0], stride)))
    return Predictions(
        reg=torch.cat([level.reg for level in levels], 1),
        obj=torch.cat([level.obj for level in levels], 1),
        cls=torch.cat([level.cls for level in levels], 1),
        grid=torch.cat([level.grid for level in levels]),
        strides=torch.cat([level.strides for level in levels]),
    )


def yolox_terms(
    maps: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    strides: Sequence[float],
    assigner: SimOTAAssigner,
    reg_weight: float = 5.0,
    use_l1: bool = False,
) -> dict[str, Tensor]:
    """Compute the terms of :class:`YOLOXLoss`: iou, obj, cls, l1, weighted so that their sum is the loss."""
    pred = gather_levels(maps, strides)
    boxes = pred.boxes()
    centers = (pred.grid + 0.5) * pred.strides[:, None]
    fg_mask = torch.zeros_like(pred.obj, dtype=torch.bool)
    # What each foreground anchor is to find: box, label, IoU. None at first, for an empty batch.
    wanted = [(boxes.new_zeros(0, 4), fg_mask.new_zeros(0, dtype=torch.int64), boxes.new_zeros(0))]
    for image, target in enumerate(targets):
        gt_boxes, gt_labels = proper_targets(target, pred.cls.shape[2], like=boxes)
        gt_boxes = box_convert(gt_boxes, "xyxy", "cxcywh")
        fg_mask[image], matched_gt, matched_iou = assigner(
            boxes[image], pred.cls[image], pred.obj[image], centers, pred.strides, gt_boxes, gt_labels
        )
        wanted.append((gt_boxes[matched_gt], gt_labels[matched_gt], matched_iou))
    box_target, labels, iou_target = (torch.cat(column) for column in zip(*wanted, strict=True))

    cls_target = F.one_hot(labels, pred.cls.shape[2]) * iou_target[:, None]
    num_fg = max(len(box_target), 1)
    terms = {
        "iou": reg_weight
        * box_iou_loss(boxes[fg_mask], box_target, squared=True, box_format="cxcywh", eps=1e-16, reduction="sum"),
        "obj": F.binary_cross_entropy_with_logits(bounded(pred.obj), fg_mask.to(boxes), reduction="sum"),
        "cls": F.binary_cross_entropy_with_logits(bounded(pred.cls[fg_mask]), cls_target, reduction="sum"),
        "l1": boxes.new_zeros(()),
    }
    if use_l1:
        anchor = fg_mask.nonzero()[:, 1]
        stride = pred.strides[anchor, None]
        shift = box_target[:, :2] / stride - pred.grid[anchor]
        log_size = (box_target[:, 2:] / stride + 1e-8).log()
        l1_target = torch.cat([shift, log_size], dim=1)
        terms["l1"] = F.l1_loss(pred.reg[fg_mask], l1_target, reduction="sum")
    return {name: term / num_fg for name, term in terms.items()}


class YOLOXLoss(nn.Module):
    r"""Anchor-free detection: overlap, objectness and class of the predictions that SimOTA assigns.

    .. math::
        L = \frac{1}{\max(N_{fg}, 1)} \Big[ \lambda \sum_{fg} (1 - IoU^2) + \sum_{all} BCE(obj, fg)
            + \sum_{fg} BCE(cls, onehot \cdot IoU) + [L1] \sum_{fg} |reg - reg^*| \Big]

    with boxes (dx + column, dy + row) * stride and exp(dw, dh) * stride, N_fg the foreground anchors of the
    whole batch, and reg* = (cx / s - column, cy / s - row, log(w / s + 1e-8), log(h / s + 1e-8)). The class
    target's IoU is that of the prediction itself, without gradient. Degenerate boxes and those that no
    anchor is near are dropped. Without any box, the objectness term alone remains.

    Args:
        l1_activate_epoch: the L1 term counts from this epoch on, epochs starting at 1; None means never.
        num_classes: C; None takes ``target["num_classes"]``.
        strides: px of each level; None takes ``img_size // width`` of each map.
        reg_weight: lambda.
        center_radius: how far an anchor may be from a ground truth's centre, in strides.
        topk: see :class:`~loss.assign.SimOTAAssigner`.

    Shape:
        - out["pred"]: list of [B, 5 + C, h_i, w_i], channels dx, dy, dw, dh, objectness logit, class logits
        - target["gt"]: B dicts, "boxes" [n, 4] xyxy px, "labels" [n] int64; target["img_size"]: int, px;
          target["num_classes"]: int
        - Output: scalar; with ``return_terms`` also the terms iou, obj, cls, l1

    Raises:
        ValueError: maps that do not fit ``num_classes``, ``strides`` or the number of images.
        IndexError: a label outside the classes.

    Reference:
        Ge et al., YOLOX: Exceeding YOLO series in 2021, arXiv 2107.08430.

    Example:
        >>> maps = [torch.zeros(1, 7, 2, 2, requires_grad=True)]
        >>> gt = [{"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([1])}]
        >>> loss = YOLOXLoss()
        >>> target = {"gt": gt, "img_size": 16, "num_classes": 2}
        >>> total, terms = loss({"pred": maps}, target, return_terms=True)
        >>> total, list(terms)
        (tensor(9.0568, grad_fn=<SumBackward0>), ['iou', 'obj', 'cls', 'l1'])
    """

    reads: ClassVar[dict[str, str]] = {
        "pred": "out.pred",
        "gt": "target.gt",
        "img_size": "target.img_size?",
        "num_classes": "target.num_classes?",
    }

    def __init__(
        self,
        l1_activate_epoch: int | None = None,
        num_classes: int | None = None,
        strides: Sequence[float] | None = None,
        reg_weight: float = 5.0,
        center_radius: float = 1.5,
        topk: int = 10,
    ) -> None:
        super().__init__()
        self.l1_activate_epoch = l1_activate_epoch
        self.num_classes = num_classes
        self.strides = strides
        self.reg_weight = reg_weight
        self.assigner = SimOTAAssigner(center_radius, topk)
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch it is, starting at 1."""
        self.epoch = epoch

    def forward(
        self, out: Mapping[str, Any], target: Mapping[str, Any], return_terms: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compare raw maps with boxes; see the class for shapes."""
        maps, targets = out["pred"], target["gt"]
        num_classes = target["num_classes"] if self.num_classes is None else self.num_classes
        strides = self.strides or [int(target["img_size"]) // level.shape[-1] for level in maps]
        if len(strides) != len(maps):
            raise ValueError(f"{len(maps)} maps but {len(strides)} strides")
        for level in maps:
            if level.shape[:2] != (len(targets), 5 + num_classes):
                wanted = f"[{len(targets)}, {5 + num_classes}, h, w]"
                raise ValueError(f"a map [B, 5 + C, h, w] must be {wanted}, not {list(level.shape)}")
        use_l1 = self.l1_activate_epoch is not None and self.epoch >= self.l1_activate_epoch
        terms = yolox_terms(maps, targets, strides, self.assigner, self.reg_weight, use_l1)
        return sum_terms(terms, return_terms)
