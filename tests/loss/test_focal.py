import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvisions

from loss.focal import SigmoidFocalLoss, SoftmaxFocalLoss


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_sigmoid_is_torchvisions(reduction: str, alpha: float, gamma: float, soft: bool) -> None:
    logits, target = numbers(4, 5), torch.rand(4, 5, dtype=torch.float64)
    target = target if soft else target.round()
    ours = SigmoidFocalLoss(alpha, gamma, reduction)(logits, target)
    expected = torchvisions(logits, target, alpha, gamma, reduction)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)  # 1 - p_t is computed another way


def test_sigmoid_definition() -> None:
    logits, target = numbers(3, 2), torch.tensor([[1.0, 0.0], [0.3, 1.0], [0.0, 0.9]], dtype=torch.float64)
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        p_t, alpha_t = p * t + (1 - p) * (1 - t), 0.3 * t + 0.7 * (1 - t)
        total += alpha_t * (1 - p_t) ** 1.5 * -(t * math.log(p) + (1 - t) * math.log(1 - p))
    loss = SigmoidFocalLoss(0.3, 1.5)(logits, target)
    assert loss.item() == pytest.approx(total / 6, rel=1e-12)


def test_sigmoid_limits() -> None:
    logits, target = numbers(4, 3), torch.rand(4, 3, dtype=torch.float64).round()
    bce = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(SigmoidFocalLoss(None, 0.0)(logits, target), bce)
    torch.testing.assert_close(SigmoidFocalLoss(-1, 0.0)(logits, target), bce)
    torch.testing.assert_close(SigmoidFocalLoss(0.5, 0.0)(logits, target), bce / 2)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_sigmoid_saturated_has_a_finite_gradient(gamma: float) -> None:
    logits = torch.tensor([200.0, -200.0, 200.0, -200.0], requires_grad=True)
    target = torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = SigmoidFocalLoss(-1, gamma, "sum")(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(400)
    torch.testing.assert_close(gradient(logits), torch.tensor([0.0, 0.0, 1.0, -1.0]))
    if gamma < 1:  # the quirk: torchvision's is NaN
        logits.grad = None
        torchvisions(logits, target, -1, gamma, "sum").backward()
        assert gradient(logits).isnan().any()


def test_sigmoid_infinite_logits_that_are_right_cost_nothing() -> None:
    logits = torch.tensor([torch.inf, -torch.inf, 0.0], requires_grad=True)
    loss = SigmoidFocalLoss()(logits, torch.tensor([1.0, 0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * 0.25 * math.log(2) / 3)
    assert gradient(logits).isfinite().all()


def test_sigmoid_labels_are_made_onehot() -> None:
    labels = torch.tensor([2, 0, -100, 1])
    logits = numbers(4, 3)
    kept = [0, 1, 3]
    expected = SigmoidFocalLoss()(logits[kept], F.one_hot(labels[kept], 3).double())
    torch.testing.assert_close(SigmoidFocalLoss()(logits, labels), expected)
    torch.testing.assert_close(SigmoidFocalLoss(class_dim=-1)(logits.view(2, 2, 3), labels.view(2, 2)), expected)
    torch.testing.assert_close(SigmoidFocalLoss()(logits.view(2, 2, 3).transpose(1, 2), labels.view(2, 2)), expected)
    parts = [SigmoidFocalLoss()(logits[i : i + 2], labels[i : i + 2], token_count=3) for i in (0, 2)]
    torch.testing.assert_close(sum(parts), expected)
    with pytest.raises(ValueError, match="number of labels"):
        SigmoidFocalLoss()(logits, F.one_hot(labels.clamp(min=0), 3), token_count=3)
    same_shape = SigmoidFocalLoss()(logits, F.one_hot(labels.clamp(min=0), 3))
    torch.testing.assert_close(same_shape, SigmoidFocalLoss()(logits, labels.clamp(min=0)))


def test_sigmoid_weight_is_repetition() -> None:
    logits, target = numbers(3, 4), torch.rand(3, 4, dtype=torch.float64).round()
    often = torch.tensor([2, 0, 1])
    repeated = SigmoidFocalLoss()(logits[[0, 0, 2]], target[[0, 0, 2]])
    torch.testing.assert_close(SigmoidFocalLoss()(logits, target, weight=often), repeated)
    pair = {"pred": logits}, {"target": target, "weight": often}
    torch.testing.assert_close(SigmoidFocalLoss()(*pair), repeated)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_sigmoid_of_nothing_is_zero_with_a_graph(shape: tuple[int, int]) -> None:
    logits = torch.ones(shape, requires_grad=True)
    loss = SigmoidFocalLoss()(logits, torch.full(shape[:1], -100))
    loss.backward()
    assert loss == 0
    assert gradient(logits).eq(0).all()
    assert SigmoidFocalLoss()(torch.ones(0, 3), torch.ones(0, 3)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_upcast(dtype: torch.dtype) -> None:
    logits = (numbers(4, 5).detach() * 1e4).to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    onehot = F.one_hot(labels, 5).to(dtype)
    for loss in (SigmoidFocalLoss()(logits, onehot), SoftmaxFocalLoss()(logits, labels)):
        logits.grad = None
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert gradient(logits).isfinite().all()


def test_sigmoid_bad_input() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SigmoidFocalLoss()(torch.zeros(2, 3), torch.zeros(3, 2))
    for label in (3, -1):
        with pytest.raises(IndexError, match=f"label {label}"):
            SigmoidFocalLoss()(torch.zeros(1, 3), torch.tensor([label]))
    with pytest.raises(ValueError, match="alpha"):
        SigmoidFocalLoss(1.5)
    with pytest.raises(ValueError, match="gamma"):
        SigmoidFocalLoss(gamma=-1.0)
    with pytest.raises(ValueError, match="reduction"):
        SigmoidFocalLoss(reduction="avg")


def document_form(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """The four steps of the loss notes, section 3."""
    probs = torch.softmax(logits, dim=-1)
    pt = torch.sum(probs * F.one_hot(labels, logits.shape[-1]), dim=-1)
    return (-alpha * (1 - pt) ** gamma * torch.log(pt + 1e-8)).mean()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 5.0])
def test_softmax_agrees_with_the_document(gamma: float) -> None:
    logits, labels = numbers(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    ours = SoftmaxFocalLoss(0.25, gamma)(logits, labels)
    expected = document_form(logits, labels, 0.25, gamma)
    # its log(p + 1e-8) is 1e-8 / p off
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=0)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=2e-6, atol=1e-7)


def test_softmax_definition() -> None:
    logits, labels, alpha = numbers(5, 3), torch.tensor([0, 2, -100, 1, 2]), [0.2, 0.5, 1.5]
    total = 0.0
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        if y != -100:
            p = math.exp(row[y]) / sum(map(math.exp, row))
            total -= alpha[y] * (1 - p) ** 1.5 * math.log(p)
    loss = SoftmaxFocalLoss(torch.tensor(alpha, dtype=torch.float64), 1.5)
    assert loss(logits, labels).item() == pytest.approx(total / 4, rel=1e-12)
    torch.autograd.gradcheck(lambda x: loss(x, labels), (logits,))


def test_softmax_with_gamma_0_is_cross_entropy() -> None:
    logits, labels = numbers(2, 4, 3), torch.tensor([[0, 1, 3], [2, -100, 2]])
    torch.testing.assert_close(SoftmaxFocalLoss(None, 0.0)(logits, labels), F.cross_entropy(logits, labels))


def test_a_scalar_alpha_only_scales() -> None:
    logits, labels = numbers(5, 3), torch.tensor([0, 2, 1, 1, 2])
    plain = SoftmaxFocalLoss(None)(logits, labels)
    torch.testing.assert_close(SoftmaxFocalLoss(0.25)(logits, labels), 0.25 * plain)
    torch.testing.assert_close(SoftmaxFocalLoss([0.25] * 3)(logits, labels), 0.25 * plain)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_softmax_gradient_does_not_vanish_where_p_is_0(gamma: float) -> None:
    logits = torch.tensor([[0.0, 200.0], [200.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    loss = SoftmaxFocalLoss(1.0, gamma, "sum")(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(200)
    torch.testing.assert_close(gradient(logits), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    logits.grad = None  # the quirk of the document's form
    document_form(logits, labels, 1.0, gamma).backward()
    assert not gradient(logits)[0].any()


def test_softmax_forbidden_classes() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 1.0, -torch.inf]], requires_grad=True)
    loss = SoftmaxFocalLoss(1.0, 2.0, "none")(logits, torch.tensor([0, 2]))
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(0.25 * math.log(2))
    assert loss[1] == torch.inf  # the label itself is impossible
    assert gradient(logits).isfinite().all()


def test_softmax_class_axis() -> None:
    logits, labels = numbers(2, 5, 5), torch.randint(0, 5, (2, 5))
    expected = {
        1: SoftmaxFocalLoss()(logits.transpose(1, 2).flatten(0, 1), labels.flatten()),
        -1: SoftmaxFocalLoss()(logits.flatten(0, 1), labels.flatten()),
    }
    torch.testing.assert_close(SoftmaxFocalLoss()(logits, labels), expected[1])
    for dim, value in expected.items():
        torch.testing.assert_close(SoftmaxFocalLoss(class_dim=dim)(logits, labels), value)
    captions, words = numbers(2, 3, 5), torch.randint(0, 5, (2, 3))
    torch.testing.assert_close(
        SoftmaxFocalLoss()(captions, words), SoftmaxFocalLoss()(captions.flatten(0, 1), words.flatten())
    )


def test_softmax_weight_and_token_count() -> None:
    logits, words = numbers(3, 2, 5), torch.tensor([[0, 1], [2, -100], [-100, 4]])
    often = torch.tensor([2, 0, 3])
    rows = [0, 0, 2, 2, 2]
    expected = SoftmaxFocalLoss(class_dim=-1)(logits[rows], words[rows])
    torch.testing.assert_close(SoftmaxFocalLoss(class_dim=-1)(logits, words, weight=often), expected)
    parts = [
        SoftmaxFocalLoss(class_dim=-1)(logits[i : i + 1], words[i : i + 1], weight=often[i : i + 1], token_count=7)
        for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), expected)


@pytest.mark.parametrize("rows", [0, 2])
def test_softmax_of_nothing_is_zero_with_a_graph(rows: int) -> None:
    for gamma in (0.5, 2.0):
        logits = torch.ones(rows, 3, requires_grad=True)
        loss = SoftmaxFocalLoss(gamma=gamma)(logits, torch.full((rows,), -100))
        loss.backward()
        assert loss == 0
        assert gradient(logits).eq(0).all()


def test_softmax_bad_input() -> None:
    with pytest.raises(IndexError):
        SoftmaxFocalLoss()(torch.zeros(1, 3), torch.tensor([3]))
    with pytest.raises(ValueError, match="do not fit"):
        SoftmaxFocalLoss()(torch.zeros(1, 3), torch.tensor([1, 1]))
    for alpha in ([0.5, 0.5], [0.5] * 4):
        with pytest.raises(ValueError, match="3 classes want as many"):
            SoftmaxFocalLoss(alpha)(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="class indices"):
        SoftmaxFocalLoss()(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))
    with pytest.raises(ValueError, match="reduction"):
        SoftmaxFocalLoss(reduction="avg")


def test_gradcheck_sigmoid() -> None:
    target = torch.rand(3, 4, dtype=torch.float64)
    for gamma in (0.5, 2.0):
        torch.autograd.gradcheck(lambda x, g=gamma: SigmoidFocalLoss(0.25, g)(x, target), (numbers(3, 4),))
