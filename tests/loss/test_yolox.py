import copy
import math

import pytest
import torch
from torch import Tensor

from loss.assign import SimOTAAssigner
from loss.yolox import YOLOXLoss

IMG, CLASSES = 32, 3


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def scene(seed: int = 0, images: int = 2, classes: int = CLASSES, img_size: int = IMG) -> tuple[list[Tensor], dict]:
    """Raw maps of strides 8 and 16, float64, and up to three boxes an image (none in the last of several)."""
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(images, 5 + classes, img_size // s, img_size // s, generator=generator, dtype=torch.float64)
        for s in (8, 16)
    ]
    gt = []
    for image in range(images):
        count = 0 if image and image == images - 1 else 1 + (seed + image) % 3
        corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * img_size * 0.6
        size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * img_size * 0.4 + 2
        labels = torch.randint(0, classes, (count,), generator=generator)
        gt.append({"boxes": torch.cat([corner, corner + size], 1), "labels": labels})
    return [m.requires_grad_() for m in maps], {"gt": gt, "img_size": img_size, "num_classes": classes}


def bce(logit: float, target: float) -> float:
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def naive(maps: list[Tensor], target: dict, use_l1: bool) -> dict[str, float]:
    """The formula, anchor by anchor; which anchors are foreground is SimOTAAssigner's, tested by itself."""
    terms = dict.fromkeys(("iou", "obj", "cls", "l1"), 0.0)
    num_fg = 0
    for image, gt in enumerate(target["gt"]):
        anchors = []
        for level in maps:
            stride = target["img_size"] // level.shape[3]
            for row in range(level.shape[2]):
                for column in range(level.shape[3]):
                    anchors.append((level[image, :, row, column].tolist(), column, row, stride))
        boxes = [((r[0] + x) * s, (r[1] + y) * s, math.exp(r[2]) * s, math.exp(r[3]) * s) for r, x, y, s in anchors]
        corners = gt["boxes"].tolist()
        wanted = [((a + c) / 2, (b + d) / 2, c - a, d - b) for a, b, c, d in corners]
        found = SimOTAAssigner()(
            torch.tensor(boxes, dtype=torch.float64),
            torch.tensor([r[5:] for r, *_ in anchors], dtype=torch.float64),
            torch.tensor([r[4] for r, *_ in anchors], dtype=torch.float64),
            torch.tensor([((x + 0.5) * s, (y + 0.5) * s) for _, x, y, s in anchors], dtype=torch.float64),
            torch.tensor([s for *_, s in anchors], dtype=torch.float64),
            torch.tensor(wanted, dtype=torch.float64).reshape(-1, 4),
            gt["labels"],
        )
        owners = iter(zip(found.matched_gt.tolist(), found.matched_iou.tolist(), strict=True))
        for number, (raw, x, y, s) in enumerate(anchors):
            foreground = bool(found.fg_mask[number])
            terms["obj"] += bce(raw[4], foreground)
            if not foreground:
                continue
            num_fg += 1
            owner, iou = next(owners)
            (cx, cy, w, h), (px, py, pw, ph) = wanted[owner], boxes[number]
            inner = max(0, min(cx + w / 2, px + pw / 2) - max(cx - w / 2, px - pw / 2))
            inner *= max(0, min(cy + h / 2, py + ph / 2) - max(cy - h / 2, py - ph / 2))
            terms["iou"] += 5 * (1 - (inner / (w * h + pw * ph - inner)) ** 2)
            for c, logit in enumerate(raw[5:]):
                terms["cls"] += bce(logit, iou if c == gt["labels"][owner] else 0)
            if use_l1:
                deltas = (cx / s - x, cy / s - y, math.log(w / s + 1e-8), math.log(h / s + 1e-8))
                terms["l1"] += sum(abs(a - b) for a, b in zip(raw[:4], deltas, strict=True))
    return {name: value / max(num_fg, 1) for name, value in terms.items()}


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_terms_are_the_naive_loop(seed: int, use_l1: bool) -> None:
    maps, target = scene(seed, images=1 + seed % 3)
    total, terms = YOLOXLoss(1 if use_l1 else None)({"pred": maps}, target, return_terms=True)
    expected = naive([m.detach() for m in maps], target, use_l1)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-9)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-9)
    assert not any(term.requires_grad for term in terms.values())
    assert torch.equal(YOLOXLoss(1 if use_l1 else None)({"pred": maps}, target), total)


def test_closed_form() -> None:
    # One anchor, one box of its size at its place: 5 (1 - 1) + log 2 + log 2, and L1 targets log(1 + 1e-8).
    maps = [torch.zeros(1, 6, 1, 1, dtype=torch.float64)]
    target = {"gt": [{"boxes": torch.tensor([[-4.0, -4.0, 4.0, 4.0]]), "labels": torch.tensor([0])}]}
    total, terms = YOLOXLoss(1, num_classes=1, strides=[8])({"pred": maps}, target, return_terms=True)
    assert total.item() == pytest.approx(2 * math.log(2) + 2 * math.log(1 + 1e-8), rel=1e-12)
    assert terms["iou"].item() == 0.0


def test_perfect_confident_boxes_cost_nothing() -> None:
    maps = [torch.zeros(1, 6, 2, 2, dtype=torch.float64)]
    maps[0][0, 4:] = -50
    maps[0][0, 4:, 0, 1] = 50
    maps[0][0, 0, 0, 1] = 0.5
    maps[0][0, 1, 0, 1] = 0.5
    gt = [{"boxes": torch.tensor([[8.0, 0.0, 16.0, 8.0]]), "labels": torch.tensor([0])}]
    loss = YOLOXLoss(1)({"pred": maps}, {"gt": gt, "img_size": 16, "num_classes": 1})
    assert loss.item() == pytest.approx(0, abs=1e-7)


def test_gradcheck_of_the_logits() -> None:
    # Boxes move the class target, an IoU that carries no gradient by design: the next test is theirs.
    maps, target = scene(2, images=1, img_size=16)
    boxes, logits = maps[0].detach()[:, :4], maps[0].detach()[:, 4:].clone().requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return YOLOXLoss(1)({"pred": [torch.cat([boxes, logits], 1), maps[1].detach()]}, target)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_gradient_of_the_boxes_leaves_the_soft_target_out() -> None:
    maps, target = scene(2, images=1, img_size=16)
    YOLOXLoss(1)({"pred": maps}, target).backward()
    got = gradient(maps[0])[:, :4]
    step, expected = 1e-6, torch.zeros_like(got)
    with torch.no_grad():
        for place in torch.ones_like(got).nonzero().tolist():
            values = []
            for sign in (1, -1):
                moved = maps[0].detach().clone()
                moved[tuple(place)] += sign * step
                terms = YOLOXLoss(1)({"pred": [moved, maps[1]]}, target, return_terms=True)[1]
                values.append(terms["iou"] + terms["l1"] + terms["obj"])  # not cls: its target moves with the box
            expected[tuple(place)] = (values[0] - values[1]) / (2 * step)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # central differences of step 1e-6


def test_l1_follows_the_epoch() -> None:
    maps, target = scene()

    def l1(loss: YOLOXLoss) -> float:
        return loss({"pred": maps}, target, return_terms=True)[1]["l1"].item()

    assert l1(YOLOXLoss()) == l1(YOLOXLoss(None)) == 0.0  # None is never; the original compares with it and fails
    assert l1(YOLOXLoss(2)) == 0.0  # no epoch set: as at epoch 1; the original takes "on"
    assert l1(YOLOXLoss(1)) > 0.0
    loss = YOLOXLoss(3)
    for epoch, on in ((1, False), (2, False), (3, True), (4, True), (1, False)):
        loss.set_epoch(epoch)
        assert (l1(loss) > 0) is on
    never = YOLOXLoss(None)
    never.set_epoch(1000)
    assert l1(never) == 0.0


def test_targets_are_not_changed_and_a_second_call_is_the_same() -> None:
    # The original rewrites target["gt"][i]["boxes"] as cxcywh.
    maps, target = scene()
    before, maps_before = copy.deepcopy(target), [m.detach().clone() for m in maps]
    first = YOLOXLoss(1)({"pred": maps}, target)
    assert torch.equal(first, YOLOXLoss(1)({"pred": maps}, target))
    for now, then in zip(target["gt"], before["gt"], strict=True):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[key], then[key]) for key in now)
    assert all(torch.equal(a, b) for a, b in zip(maps, maps_before, strict=True))


def test_order_of_boxes_does_not_matter() -> None:
    maps, target = scene(1, images=1)
    gt = target["gt"][0]
    assert len(gt["labels"]) > 1
    flipped = {**target, "gt": [{key: value.flip(0) for key, value in gt.items()}]}
    torch.testing.assert_close(
        YOLOXLoss(1)({"pred": maps}, target), YOLOXLoss(1)({"pred": maps}, flipped), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    "box",
    [
        [4.0, 4.0, 4.0, 12.0],  # no area: the original assigns it, with log(1e-8) as L1 target
        [12.0, 12.0, 4.0, 4.0],
        [math.nan, 0.0, 4.0, 4.0],
        [0.0, 0.0, math.inf, 4.0],
        [0.0, 0.0, 0.0, 0.0],  # padding
        [400.0, 400.0, 420.0, 420.0],  # no anchor is near: the original's topk fails, or it takes another's
        [-50.0, -50.0, -40.0, -40.0],  # and this one's row sums to less than 0, which drops another box there
    ],
)
def test_degenerate_boxes_change_nothing(box: list[float]) -> None:
    maps, target = scene(1)
    expected = YOLOXLoss(1)({"pred": maps}, target)
    added = copy.deepcopy(target)
    for gt in added["gt"]:
        gt["boxes"] = torch.cat([torch.tensor([box], dtype=torch.float64), gt["boxes"]])
        gt["labels"] = torch.cat([torch.tensor([0]), gt["labels"]])
    assert torch.equal(YOLOXLoss(1)({"pred": maps}, added), expected)


def test_boxes_with_negative_coordinates_count() -> None:
    maps, target = scene(0, images=1)
    target["gt"] = [{"boxes": torch.tensor([[-20.0, -20.0, 22.0, 21.0]]), "labels": torch.tensor([0])}]
    assert YOLOXLoss()({"pred": maps}, target, return_terms=True)[1]["iou"] > 0


def test_without_boxes_only_objectness_remains() -> None:
    maps, target = scene(0, images=2)
    target["gt"] = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    total, terms = YOLOXLoss(1)({"pred": maps}, target, return_terms=True)
    total.backward()
    expected = sum(torch.nn.functional.softplus(m[:, 4]).sum() for m in maps)
    torch.testing.assert_close(total, expected)
    assert terms["iou"] == terms["cls"] == terms["l1"] == 0.0
    for m in maps:
        assert (gradient(m)[:, 4] > 0).all()
        assert (gradient(m)[:, :4] == 0).all() and (gradient(m)[:, 5:] == 0).all()


def test_an_empty_batch_is_zero_with_a_graph() -> None:
    maps = [torch.zeros(0, 8, 2, 2, requires_grad=True)]
    loss = YOLOXLoss(1)({"pred": maps}, {"gt": [], "img_size": 16, "num_classes": 3})
    loss.backward()
    assert loss.item() == 0.0 and maps[0].grad is not None


def test_huge_sizes_have_finite_gradients() -> None:
    # exp overflows in the original: a finite loss with NaN gradients
    for size in (40.0, 100.0, 1e4, -1e4):
        maps, target = scene(1, images=1)
        for m in maps:
            m.data[:, 2:4] = size
        maps = [m.detach().float().requires_grad_() for m in maps]
        loss = YOLOXLoss(1)({"pred": maps}, target)
        loss.backward()
        assert loss.isfinite()
        assert all(gradient(m).isfinite().all() for m in maps)


def test_a_class_that_is_switched_off_by_minus_infinity() -> None:
    maps, target = scene(1, images=1)
    target["gt"][0]["labels"].fill_(0)
    limit = copy.deepcopy([m.detach() for m in maps])
    for m, sure in zip(maps, limit, strict=True):
        m.data[:, 6], sure[:, 6] = -math.inf, -1e6
    loss = YOLOXLoss(1)({"pred": maps}, target)
    loss.backward()
    assert loss.item() == pytest.approx(YOLOXLoss(1)({"pred": limit}, target).item(), rel=1e-12)
    assert all(gradient(m).isfinite().all() for m in maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    maps, target = scene(1)
    half = [(m.detach() * 50).to(dtype).requires_grad_() for m in maps]
    loss = YOLOXLoss(1)({"pred": half}, target)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(gradient(m).isfinite().all() for m in half)
    assert torch.equal(loss, YOLOXLoss(1)({"pred": [m.detach().float() for m in half]}, target))


def test_float32_agrees_with_float64() -> None:
    maps, target = scene(3, images=3)
    low = YOLOXLoss(1)({"pred": [m.detach().float() for m in maps]}, target)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(YOLOXLoss(1)({"pred": maps}, target).item(), rel=1e-6)


def test_normaliser_is_of_the_batch() -> None:
    maps, target = scene(4, images=3)
    singles = [
        YOLOXLoss()({"pred": [m[i : i + 1] for m in maps]}, {**target, "gt": target["gt"][i : i + 1]}) for i in range(3)
    ]
    assert YOLOXLoss()({"pred": maps}, target).item() != pytest.approx(torch.stack(singles).mean().item(), rel=1e-3)


def test_strides_and_classes_of_the_constructor() -> None:
    maps, target = scene()
    given = YOLOXLoss(1, num_classes=CLASSES, strides=[8, 16])({"pred": maps}, {"gt": target["gt"]})
    assert torch.equal(given, YOLOXLoss(1)({"pred": maps}, target))
    heavier = YOLOXLoss(1, reg_weight=10.0)({"pred": maps}, target, return_terms=True)[1]["iou"]
    assert heavier == 2 * YOLOXLoss(1)({"pred": maps}, target, return_terms=True)[1]["iou"]
    for m in maps:
        m.data[:, :4] = 1.0  # well overlapping boxes, so that several anchors are taken
    target["gt"][0] = {"boxes": torch.tensor([[6.0, 6.0, 28.0, 28.0]]), "labels": torch.tensor([0])}
    given = YOLOXLoss(1)({"pred": maps}, target)
    for option in ({"center_radius": 0.9}, {"topk": 1}):
        assert YOLOXLoss(1, **option)({"pred": maps}, target) != given


def test_bad_arguments() -> None:
    maps, target = scene()
    with pytest.raises(TypeError):
        YOLOXLoss(l1_epoch=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="2 maps but 1 strides"):
        YOLOXLoss(strides=[8])({"pred": maps}, target)
    with pytest.raises(ValueError, match="a map"):
        YOLOXLoss(num_classes=4)({"pred": maps}, target)
    with pytest.raises(ValueError, match="a map"):
        YOLOXLoss()({"pred": maps}, {**target, "gt": target["gt"][:1]})
    target["gt"][0]["labels"] = target["gt"][0]["labels"] + CLASSES
    with pytest.raises(IndexError):
        YOLOXLoss()({"pred": maps}, target)
