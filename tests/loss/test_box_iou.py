import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import (
    box_convert,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from loss.box_iou import BoxIoULoss, box_iou_loss

KINDS = ["iou", "giou", "diou", "ciou"]
TORCHVISION = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def boxes(seed: int, count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator).double() * 10
    size = torch.rand(2, count, 2, generator=generator).double() * 8 + 0.5
    pred, target = torch.cat([corner, corner + size], dim=2)
    return pred, target


@pytest.mark.parametrize("kind", TORCHVISION)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_torchvisions(kind: str, dtype: torch.dtype, seed: int) -> None:
    pred, target = (x.to(dtype).requires_grad_() for x in boxes(seed))
    ours = box_iou_loss(pred, target, kind, reduction="none")
    theirs = TORCHVISION[kind](pred, target)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    grads = [torch.autograd.grad(x.sum(), (pred, target), retain_graph=True) for x in (ours, theirs)]
    # float32: arctan and atan2 round differently, and the difference of two angles amplifies it
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def naive(pred: list[float], target: list[float], squared: bool, eps: float) -> float:
    width = max(0.0, min(pred[2], target[2]) - max(pred[0], target[0]))
    height = max(0.0, min(pred[3], target[3]) - max(pred[1], target[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (pred, target)]
    iou = width * height / (sum(areas) - width * height + eps)
    return 1 - iou * iou if squared else 1 - iou


@pytest.mark.parametrize("squared", [False, True])
def test_iou_is_the_naive_loop(squared: bool) -> None:
    pred, target = boxes(7, 30)
    values = box_iou_loss(pred, target, "iou", squared, eps=1e-3, reduction="none")
    expected = [naive(p, t, squared, 1e-3) for p, t in zip(pred.tolist(), target.tolist(), strict=True)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_box_costs_nothing(kind: str) -> None:
    _, target = boxes(0)
    # eps / area is what is left
    assert box_iou_loss(target, target, kind, eps=1e-12).item() == pytest.approx(0, abs=1e-10)


def test_closed_form() -> None:
    # 2 x 2 boxes, one apart by 4: IoU 0, hull 6 x 2, diagonal^2 40, distance^2 16, same shape
    pred, target = (
        torch.tensor([[0.0, 0.0, 2.0, 2.0]]).double(),
        torch.tensor([[4.0, 0.0, 6.0, 2.0]]).double(),
    )
    values = {kind: box_iou_loss(pred, target, kind, eps=0.0).item() for kind in KINDS}
    assert values == pytest.approx({"iou": 1, "giou": 1 + 4 / 12, "diou": 1.4, "ciou": 1.4})


@pytest.mark.parametrize("kind", KINDS)
def test_reductions(kind: str) -> None:
    pred, target = boxes(1)
    values = BoxIoULoss(kind, reduction="none")(pred, target)
    assert values.shape == (12,)
    torch.testing.assert_close(BoxIoULoss(kind)(pred, target), values.mean())
    torch.testing.assert_close(BoxIoULoss(kind, reduction="sum")(pred, target), values.sum())
    assert BoxIoULoss(kind, reduction="none")(pred[0], target[0]).shape == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box_format", ["xywh", "cxcywh"])
def test_formats(kind: str, box_format: str) -> None:
    pred, target = boxes(2)
    converted = (box_convert(x, "xyxy", box_format) for x in (pred, target))
    torch.testing.assert_close(
        BoxIoULoss(kind, box_format=box_format)(*converted),
        BoxIoULoss(kind)(pred, target),
        rtol=1e-10,
        atol=0,
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 50), shift=st.floats(-20, 20))
def test_scale_and_shift_do_not_matter(kind: str, scale: float, shift: float) -> None:
    pred, target = boxes(3)
    plain = box_iou_loss(pred, target, kind, eps=1e-15)
    moved = box_iou_loss(pred * scale + shift, target * scale + shift, kind, eps=1e-15)
    torch.testing.assert_close(plain, moved, rtol=1e-9, atol=0)


# CIoU's alpha carries no gradient, so that finite differences of the whole disagree by design: next test.
@pytest.mark.parametrize("kind", ["iou", "giou", "diou"])
def test_gradcheck(kind: str) -> None:
    inputs = tuple(x.requires_grad_() for x in boxes(4, 5))
    assert torch.autograd.gradcheck(lambda p, t: box_iou_loss(p, t, kind, reduction="none"), inputs)


def test_alpha_of_ciou_carries_no_gradient() -> None:
    pred, target = (x.requires_grad_() for x in boxes(4, 5))
    ciou, diou = (box_iou_loss(pred, target, kind, reduction="none") for kind in ("ciou", "diou"))
    w, h = (pred[:, 2:] - pred[:, :2]).unbind(1)
    tw, th = (target[:, 2:] - target[:, :2]).unbind(1)
    v = 4 / torch.pi**2 * ((tw / th).atan() - (w / h).atan()) ** 2
    with torch.no_grad():
        alpha = v / (box_iou_loss(pred, target, "iou", reduction="none") + v + 1e-7)
    got = torch.autograd.grad((ciou - diou).sum(), (pred, target))
    torch.testing.assert_close(got, torch.autograd.grad((alpha * v).sum(), (pred, target)), rtol=1e-9, atol=1e-12)


def test_ciou_uses_eps_everywhere() -> None:
    # torchvision's passes none to its diou part
    pred, target = boxes(5)
    ciou, diou, iou = (box_iou_loss(pred, target, kind, reduction="none", eps=1.0) for kind in ("ciou", "diou", "iou"))
    (w, h), (tw, th) = ((b[:, 2:] - b[:, :2]).unbind(1) for b in (pred, target))
    v = 4 / torch.pi**2 * ((tw / th).atan() - (w / h).atan()) ** 2
    torch.testing.assert_close(ciou - diou, v**2 / (iou + v + 1.0), rtol=1e-9, atol=1e-12)


DEGENERATE = [
    [1.0, 1.0, 1.0, 1.0],  # a point
    [1.0, 1.0, 1.0, 3.0],  # upright line
    [1.0, 1.0, 3.0, 1.0],  # flat line
    [1.0, 1.0, 2.0, 3.0],
    [3.0, 3.0, 1.0, 1.0],  # corners swapped
    [1.0, 3.0, 2.0, 1.0],
]


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_without_area_stay_finite(kind: str) -> None:
    # torchvision's ciou is 0/0 here
    pred = torch.tensor(DEGENERATE).repeat_interleave(len(DEGENERATE), 0).requires_grad_()
    target = torch.tensor(DEGENERATE).repeat(len(DEGENERATE), 1).requires_grad_()
    values = box_iou_loss(pred, target, kind, reduction="none")
    values.sum().backward()
    assert values.isfinite().all()
    assert gradient(pred).isfinite().all()
    assert gradient(target).isfinite().all()
    if kind == "ciou":
        theirs = complete_box_iou_loss(pred.detach(), target.detach())
        there = theirs.isfinite()
        assert not there.all()
        torch.testing.assert_close(values.detach()[there], theirs[there])


def test_without_overlap_iou_has_no_gradient_and_the_others_have() -> None:
    target = torch.tensor([[5.0, 5.0, 6.0, 6.0]])
    for kind in KINDS:
        pred = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
        box_iou_loss(pred, target, kind).backward()
        assert pred.grad is not None
        assert (gradient(pred) != 0).any().item() is (kind != "iou")


@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes_give_zero_with_a_graph(kind: str) -> None:
    pred = torch.zeros(0, 4, requires_grad=True)
    value = BoxIoULoss(kind)(pred, torch.zeros(0, 4))
    value.backward()
    assert value.item() == 0.0 and gradient(pred).shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    pred = torch.tensor([[0.0, 0.0, 60000.0, 60000.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.0, 0.0, 30000.0, 60000.0]], dtype=dtype)  # areas overflow float16
    value = BoxIoULoss(kind)(pred, target)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and pred.grad is not None
    torch.testing.assert_close(value, BoxIoULoss(kind)(pred.float(), target.float()))
    assert gradient(pred).isfinite().all()


def test_inputs_are_not_changed() -> None:
    for box_format in ("xyxy", "cxcywh"):
        pred, target = boxes(6)
        before = pred.clone(), target.clone()
        BoxIoULoss("ciou", box_format=box_format)(pred, target)
        torch.testing.assert_close((pred, target), before, rtol=0, atol=0)


def test_bad_arguments() -> None:
    for bad in (
        {"kind": "eiou"},
        {"box_format": "yxyx"},
        {"reduction": "max"},
        {"kind": "giou", "squared": True},
    ):
        with pytest.raises(ValueError):
            BoxIoULoss(**bad)
    with pytest.raises(TypeError):
        BoxIoULoss(kinds="iou")  # type: ignore[call-arg]
    for pred, target in ((torch.zeros(2, 4), torch.zeros(1, 4)), (torch.zeros(2, 5), torch.zeros(2, 5))):
        with pytest.raises(ValueError, match="boxes must be"):
            BoxIoULoss()(pred, target)
