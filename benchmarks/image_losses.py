"""The cases of benchmarks/losses.py that look at boxes, masks and images; what a case is stands there."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import (
    box_convert,
    box_iou,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from loss import LOSS_REGISTRY
from loss.overlap import dice_score, iou_score

Case = tuple[str, list[Tensor], Callable[[], Tensor], Callable[[], Tensor]]


def some_boxes(count: int, side: float) -> Tensor:
    corner = torch.rand(count, 2) * side * 0.8
    return torch.cat([corner, corner + 8 + torch.rand(count, 2) * side * 0.3], 1)


def plain_yolox(maps: list[Tensor], gt: list[dict], img_size: int, classes: int) -> Tensor:
    """Write YOLOX's loss as one would: image by image, ground truth by ground truth, all pairs of classes."""
    raw = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # [B, A, 5 + C]
    grids, strides = [], []
    for m in maps:
        y, x = torch.meshgrid(torch.arange(m.shape[2]), torch.arange(m.shape[3]), indexing="ij")
        grids.append(torch.stack([x, y], 2).reshape(-1, 2).float())
        strides.append(torch.full((m.shape[2] * m.shape[3], 1), float(img_size // m.shape[3])))
    grid, stride = torch.cat(grids), torch.cat(strides)
    pred = torch.cat([(raw[..., :2] + grid) * stride, raw[..., 2:4].exp() * stride], 2)
    corners = box_convert(pred, "cxcywh", "xyxy")
    obj_target, found, total = torch.zeros(raw.shape[:2]), [], torch.zeros(())
    for b, target in enumerate(gt):
        with torch.no_grad():
            center = box_convert(target["boxes"], "xyxy", "cxcywh")[:, None, :2]
            near = ((grid + 0.5) * stride - center).abs().amax(2) < 1.5 * stride[:, 0]  # [G, A]
            candidates = near.any(0).nonzero()[:, 0]
            iou = box_iou(target["boxes"], corners[b, candidates])
            p = (raw[b, candidates, 5:].sigmoid() * raw[b, candidates, 4:5].sigmoid()).sqrt()
            one_hot = F.one_hot(target["labels"], classes).float()[:, None].expand(-1, len(candidates), -1)
            cost = F.binary_cross_entropy(p.expand_as(one_hot), one_hot, reduction="none").sum(2)
            cost = cost - 3 * (iou + 1e-8).log() + 1e6 * ~near[:, candidates]
            taken = torch.zeros_like(cost, dtype=torch.bool)
            for g, k in enumerate(iou.topk(10).values.sum(1).int().clamp(min=1).tolist()):
                taken[g, cost[g].topk(k, largest=False).indices] = True
            clash = taken.sum(0) > 1
            taken[:, clash] = F.one_hot(cost[:, clash].argmin(0), len(cost)).T.bool()
            owner, fg = taken.int().argmax(0)[taken.any(0)], candidates[taken.any(0)]
            matched = iou[:, taken.any(0)].gather(0, owner[None])[0]
        obj_target[b, fg] = 1
        found.append(fg)
        boxes = target["boxes"][owner]
        overlap = 1 - paired_iou(corners[b, fg], boxes) ** 2
        cls_target = F.one_hot(target["labels"][owner], classes) * matched[:, None]
        wanted = box_convert(boxes, "xyxy", "cxcywh")
        l1_target = torch.cat([wanted[:, :2] / stride[fg] - grid[fg], (wanted[:, 2:] / stride[fg] + 1e-8).log()], 1)
        total = total + 5 * overlap.sum() + F.l1_loss(raw[b, fg, :4], l1_target, reduction="sum")
        total = total + F.binary_cross_entropy_with_logits(raw[b, fg, 5:], cls_target, reduction="sum")
    total = total + F.binary_cross_entropy_with_logits(raw[..., 4], obj_target, reduction="sum")
    return total / sum(map(len, found))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU of paired boxes."""
    size = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
    inner = size.prod(1)
    return inner / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner + 1e-7)


def yolox_loss() -> Case:
    maps = [torch.randn(8, 85, s, s).requires_grad_() for s in (80, 40, 20)]
    gt = [{"boxes": some_boxes(20, 640), "labels": torch.randint(0, 80, (20,))} for _ in range(8)]
    loss, target = (
        LOSS_REGISTRY["yolox_loss"](l1_activate_epoch=1),
        {"gt": gt, "img_size": 640, "num_classes": 80},
    )
    return (
        "[8, 85, 8400], 20 boxes",
        maps,
        lambda: loss({"pred": maps}, target),
        lambda: plain_yolox(maps, gt, 640, 80),
    )


def retinanet_loss() -> Case:
    anchors = some_boxes(20000, 512)
    logits, deltas = torch.randn(4, 20000, 20).requires_grad_(), torch.randn(4, 20000, 4).requires_grad_()
    gt = [{"boxes": some_boxes(10, 512), "labels": torch.randint(0, 20, (10,))} for _ in range(4)]
    out = {"anchors": anchors, "cls_logits": logits, "bbox_regression": deltas}
    loss, head = LOSS_REGISTRY["retinanet_loss"](), RetinaNetHead(4, 1, 20)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

    def plain() -> Tensor:
        matched = [matcher(box_iou(one["boxes"], anchors)) for one in gt]
        terms = head.compute_loss(gt, out, [anchors] * len(gt), matched)
        return terms["classification"] + terms["bbox_regression"]

    return "[4, 20000, 20]", [logits, deltas], lambda: loss(out, {"gt": gt}), plain


def pidnet_case(ohem: bool) -> Case:
    shapes = {"extra_p": 19, "pred": 19, "extra_d": 1}
    out = {key: torch.randn(2, channels, 32, 32).requires_grad_() for key, channels in shapes.items()}
    labels = torch.randint(0, 19, (2, 256, 256))
    labels[torch.rand(labels.shape) < 0.1] = 255
    boundary = (torch.rand(labels.shape) < 0.1).float()
    loss = LOSS_REGISTRY["pidnet_loss"](ohem=ohem, ohem_min_kept=20000)

    def main(logits: Tensor, labels: Tensor) -> Tensor:
        if not ohem:
            return F.cross_entropy(logits, labels, ignore_index=255)
        valid = labels != 255
        values = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")[valid]
        p, order = logits.softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0][valid].sort()
        return values[order][p < p[min(20000, len(p) - 1)].clamp(min=0.9)].mean()

    def plain() -> Tensor:
        size = labels.shape[1:]
        aux, pred, edge = (F.interpolate(m, size, mode="bilinear", align_corners=True) for m in out.values())
        values = F.cross_entropy(aux, labels, ignore_index=255, reduction="none" if ohem else "mean")
        share = boundary.mean()
        weight = torch.where(boundary == 1, 1 - share, share)
        edges = F.binary_cross_entropy_with_logits(edge[:, 0], boundary, weight)
        near = torch.where(edge[:, 0].sigmoid() > 0.8, labels, 255)
        return 0.4 * values.mean() + main(pred, labels) + 20 * edges + main(pred, near)

    target = {"target": labels, "bd_gt": boundary}
    return "[2, 19, 256, 256]", list(out.values()), lambda: loss(out, target), plain


def overlap_case(criterion: str, score: Callable[..., Tensor]) -> Case:
    logits, labels = torch.randn(4, 19, 128, 128).requires_grad_(), torch.randint(0, 19, (4, 128, 128))
    loss = LOSS_REGISTRY[criterion]()

    def plain() -> Tensor:
        p, t = logits.softmax(1), F.one_hot(labels, 19).movedim(3, 1).float()
        return (1 - score(torch.min(p, t).sum((0, 2, 3)), (p + t).sum((0, 2, 3)))).mean()

    return "[4, 19, 128, 128]", [logits], lambda: loss(logits, labels), plain


def box_case(kind: str, plain: Callable[[Tensor, Tensor], Tensor]) -> Case:
    pred, target = some_boxes(20000, 100).requires_grad_(), some_boxes(20000, 100)
    loss = LOSS_REGISTRY["box_iou_loss"](kind)
    return "[20000, 4]", [pred], lambda: loss(pred, target), lambda: plain(pred, target).mean()


def perceptual_case(criterion: str, distance: Callable[[Tensor, Tensor], Tensor]) -> Case:
    layers = nn.ModuleList([nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)])
    layers.requires_grad_(False)

    def extract(image: Tensor) -> list[Tensor]:
        first = layers[0](image).relu()
        return [first, layers[1](first).relu()]

    pred, target = torch.rand(4, 3, 64, 64).requires_grad_(), torch.rand(4, 3, 64, 64)
    loss = LOSS_REGISTRY["perceptual_loss"](extract, criterion=criterion)

    def plain() -> Tensor:
        return sum((distance(*pair) for pair in zip(extract(pred), extract(target), strict=True)), torch.zeros(()))

    return "[4, 3, 64, 64]", [pred], lambda: loss(pred, target), plain


def lpips_distance(x: Tensor, y: Tensor) -> Tensor:
    x, y = (m / ((m**2).sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
    return ((x - y) ** 2).sum(1).mean()


CASES: dict[str, Callable[[], Case]] = {
    "yolox_loss": yolox_loss,
    "retinanet_loss": retinanet_loss,
    "pidnet_loss": lambda: pidnet_case(ohem=False),
    "pidnet_loss__ohem": lambda: pidnet_case(ohem=True),
    "dice_loss": lambda: overlap_case("dice_loss", dice_score),
    "iou_loss": lambda: overlap_case("iou_loss", iou_score),
    "box_iou_loss": lambda: box_case("iou", lambda a, b: 1 - paired_iou(a, b)),
    "box_iou_loss__giou": lambda: box_case("giou", generalized_box_iou_loss),
    "box_iou_loss__diou": lambda: box_case("diou", distance_box_iou_loss),
    "box_iou_loss__ciou": lambda: box_case("ciou", complete_box_iou_loss),
    "perceptual_loss": lambda: perceptual_case("l1", F.l1_loss),
    "perceptual_loss__lpips": lambda: perceptual_case("lpips", lpips_distance),
}
