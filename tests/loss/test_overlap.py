import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loss.overlap import DiceLoss, IoULoss

LOSSES = [DiceLoss, IoULoss]
MODES = ["binary", "multiclass", "multilabel"]
CLASSES, IGNORE = 3, 255


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def scene(mode: str, seed: int = 0, ignored: bool = False) -> tuple[Tensor, Tensor]:
    """Logits [2, C, 3, 4], float64, and their target; class 2 is absent in "multiclass"."""
    generator = torch.Generator().manual_seed(seed)
    channels = 1 if mode == "binary" else CLASSES
    logits = 2 * torch.randn(2, channels, 3, 4, generator=generator, dtype=torch.float64)
    shape = (2, 3, 4) if mode == "multiclass" else (2, channels, 3, 4)
    target = torch.randint(0, 2, shape, generator=generator)
    if ignored:
        target[torch.rand(shape, generator=generator) < 0.3] = IGNORE
    return logits.requires_grad_(), target


def naive(kind: type, mode: str, logits: Tensor, target: Tensor, per_image: bool = False, **o: Any) -> float:
    """The formula, pixel by pixel."""
    smooth, eps, ignore = o.get("smooth", 0.0), o.get("eps", 1e-7), o.get("ignore_index")
    count = logits.shape[1]
    x = logits.detach().flatten(2).tolist()
    t = target.flatten(1).tolist() if mode == "multiclass" else target.reshape(2, count, -1).tolist()

    def pixel(n: int, c: int, m: int) -> tuple[float, float] | None:
        label = t[n][m] if mode == "multiclass" else t[n][c][m]
        if label == ignore:
            return None
        if not o.get("from_logits", True):
            p = x[n][c][m]
        elif mode == "multiclass":
            p = math.exp(x[n][c][m]) / sum(math.exp(x[n][k][m]) for k in range(count))
        else:
            p = 1 / (1 + math.exp(-x[n][c][m]))
        return p, float(label == c) if mode == "multiclass" else float(label)

    def average(images: list[int]) -> float:
        losses, weights = [], []
        for c in o.get("classes") or range(count):
            pairs = [q for n in images for m in range(len(x[0][0])) if (q := pixel(n, c, m)) is not None]
            inter, true = sum(min(q) for q in pairs), sum(q[1] for q in pairs)
            total = sum(q[0] for q in pairs) + true
            below = total / 2 if kind is DiceLoss else total - inter
            score = (inter + smooth) / max(below + smooth, eps)
            value = -math.log(max(score, eps)) if o.get("log_loss") else 1 - score
            losses.append(value if true > 0 or (o.get("empty") == "smooth" and pairs) else 0.0)
            weights.append(1.0 if o.get("class_weights") is None else o["class_weights"][c])
        return sum(w * v for w, v in zip(weights, losses, strict=True)) / sum(weights)

    return sum(average([n]) for n in (0, 1)) / 2 if per_image else average([0, 1])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"smooth": 1.0},
    {"log_loss": True},
    {"eps": 0.5},
    {"ignore_index": IGNORE},
    {"per_image": True, "smooth": 0.5},
    {"empty": "smooth", "smooth": 1.0, "ignore_index": IGNORE},
]
OF_CLASSES: list[dict[str, Any]] = [
    {"classes": [2, 0]},
    {"class_weights": [1.0, 2.0, 0.5]},
    {"classes": [1, 2], "class_weights": [1.0, 2.0, 0.5], "per_image": True},
]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
    ("mode", "options"),
    [(mode, o) for mode in MODES for o in (OPTIONS if mode == "binary" else OPTIONS + OF_CLASSES)],
)
def test_values_are_the_naive_loop(kind: type, mode: str, options: dict) -> None:
    for seed in range(2):
        logits, target = scene(mode, seed, ignored="ignore_index" in options)
        loss = kind(mode, **options)(logits, target)
        assert loss.item() == pytest.approx(naive(kind, mode, logits, target, **options), rel=1e-9)
        assert loss.dtype == torch.float64


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(kind: type, mode: str) -> None:
    logits, target = scene(mode, ignored=True)
    for options in ({"smooth": 1.0, "empty": "smooth"}, {"log_loss": True, "per_image": True}):
        loss = kind(mode, ignore_index=IGNORE, **options)
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, target), (logits,))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_a_perfect_mask_costs_nothing(kind: type, mode: str) -> None:
    _, target = scene(mode)
    one_hot = nn.functional.one_hot(target, CLASSES).movedim(-1, 1) if mode == "multiclass" else target
    assert kind(mode)(200.0 * one_hot - 100.0, target).item() == 0.0
    assert kind(mode, from_logits=False)(one_hot.double(), target).item() == 0.0


def test_closed_form() -> None:
    # p = 1/2 on four pixels, two of them true: I = 1, S = 4
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 1], [0, 0]]])
    assert DiceLoss("binary")(logits, target).item() == pytest.approx(1 - 2 / 4)
    assert IoULoss("binary")(logits, target).item() == pytest.approx(1 - 1 / 3)
    assert DiceLoss("binary", smooth=1.0)(logits, target).item() == pytest.approx(1 - 2 / 3)
    assert DiceLoss("binary", log_loss=True)(logits, target).item() == pytest.approx(math.log(2))


def test_intersection_is_the_smaller_not_the_product() -> None:
    # They agree for hard masks only.
    p, t = torch.tensor([[[0.6, 0.2]]]), torch.tensor([[[0.5, 0.7]]])
    assert DiceLoss("binary", from_logits=False)(p, t).item() == pytest.approx(1 - 0.7 / 1.0)
    assert IoULoss("binary", from_logits=False)(p, t).item() == pytest.approx(1 - 0.7 / 1.3)


@pytest.mark.parametrize("kind", LOSSES)
def test_shapes_of_binary_masks(kind: type) -> None:
    logits, target = scene("binary")
    expected = kind("binary")(logits, target)
    for x in (logits, logits.squeeze(1)):
        for t in (target, target.squeeze(1), target.bool(), target.double()):
            assert torch.equal(kind("binary")(x, t), expected)


@pytest.mark.parametrize("kind", LOSSES)
def test_an_absent_class_is_0_or_smoothed(kind: type) -> None:
    # "zero": false positives on an empty mask cost nothing, as in the original; "smooth" mends it.
    logits, empty = torch.full((1, 1, 2, 2), 3.0, requires_grad=True), torch.zeros(1, 2, 2)
    zero = kind("binary", smooth=1.0)(logits, empty)
    zero.backward()
    assert zero.item() == 0.0 and (gradient(logits) == 0).all()
    p = torch.tensor(3.0).sigmoid().item()
    below = 4 * p / 2 if kind is DiceLoss else 4 * p
    smoothed = kind("binary", smooth=1.0, empty="smooth")(logits, empty)
    assert smoothed.item() == pytest.approx(1 - 1 / (below + 1), rel=1e-6)  # float32
    quiet = kind("binary", smooth=1.0, empty="smooth")(torch.full((1, 1, 2, 2), -100.0), empty)
    assert quiet.item() == 0.0


@pytest.mark.parametrize("kind", LOSSES)
def test_an_absent_class_stays_in_the_average(kind: type) -> None:
    logits, target = scene("multiclass")
    assert (target < 2).all()
    present = kind(classes=[0, 1])(logits, target)
    torch.testing.assert_close(kind()(logits, target), present * 2 / 3)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_ignored_pixels_change_nothing(kind: type, mode: str) -> None:
    logits, target = scene(mode, ignored=True)
    ignored = (target == IGNORE).unsqueeze(1) if mode == "multiclass" else target == IGNORE
    loss = kind(mode, ignore_index=IGNORE, smooth=1.0, empty="smooth")
    expected = loss(logits, target)
    expected.backward()
    assert (gradient(logits)[ignored.expand_as(logits)] == 0).all()
    for value in (50.0, math.inf, math.nan):
        changed = torch.where(ignored, value, logits.detach()).requires_grad_()
        again = loss(changed, target)
        again.backward()
        assert torch.equal(again, expected) and torch.equal(gradient(changed), gradient(logits))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"empty": "smooth"}, {"per_image": True}, {"log_loss": True}])
def test_nothing_valid_is_zero_with_a_graph(kind: type, mode: str, options: dict) -> None:
    logits, target = scene(mode)
    for x, t in (
        (logits, torch.full_like(target, IGNORE)),
        (logits[:0], target[:0]),
        (logits[..., :0], target[..., :0]),
    ):
        logits.grad = None
        loss = kind(mode, ignore_index=IGNORE, **options)(x, t)
        loss.backward()
        assert loss.item() == 0.0 and (gradient(logits) == 0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_order_of_images_and_pixels_does_not_matter(kind: type) -> None:
    logits, target = scene("multiclass")
    flipped = kind()(logits.flip(0, 2), target.flip(0, 1))
    torch.testing.assert_close(flipped, kind()(logits, target), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", LOSSES)
def test_per_image_is_the_mean_over_images(kind: type) -> None:
    logits, target = scene("multiclass")
    singles = torch.stack([kind()(logits[i : i + 1], target[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(kind(per_image=True)(logits, target), singles.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind: type, dtype: torch.dtype) -> None:
    # 90,000 pixels: sums overflow float16 in the original
    logits = torch.full((1, 1, 300, 300), 60000.0, dtype=dtype, requires_grad=True)
    loss = kind("binary")(logits, torch.ones(1, 300, 300))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == 0.0 and gradient(logits).isfinite().all()


@pytest.mark.parametrize("kind", LOSSES)
def test_inputs_are_not_changed(kind: type) -> None:
    for mode in MODES:
        logits, target = scene(mode, ignored=True)
        before = logits.detach().clone(), target.clone()
        for from_logits in (True, False):
            kind(mode, ignore_index=IGNORE, from_logits=from_logits)(logits, target)
        assert torch.equal(logits, before[0]) and torch.equal(target, before[1])


@pytest.mark.parametrize("kind", LOSSES)
def test_bad_arguments(kind: type) -> None:
    bad = ({"mode": "ternary"}, {"empty": "one"}, {"mode": "binary", "classes": [0]})
    for options in (*bad, {"mode": "binary", "class_weights": [1.0]}):
        with pytest.raises(ValueError):
            kind(**options)
    with pytest.raises(TypeError):
        kind(smoothing=1.0)
    logits, target = scene("multiclass")
    with pytest.raises(IndexError):
        kind()(logits, target + 2)
    with pytest.raises(IndexError):
        kind()(logits, torch.where(target == 0, IGNORE, target))
    with pytest.raises(ValueError, match="class weights"):
        kind(class_weights=[1.0, 2.0])(logits, target)
    for wrong in (target[:1], target[:, :2], target.mT):
        with pytest.raises(ValueError, match="do not fit"):
            kind()(logits, wrong)


@pytest.mark.parametrize("kind", LOSSES)
def test_binary_masks_with_and_without_their_channel_are_the_same(kind: type) -> None:
    pred, target = torch.randn(3, 1, 4), torch.randint(2, (3, 1, 4))
    found = [kind("binary")(p, t) for p in (pred, pred[:, 0]) for t in (target, target[:, 0])]
    torch.testing.assert_close(found, [found[0]] * 4)
    torch.testing.assert_close(
        kind("binary")(pred[:, 0, 0], target[:, 0, 0]), kind("binary")(pred[..., :1], target[..., :1])
    )
