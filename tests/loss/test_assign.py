import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from loss.assign import AnchorMatcher, Assignment, SimOTAAssigner


def scene(seed: int, gts: int = 4, classes: int = 3, side: int = 64) -> tuple[Tensor, ...]:
    """Random predictions of two levels, and ground truths anywhere in the image, float64."""
    generator = torch.Generator().manual_seed(seed)
    centers, strides = [], []
    for px in (8, 16):
        cells = torch.arange(side // px)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        centers.append((torch.stack([x, y], dim=2).reshape(-1, 2) + 0.5) * px)
        strides.append(torch.full((len(cells) ** 2,), float(px)))
    center, stride = torch.cat(centers).double(), torch.cat(strides).double()
    noise = torch.randn(len(center), 5 + classes, generator=generator).double()
    pred = torch.cat([center + noise[:, :2] * stride[:, None], (noise[:, 2:4] * 0.5).exp() * stride[:, None] * 2], 1)
    gt_center = torch.rand(gts, 2, generator=generator).double() * side
    gt_size = torch.rand(gts, 2, generator=generator).double() * side / 2 + 4
    labels = torch.randint(0, classes, (gts,), generator=generator)
    return pred, noise[:, 5:], noise[:, 4], center, stride, torch.cat([gt_center, gt_size], 1), labels


def assign(*inputs: Tensor, radius: float = 1.5, topk: int = 10) -> Assignment:
    return SimOTAAssigner(radius, topk)(*inputs)


def naive_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2))
    height = max(0.0, min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2))
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def naive_simota(inputs: Sequence[Tensor], radius: float = 1.5, topk: int = 10) -> dict[int, tuple[int, float]]:
    """SimOTA by the paper, anchor by anchor: {anchor: (ground truth, IoU)}."""
    pred, cls, obj, centers, strides, gt, labels = (x.tolist() for x in inputs)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    anchors, gts = range(len(pred)), list(range(len(gt)))
    near = [[all(abs(centers[a][i] - gt[g][i]) < radius * strides[a] for i in (0, 1)) for a in anchors] for g in gts]
    gts = [g for g in gts if any(near[g])]
    candidates = [a for a in anchors if any(near[g][a] for g in gts)]
    cost, iou = {}, {}
    for g in gts:
        for a in candidates:
            iou[g, a] = naive_iou(gt[g], pred[a])
            bce = 0.0
            for c, logit in enumerate(cls[a]):
                p = math.sqrt(sigmoid(logit) * sigmoid(obj[a]))
                bce -= math.log(p) if c == labels[g] else math.log(1 - p)
            cost[g, a] = bce - 3 * math.log(iou[g, a] + 1e-8) + (0 if near[g][a] else 1e6)
    takers: dict[int, list[int]] = {}
    for g in gts:
        k = max(1, int(sum(sorted((iou[g, a] for a in candidates), reverse=True)[:topk])))
        for _, a in sorted((cost[g, a], a) for a in candidates)[:k]:
            takers.setdefault(a, []).append(g)
    result = {}
    for a, taken_by in takers.items():
        owner = taken_by[0] if len(taken_by) == 1 else min((cost[g, a], g) for g in gts)[1]
        result[a] = owner, iou[owner, a]
    return result


def as_dict(assignment: Assignment) -> dict[int, tuple[int, float]]:
    anchors = assignment.fg_mask.nonzero().squeeze(1).tolist()
    return dict(
        zip(
            anchors,
            zip(assignment.matched_gt.tolist(), assignment.matched_iou.tolist(), strict=True),
            strict=True,
        )
    )


@pytest.mark.parametrize("seed", range(20))
def test_simota_is_the_naive_loop(seed: int) -> None:
    inputs = scene(seed, gts=1 + seed % 7)
    found = as_dict(assign(*inputs))
    expected = naive_simota(inputs)
    assert {a: g for a, (g, _) in found.items()} == {a: g for a, (g, _) in expected.items()}
    for anchor, (_, iou) in found.items():
        assert iou == pytest.approx(expected[anchor][1], rel=1e-9)


def test_simota_options_are_used() -> None:
    inputs = scene(3, gts=5)
    for radius, topk in ((2.5, 10), (1.5, 3), (0.6, 1)):
        found = as_dict(assign(*inputs, radius=radius, topk=topk))
        assert found.keys() == naive_simota(inputs, radius, topk).keys()


def test_order_of_ground_truths_does_not_matter() -> None:
    *pred, gt, labels = scene(5, gts=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain = assign(*pred, gt, labels)
    shuffled = assign(*pred, gt[order], labels[order])
    assert torch.equal(plain.fg_mask, shuffled.fg_mask)
    assert torch.equal(plain.matched_gt, order[shuffled.matched_gt])
    assert torch.equal(plain.matched_iou, shuffled.matched_iou)


def test_no_ground_truth_no_foreground() -> None:
    *pred, gt, labels = scene(0)
    found = assign(*pred, gt[:0], labels[:0])
    assert not found.fg_mask.any() and found.matched_gt.shape == found.matched_iou.shape == (0,)


def test_a_ground_truth_out_of_reach_takes_nothing() -> None:
    # The original lets topk fail when it stands alone, and gives it another's anchors when it does not.
    *pred, gt, labels = scene(1)
    away = torch.tensor([[500.0, 500.0, 8.0, 8.0]]).double()
    alone = assign(*pred, away, labels[:1])
    assert not alone.fg_mask.any()
    with_others = assign(*pred, torch.cat([away, gt]), torch.cat([labels[:1], labels]))
    without = assign(*pred, gt, labels)
    assert torch.equal(with_others.fg_mask, without.fg_mask)
    assert torch.equal(with_others.matched_gt, without.matched_gt + 1)


def test_exactly_the_radius_is_too_far() -> None:
    centers, strides = torch.tensor([[4.0, 4.0]]), torch.tensor([8.0])
    pred = (torch.tensor([[4.0, 4.0, 8.0, 8.0]]), torch.zeros(1, 1), torch.zeros(1), centers, strides)
    for x, reached in ((16.0, False), (15.99, True), (-8.0, False), (-7.99, True)):
        gt = torch.tensor([[x, 4.0, 8.0, 8.0]])
        assert assign(*pred, gt, torch.tensor([0])).fg_mask.item() is reached


def test_far_candidates_are_ranked_in_float32_too() -> None:
    # Beside 1e6 float32 has steps of 0.06, so that far candidates would tie. Ground truth 0 has one near
    # anchor (the first) and k = 3: it must choose the best two of the far ones, 2 and 3, by less than a step.
    # Ground truth 1 takes 2 for itself, and being near to it keeps it.
    centers = torch.tensor([[0.0, 0.0], *([100.0, 0.0] for _ in range(4))])
    strides = torch.full((5,), 10.0)
    gt, labels = torch.tensor([[0.0, 0.0, 10.0, 10.0], [100.0, 0.0, 4.0, 4.0]]), torch.tensor([0, 0])
    pred = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 5)
    logits = torch.tensor([[1.0], [0.01], [0.04], [0.03], [0.02]])
    for dtype in (torch.float32, torch.float64):
        inputs = (x.to(dtype) for x in (pred, logits, torch.zeros(5), centers, strides, gt))
        found = as_dict(assign(*inputs, labels, topk=3))
        assert {anchor: g for anchor, (g, _) in found.items()} == {0: 0, 2: 1, 3: 0}, dtype


def test_infinite_logits_do_not_spoil_the_cost() -> None:
    pred, cls, obj, *rest = scene(2)
    found = assign(pred, cls * 1e4, obj * 1e4, *rest)
    assert found.fg_mask.any() and found.matched_iou.isfinite().all()


@pytest.mark.parametrize("seed", range(10))
def test_matcher_is_torchvisions_where_every_ground_truth_overlaps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    iou = torch.rand(1 + seed, 50, generator=generator) ** 2
    iou = (iou * 20).round() / 20 + 0.001  # many ties
    assert torch.equal(AnchorMatcher(0.5, 0.4)(iou), Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou))


def test_a_ground_truth_without_overlap_makes_nothing_foreground() -> None:
    # torchvision ties at IoU 0 and makes all anchors foreground, or gives NaN for a zero-area box.
    iou = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.7, 0.45, 0.0]])
    assert AnchorMatcher()(iou).tolist() == [-1, 1, -2, -1]
    assert Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou[:1]).tolist() == [0, 0, 0, 0]
    assert AnchorMatcher()(iou[:1]).tolist() == [-1, -1, -1, -1]


def test_matcher_thresholds_are_inclusive_above() -> None:
    iou = torch.tensor([[0.9, 0.5, 0.4, 0.39]])
    assert AnchorMatcher(0.5, 0.4)(iou).tolist() == [0, 0, -2, -1]


def test_matcher_without_ground_truth_or_anchors() -> None:
    assert AnchorMatcher()(torch.zeros(0, 3)).tolist() == [-1, -1, -1]
    assert AnchorMatcher()(torch.zeros(2, 0)).tolist() == []


def test_matcher_refuses_crossed_thresholds() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        AnchorMatcher(0.3, 0.4)
