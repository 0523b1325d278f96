"""Which prediction answers for which ground-truth box: SimOTA (YOLOX) and IoU matching (RetinaNet).

Assignment is a choice, not a function to differentiate: nothing here carries a gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from loss.boxes import pairwise_iou


class Assignment(NamedTuple):
    """Which of A anchors are foreground, and what each of those F is to find.

    fg_mask: [A] bool. matched_gt: [F] int64, index of the ground truth. matched_iou: [F] IoU of that anchor's
    predicted box with it.
    """

    fg_mask: Tensor
    matched_gt: Tensor
    matched_iou: Tensor


class SimOTAAssigner:
    """SimOTA: each ground truth takes the few nearby predictions that cost least.

    cost = BCE(sqrt(p_cls * p_obj), one-hot class) + 3 * (-log(IoU + 1e-8)) + 1e6 where the anchor is not near

    An anchor is near a ground truth when its centre is less than ``center_radius`` strides away on both axes;
    candidates are the anchors near any of them. A ground truth takes k = clamp(floor(sum of its ``topk``
    greatest IoUs), min 1) candidates of least cost; an anchor taken by several goes to the one of least cost.
    A ground truth that no anchor is near takes none. Ties go to the earlier anchor and ground truth.

    Args:
        center_radius: in strides.
        topk: how many IoUs are summed for k.

    Shape:
        - pred_boxes: [A, 4] cxcywh px; cls_logits: [A, C]; obj_logits: [A]
        - centers: [A, 2] px; strides: [A] px
        - gt_boxes: [G, 4] cxcywh px, positive sizes; gt_labels: [G] int64
        - Output: :class:`Assignment`

    Reference:
        Ge et al., YOLOX, arXiv 2107.08430, section 2.1; Ge et al., OTA, CVPR 2021 (arXiv 2103.14259).

    Example:
        >>> centers, strides = torch.tensor([[4.0, 4.0], [12.0, 4.0], [60.0, 4.0]]), torch.full((3,), 8.0)
        >>> pred = torch.tensor([[4.0, 4.0, 8.0, 8.0], [5.0, 4.0, 8.0, 8.0], [60.0, 4.0, 8.0, 8.0]])
        >>> SimOTAAssigner()(pred, torch.zeros(3, 2), torch.zeros(3), centers, strides,
        ...                  torch.tensor([[4.0, 4.0, 8.0, 8.0]]), torch.tensor([1]))
        Assignment(fg_mask=tensor([ True, False, False]), matched_gt=tensor([0]), matched_iou=tensor([1.]))
    """

    IOU_WEIGHT = 3.0

    def __init__(self, center_radius: float = 1.5, topk: int = 10) -> None:
        self.center_radius = center_radius
        self.topk = topk

    @torch.no_grad()
    def __call__(
        self,
        pred_boxes: Tensor,
        cls_logits: Tensor,
        obj_logits: Tensor,
        centers: Tensor,
        strides: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
    ) -> Assignment:
        """Assign the anchors of one image; see the class for arguments and result."""
        offset = (centers - gt_boxes[:, None, :2]).abs().amax(-1)  # [G, A]
        near = offset < self.center_radius * strides
        reachable = near.any(1).nonzero().squeeze(1)  # [R]
        candidates = near.any(0).nonzero().squeeze(1)  # [K]
        fg_mask = torch.zeros_like(strides, dtype=torch.bool)
        if len(reachable) == 0:
            return Assignment(fg_mask, reachable, pred_boxes.new_zeros(0))

        iou = pairwise_iou(
            box_convert(gt_boxes[reachable], "cxcywh", "xyxy"),
            box_convert(pred_boxes[candidates], "cxcywh", "xyxy"),
        )  # [R, K]
        cost = self._class_cost(cls_logits[candidates], obj_logits[candidates], gt_labels[reachable])
        cost = cost - self.IOU_WEIGHT * (iou + 1e-8).log()
        far = ~near[reachable][:, candidates]  # dearer than all near ones, where YOLOX adds 1e6, and float32 has ties
        most = min(self.topk, len(candidates))
        k = iou.topk(most, dim=1).values.sum(1).int().clamp(min=1)  # [R]
        order = cost.sort(dim=1, stable=True).indices
        near_first = far.gather(1, order).int().sort(dim=1, stable=True).indices
        cheapest = order.gather(1, near_first)[:, :most]
        taken = torch.zeros_like(iou, dtype=torch.bool)
        taken.scatter_(1, cheapest, torch.arange(most, device=k.device) < k[:, None])

        owner = taken.int().argmax(0)  # [K], right where one ground truth took the anchor
        # every candidate is near to some ground truth
        owner = torch.where(taken.sum(0) > 1, cost.masked_fill(far, torch.inf).argmin(0), owner)
        chosen = taken.any(0)
        fg_mask[candidates[chosen]] = True
        return Assignment(fg_mask, reachable[owner[chosen]], iou.gather(0, owner[None])[0, chosen])

    @staticmethod
    def _class_cost(cls_logits: Tensor, obj_logits: Tensor, labels: Tensor) -> Tensor:
        """Return BCE(sqrt(p_cls * p_obj), one-hot of each label), summed over classes, [R, K]."""
        prob = (cls_logits.sigmoid() * obj_logits.sigmoid()[:, None]).sqrt()  # [K, C]
        yes = prob.log().clamp(min=-100)
        no = torch.log1p(-prob).clamp(min=-100)
        return -(no.sum(1, keepdim=True) + (yes - no)[:, labels]).T


class AnchorMatcher:
    """Match each anchor to the ground truth with which it overlaps most.

    IoU >= ``fg_iou_thresh``: foreground; IoU < ``bg_iou_thresh``: background; between: ignored. So that no
    ground truth goes without, the anchors that overlap it most (all that tie, if IoU > 0) become foreground
    for *their own* best ground truth, whatever the IoU.

    Args:
        fg_iou_thresh: at least ``bg_iou_thresh``.
        bg_iou_thresh: see above.

    Shape:
        - iou: [G, A]
        - Output: [A] int64: index of the ground truth, -1 (``BACKGROUND``) or -2 (``IGNORED``)

    Reference:
        Lin et al., Focal loss for dense object detection, ICCV 2017, section 4; Ren et al., Faster R-CNN,
        section 3.1.2 (the anchor of highest IoU is positive too).

    Example:
        >>> AnchorMatcher()(torch.tensor([[0.7, 0.45, 0.1, 0.0], [0.2, 0.0, 0.3, 0.0]]))
        tensor([ 0, -2,  1, -1])
    """

    BACKGROUND = -1
    IGNORED = -2

    def __init__(self, fg_iou_thresh: float = 0.5, bg_iou_thresh: float = 0.4) -> None:
        if bg_iou_thresh > fg_iou_thresh:
            raise ValueError(f"bg_iou_thresh {bg_iou_thresh} exceeds fg_iou_thresh {fg_iou_thresh}")
        self.fg_iou_thresh = fg_iou_thresh
        self.bg_iou_thresh = bg_iou_thresh

    @torch.no_grad()
    def __call__(self, iou: Tensor) -> Tensor:
        """Match the anchors of one image; see the class for argument and result."""
        if iou.numel() == 0:
            return torch.full((iou.shape[1],), self.BACKGROUND, device=iou.device)
        best_iou, best_gt = iou.max(dim=0)
        matched = torch.where(best_iou < self.fg_iou_thresh, self.IGNORED, best_gt)
        matched = torch.where(best_iou < self.bg_iou_thresh, self.BACKGROUND, matched)
        # IoU 0 is no overlap at all: a ground truth that no anchor touches would make every anchor
        # foreground.
        last_resort = ((iou == iou.amax(dim=1, keepdim=True)) & (iou > 0)).any(dim=0)
        return torch.where(last_resort, best_gt, matched)
