"""RetinaNet: anchors matched by IoU, focal classification and L1 box regression."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.assign import AnchorMatcher
from loss.boxes import encode_boxes, pairwise_iou, proper_targets
from loss.common import check_choice, divide, reduce, sum_terms, upcast, zero_with_graph
from loss.focal import sigmoid_focal_loss

BOX_LOSSES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


def retinanet_terms(
    cls_logits: Tensor,
    bbox_regression: Tensor,
    anchors: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    matcher: AnchorMatcher,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_loss: str = "l1",
) -> dict[str, Tensor]:
    """Compute the terms of :class:`RetinaNetLoss`: classification and bbox_regression."""
    check_choice("box_loss", box_loss, tuple(BOX_LOSSES))
    cls_logits, bbox_regression = upcast(cls_logits), upcast(bbox_regression)
    cls_sum, box_sum = zero_with_graph(cls_logits), zero_with_graph(bbox_regression)
    for image, target in enumerate(targets):
        logits, image_anchors = cls_logits[image], anchors[image].to(bbox_regression)
        boxes, labels = proper_targets(target, logits.shape[1], like=image_anchors)
        matched = matcher(pairwise_iou(boxes, image_anchors))
        foreground = (matched >= 0).nonzero().squeeze(1)
        matched_gt = matched[foreground]
        num_foreground = max(len(foreground), 1)

        one_hot = torch.zeros_like(logits)
        one_hot[foreground] = F.one_hot(labels[matched_gt], logits.shape[1]).to(one_hot)  # asserts labels on a GPU, too
        focal = sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=gamma, reduction="none").sum(1)
        cls_sum = cls_sum + reduce(focal, "sum", matched != matcher.IGNORED) / num_foreground

        deltas = encode_boxes(boxes[matched_gt], image_anchors[foreground])
        distance = BOX_LOSSES[box_loss](bbox_regression[image, foreground], deltas, reduction="sum")
        box_sum = box_sum + distance / num_foreground
    return {
        "classification": divide(cls_sum, len(targets)),
        "bbox_regression": divide(box_sum, len(targets)),
    }


class RetinaNetLoss(nn.Module):
    r"""Dense detection with anchors: focal loss over classes and L1 over box deltas.

    .. math::
        L = \frac{1}{B} \sum_b \frac{1}{\max(1, N_{fg})} \Big[
            \sum_{not\ ignored} FL(p, onehot) + \sum_{fg} |\delta - \delta^*| \Big]

    with :math:`\delta^*` of :func:`~loss.boxes.encode_boxes` and foreground, background and ignored anchors
    of :class:`~loss.assign.AnchorMatcher`. Each image is divided by its own foreground, as torchvision does
    (the paper divides by the foreground of the batch). Degenerate boxes are dropped. Without any box all
    anchors are background.

    Args:
        alpha: weight of the positive class in the focal loss; negative means none.
        gamma: focusing parameter of the focal loss.
        fg_iou_thresh: IoU from which an anchor is foreground.
        bg_iou_thresh: IoU below which it is background.
        box_loss: "l1" (torchvision) or "smooth_l1" (the paper, beta 1).

    Shape:
        - out["anchors"]: [A, 4] xyxy px for all images, or a list with one [A, 4] per image
        - out["cls_logits"]: [B, A, K], or a list of levels [B, A_l, K]
        - out["bbox_regression"]: [B, A, 4], or a list of levels [B, A_l, 4]
        - target["gt"]: B dicts, "boxes" [n, 4] xyxy px, "labels" [n] int64 in [0, K)
        - Output: scalar; with ``return_terms`` also the terms classification, bbox_regression

    Raises:
        ValueError: an unknown ``box_loss``, ``bg_iou_thresh`` above ``fg_iou_thresh``, shapes that do not
        fit. IndexError: a label outside the classes.

    Reference:
        Lin et al., Focal loss for dense object detection, ICCV 2017 (arXiv 1708.02002), sections 3 and 4.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])
        >>> logits, deltas = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)
        >>> out = {"anchors": anchors, "cls_logits": logits, "bbox_regression": deltas}
        >>> gt = [{"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([2])}]
        >>> RetinaNetLoss()(out, {"gt": gt}, return_terms=True)
        (tensor(0.6931), {'classification': tensor(0.6931), 'bbox_regression': tensor(0.)})
    """

    reads: ClassVar[dict[str, str]] = {
        "anchors": "out.anchors",
        "cls_logits": "out.cls_logits",
        "bbox_regression": "out.bbox_regression",
        "gt": "target.gt",
    }

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        fg_iou_thresh: float = 0.5,
        bg_iou_thresh: float = 0.4,
        box_loss: str = "l1",
    ) -> None:
        super().__init__()
        check_choice("box_loss", box_loss, tuple(BOX_LOSSES))
        self.alpha = alpha
        self.gamma = gamma
        self.matcher = AnchorMatcher(fg_iou_thresh, bg_iou_thresh)
        self.box_loss = box_loss

    def forward(
        self, out: Mapping[str, Any], target: Mapping[str, Any], return_terms: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compare anchors' logits and deltas with boxes; see the class for shapes."""
        cls_logits, bbox_regression = (
            head if isinstance(head, Tensor) else torch.cat(list(head), dim=1)
            for head in (out["cls_logits"], out["bbox_regression"])
        )
        anchors, targets = out["anchors"], target["gt"]
        if isinstance(anchors, Tensor) and anchors.ndim == 2:
            anchors = [anchors] * len(targets)
        if not len(cls_logits) == len(bbox_regression) == len(anchors) == len(targets):
            raise ValueError(
                f"logits of {len(cls_logits)} images, deltas of {len(bbox_regression)}, "
                f"anchors of {len(anchors)}, but boxes of {len(targets)}"
            )
        if any(len(one) != cls_logits.shape[1] for one in anchors):
            raise ValueError(f"logits of {cls_logits.shape[1]} anchors, but {[len(one) for one in anchors]} anchors")
        terms = retinanet_terms(
            cls_logits, bbox_regression, anchors, targets, self.matcher, self.alpha, self.gamma, self.box_loss
        )
        return sum_terms(terms, return_terms)
