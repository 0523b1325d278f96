import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from loss.retinanet import RetinaNetLoss

CLASSES = 3


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def scene(seed: int = 0, images: int = 2, anchors: int = 40) -> tuple[dict, dict]:
    """Random anchors, heads in two levels, up to three boxes an image (none in the last of many), float64."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(count: int) -> Tensor:
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40
        return torch.cat([corner, corner + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 + 4], 1)

    def head(*shape: int) -> list[Tensor]:
        whole = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return [level.clone().requires_grad_() for level in whole.split([anchors - 10, 10], dim=1)]

    out = {
        "anchors": boxes(anchors),
        "cls_logits": head(images, anchors, CLASSES),
        "bbox_regression": head(images, anchors, 4),
    }
    counts = [0 if i and i == images - 1 else 1 + (seed + i) % 3 for i in range(images)]
    labels = [torch.randint(0, CLASSES, (count,), generator=generator) for count in counts]
    return out, {"gt": [{"boxes": boxes(c), "labels": x} for c, x in zip(counts, labels, strict=True)]}


def leaves(out: dict) -> list[Tensor]:
    return [*out["cls_logits"], *out["bbox_regression"]]


@pytest.mark.parametrize("seed", range(8))
def test_terms_and_gradients_are_torchvisions(seed: int) -> None:
    out, target = scene(seed, images=1 + seed % 3)
    matched = [
        Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(gt["boxes"], out["anchors"]))
        if len(gt["boxes"])
        else torch.full((len(out["anchors"]),), -1)
        for gt in target["gt"]
    ]
    heads = {key: torch.cat(out[key], 1) for key in ("cls_logits", "bbox_regression")}
    theirs = RetinaNetHead(4, 1, CLASSES).compute_loss(target["gt"], heads, [out["anchors"]] * len(matched), matched)
    total, terms = RetinaNetLoss()(out, target, return_terms=True)
    assert terms.keys() == theirs.keys() and not any(term.requires_grad for term in terms.values())
    for name, term in terms.items():
        torch.testing.assert_close(term, theirs[name].detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(total, sum(theirs.values()), rtol=1e-10, atol=0)
    grads = [torch.autograd.grad(x, leaves(out)) for x in (total, sum(theirs.values()))]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def naive(
    out: dict, target: dict, alpha: float, gamma: float, fg: float, bg: float, far: Callable[[float], float] = abs
) -> dict[str, float]:
    """The formula, anchor by anchor."""
    terms = {"classification": 0.0, "bbox_regression": 0.0}
    logits, deltas = (torch.cat(out[key], 1).tolist() for key in ("cls_logits", "bbox_regression"))
    for image, gt in enumerate(target["gt"]):
        boxes, labels = gt["boxes"].tolist(), gt["labels"].tolist()
        iou = [[naive_iou(g, a) for a in out["anchors"].tolist()] for g in boxes]
        cls, box, num_fg = 0.0, 0.0, 0
        for number, a in enumerate(out["anchors"].tolist()):
            overlaps = [row[number] for row in iou]
            best = max(range(len(boxes)), key=lambda g: overlaps[g]) if boxes else None
            resort = any(row[number] == max(row) > 0 for row in iou)
            if best is not None and bg <= overlaps[best] < fg and not resort:
                continue
            found = best is not None and (overlaps[best] >= fg or resort)
            for c, logit in enumerate(logits[image][number]):
                p = 1 / (1 + math.exp(-logit))
                if found and c == labels[best]:
                    cls -= alpha * (1 - p) ** gamma * math.log(p)
                else:
                    cls -= (1 - alpha) * p**gamma * math.log(1 - p)
            if found:
                num_fg += 1
                g, size = boxes[best], (a[2] - a[0], a[3] - a[1])
                for axis in (0, 1):
                    centre = (g[axis] + g[axis + 2] - a[axis] - a[axis + 2]) / 2
                    box += far(deltas[image][number][axis] - centre / size[axis])
                    log_size = math.log((g[axis + 2] - g[axis]) / size[axis])
                    box += far(deltas[image][number][axis + 2] - log_size)
        terms["classification"] += cls / max(num_fg, 1) / len(target["gt"])
        terms["bbox_regression"] += box / max(num_fg, 1) / len(target["gt"])
    return terms


def naive_iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (areas - width * height)


@pytest.mark.parametrize(
    "options", [(0.25, 2.0, 0.5, 0.4), (0.5, 1.5, 0.3, 0.3), (0.9, 0.0, 0.6, 0.2), (0.25, 0.5, 0.9, 0.8)]
)
def test_terms_are_the_naive_loop(options: tuple[float, float, float, float]) -> None:
    for seed in range(3):
        out, target = scene(seed)
        terms = RetinaNetLoss(*options)(out, target, return_terms=True)[1]
        expected = naive(out, target, *options)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)


def test_perfect_predictions_cost_nothing() -> None:
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [20.0, 20.0, 28.0, 28.0]])
    logits = torch.full((1, 2, 2), -100.0)
    logits[0, 0, 1] = 100.0
    gt = [{"boxes": anchors[:1] + torch.tensor([1.0, 0.0, 1.0, 0.0]), "labels": torch.tensor([1])}]
    deltas = torch.zeros(1, 2, 4)
    deltas[0, 0, 0] = 1 / 8
    out = {"anchors": anchors, "cls_logits": logits, "bbox_regression": deltas}
    assert RetinaNetLoss()(out, {"gt": gt}).item() == 0.0


def test_levels_or_one_tensor_shared_or_own_anchors() -> None:
    out, target = scene()
    expected = RetinaNetLoss()(out, target)
    whole = {
        **out,
        "cls_logits": torch.cat(out["cls_logits"], 1),
        "bbox_regression": torch.cat(out["bbox_regression"], 1),
    }
    assert torch.equal(RetinaNetLoss()(whole, target), expected)
    for anchors in ([out["anchors"]] * 2, torch.stack([out["anchors"]] * 2)):
        assert torch.equal(RetinaNetLoss()({**out, "anchors": anchors}, target), expected)
    other = RetinaNetLoss()({**out, "anchors": [out["anchors"] + 9, out["anchors"]]}, target)
    assert other != expected


def test_gradcheck() -> None:
    out, target = scene(1, images=1, anchors=12)
    keys = ("cls_logits", "bbox_regression")

    def loss(cls_logits: Tensor, bbox_regression: Tensor) -> Tensor:
        return RetinaNetLoss()({**out, "cls_logits": cls_logits, "bbox_regression": bbox_regression}, target)

    assert torch.autograd.gradcheck(loss, tuple(torch.cat(out[key], 1).detach().requires_grad_() for key in keys))


def test_order_of_boxes_does_not_matter() -> None:
    out, target = scene(1, images=1)
    assert len(target["gt"][0]["labels"]) > 1
    flipped = {"gt": [{key: value.flip(0) for key, value in target["gt"][0].items()}]}
    torch.testing.assert_close(RetinaNetLoss()(out, target), RetinaNetLoss()(out, flipped), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10.0, 10.0, 30.0],  # torchvision: all anchors foreground, and an infinite loss
        [30.0, 30.0, 10.0, 10.0],
        [math.nan, 0.0, 4.0, 4.0],
        [500.0, 500.0, 520.0, 520.0],  # torchvision: all anchors foreground
        [0.0, 0.0, 0.0, 0.0],
    ],
)
def test_degenerate_boxes_change_nothing(box: list[float]) -> None:
    out, target = scene(1)
    expected = RetinaNetLoss()(out, target)
    added = copy.deepcopy(target)
    for gt in added["gt"]:
        gt["boxes"] = torch.cat([gt["boxes"], torch.tensor([box], dtype=torch.float64)])
        gt["labels"] = torch.cat([gt["labels"], torch.tensor([0])])
    assert torch.equal(RetinaNetLoss()(out, added), expected)


def test_without_boxes_all_anchors_are_background() -> None:
    out, _ = scene(images=1)
    gt = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    total, terms = RetinaNetLoss()(out, {"gt": gt}, return_terms=True)
    total.backward()
    p = torch.cat(out["cls_logits"], 1).sigmoid()
    torch.testing.assert_close(total, (-0.75 * p**2 * (1 - p).log()).sum())
    assert terms["bbox_regression"] == 0.0
    assert all((gradient(level) == 0).all() for level in out["bbox_regression"])


def test_an_empty_batch_is_zero_with_a_graph() -> None:
    logits, deltas = torch.zeros(0, 5, 2, requires_grad=True), torch.zeros(0, 5, 4, requires_grad=True)
    out = {"anchors": torch.rand(5, 4), "cls_logits": logits, "bbox_regression": deltas}
    loss = RetinaNetLoss()(out, {"gt": []})
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None and deltas.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    out, target = scene(1)
    half = {
        key: [(level.detach() * 1000).to(dtype).requires_grad_() for level in out[key]]
        for key in ("cls_logits", "bbox_regression")
    }
    loss = RetinaNetLoss()({**half, "anchors": out["anchors"]}, target)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(gradient(level).isfinite().all() for level in leaves(half))


def test_saturated_logits_have_finite_gradients_below_gamma_1() -> None:
    out, target = scene(1)
    sure = {key: [(level.detach() * 1e5).requires_grad_() for level in out[key]] for key in ("cls_logits",)}
    loss = RetinaNetLoss(gamma=0.5)({**out, **sure}, target)
    loss.backward()
    assert loss.isfinite() and all(gradient(level).isfinite().all() for level in sure["cls_logits"])


def test_smooth_l1_is_the_papers() -> None:
    out, target = scene(2)
    terms = RetinaNetLoss(box_loss="smooth_l1")(out, target, return_terms=True)[1]
    expected = naive(out, target, 0.25, 2.0, 0.5, 0.4, lambda d: 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)


def test_inputs_are_not_changed() -> None:
    out, target = scene()
    before = copy.deepcopy(target), out["anchors"].clone(), [x.detach().clone() for x in leaves(out)]
    first = RetinaNetLoss()(out, target)
    assert torch.equal(first, RetinaNetLoss()(out, target))
    assert torch.equal(out["anchors"], before[1])
    assert all(torch.equal(a, b) for a, b in zip(leaves(out), before[2], strict=True))
    for now, then in zip(target["gt"], before[0]["gt"], strict=True):
        assert all(torch.equal(now[key], then[key]) for key in now)


def test_bad_arguments() -> None:
    out, target = scene()
    for bad in ({"box_loss": "l3"}, {"fg_iou_thresh": 0.2}):
        with pytest.raises(ValueError):
            RetinaNetLoss(**bad)
    with pytest.raises(TypeError):
        RetinaNetLoss(iou=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="boxes of 1"):
        RetinaNetLoss()(out, {"gt": target["gt"][:1]})
    with pytest.raises(ValueError, match="anchors"):
        RetinaNetLoss()({**out, "anchors": out["anchors"][:5]}, target)
    target["gt"][0]["labels"] = target["gt"][0]["labels"] + CLASSES
    with pytest.raises(IndexError):
        RetinaNetLoss()(out, target)
