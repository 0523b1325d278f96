import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loss.cross_entropy import CrossEntropyLoss


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def naive(logits: Tensor, labels: Tensor, e: float, w: list[float], ignored: int) -> float:
    """The definition, row by row, [N, C]."""
    total = divisor = 0.0
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        if y == ignored:
            continue
        log_p = [x - math.log(sum(map(math.exp, row))) for x in row]
        total += -(1 - e) * w[y] * log_p[y] - e / len(row) * sum(a * b for a, b in zip(w, log_p, strict=True))
        divisor += w[y]
    return total / divisor


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 0.0]])
def test_definition(smoothing: float, weights: list[float] | None) -> None:
    logits, labels = numbers(6, 4), torch.tensor([0, 1, -1, 2, 3, 1])
    loss = CrossEntropyLoss(smoothing, ignore_index=-1, class_weight=weights)(logits, labels)
    expected = naive(logits, labels, smoothing, weights or [1.0] * 4, -1)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_it_is_torchs(reduction: str, smoothing: float, weighted: bool, probabilities: bool) -> None:
    logits = numbers(2, 5, 3, 3)
    target = numbers(2, 5, 3, 3, seed=1).detach().softmax(1) if probabilities else torch.randint(0, 5, (2, 3, 3))
    if not probabilities:
        target[0, 0, 0] = -100
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    ours = CrossEntropyLoss(smoothing, class_weight=weight, reduction=reduction)(logits, target)
    torchs = F.cross_entropy(logits, target, weight=weight, reduction=reduction, label_smoothing=smoothing)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-15)
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_dicts_and_tensors_are_the_same() -> None:
    logits, labels = numbers(3, 4), torch.tensor([0, 3, 1])
    out, target = {"pred": logits, "other": labels}, {"target": labels}
    assert CrossEntropyLoss()(out, target) == CrossEntropyLoss()(logits, labels)
    assert list(out) == ["pred", "other"]
    with pytest.raises(TypeError, match="two tensors or two mappings"):
        CrossEntropyLoss()(out, labels)


def test_uniform_logits_give_log_c() -> None:
    assert CrossEntropyLoss(0.3)(torch.zeros(2, 8), torch.tensor([1, 5])).item() == pytest.approx(math.log(8))


def test_probabilities_that_are_onehot_are_labels() -> None:
    logits, labels = numbers(4, 5), torch.tensor([0, 4, 2, 2])
    onehot = F.one_hot(labels, 5).double()
    torch.testing.assert_close(CrossEntropyLoss(0.1)(logits, onehot), CrossEntropyLoss(0.1)(logits, labels))


def test_classes_last_are_taken_where_only_the_last_axis_fits() -> None:
    logits, labels = numbers(2, 3, 7), torch.randint(0, 7, (2, 3))
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels), expected)
    assert CrossEntropyLoss(reduction="none")(logits, labels).shape == (2, 3)


def test_where_both_axes_fit_class_dim_decides() -> None:
    logits, labels = numbers(2, 5, 5), torch.randint(0, 5, (2, 5))
    torch.testing.assert_close(CrossEntropyLoss()(logits, labels), F.cross_entropy(logits, labels))
    last = CrossEntropyLoss(class_dim=-1)(logits, labels)
    torch.testing.assert_close(last, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_probabilities_with_classes_last() -> None:
    logits, target = numbers(2, 3, 7), numbers(2, 3, 7, seed=1).detach().softmax(-1)
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
    torch.testing.assert_close(CrossEntropyLoss(class_dim=-1)(logits, target), expected)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_weight_is_repetition(weights: list[float] | None) -> None:
    logits, labels = numbers(3, 4, 3), torch.tensor([[0, 1, 2, -100], [1, -100, -100, -100], [2, 2, 0, 1]])
    often = torch.tensor([3, 1, 2])
    loss = CrossEntropyLoss(0.1, class_weight=weights)
    rows = torch.repeat_interleave(torch.arange(3), often)
    by_weight, repeated = loss(logits, labels, weight=often), loss(logits[rows], labels[rows])
    torch.testing.assert_close(by_weight, repeated)
    torch.testing.assert_close(torch.autograd.grad(by_weight, logits), torch.autograd.grad(repeated, logits))


def test_parts_with_the_token_count_of_the_whole_add_up() -> None:
    logits, labels = numbers(6, 4), torch.tensor([0, -100, 2, 3, -100, 1])
    whole = CrossEntropyLoss()(logits, labels)
    parts = [CrossEntropyLoss()(logits[i : i + 3], labels[i : i + 3], token_count=4) for i in (0, 3)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("weights", [None, [0.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_that_counts_is_zero_with_a_graph(weights: list[float] | None, smoothing: float) -> None:
    loss = CrossEntropyLoss(0.0 if weights else smoothing, class_weight=weights)
    for rows, label in ((3, 0 if weights else -100), (0, 0)):
        logits = torch.ones(rows, 2, requires_grad=True)
        value = loss(logits, torch.full((rows,), label))
        value.backward()
        assert value == 0
        assert logits.grad is not None
        assert logits.grad.eq(0).all()


def test_fp16_does_not_overflow() -> None:
    logits = (torch.randn(4, 70000) * 5e3).half().requires_grad_()
    labels = torch.tensor([1, 2, 3, 69999])
    loss = CrossEntropyLoss(0.1)(logits, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), labels, label_smoothing=0.1))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_a_forbidden_class_takes_no_part() -> None:
    logits, labels = numbers(3, 4), torch.tensor([0, 1, 2])
    forbidden = torch.tensor([False, False, False, True])
    loss = CrossEntropyLoss()(logits.masked_fill(forbidden, -torch.inf), labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, CrossEntropyLoss()(logits[:, :3], labels))
    assert gradient.isfinite().all()
    shares = F.one_hot(labels, 4).double()
    torch.testing.assert_close(CrossEntropyLoss()(logits.masked_fill(forbidden, -torch.inf), shares), loss)


def test_gradcheck() -> None:
    labels = torch.tensor([[0, 2, -100], [1, 1, 3]])
    loss = CrossEntropyLoss(0.1, class_weight=[1.0, 0.5, 2.0, 1.0])
    weight = torch.tensor([1.0, 3.0])
    torch.autograd.gradcheck(lambda x: loss(x, labels, weight=weight), (numbers(2, 4, 3),))


def test_bad_input() -> None:
    logits = torch.zeros(2, 3)
    for labels in ([0, 3], [0, -1]):
        for smoothing in (0.0, 0.1):
            with pytest.raises(IndexError):
                CrossEntropyLoss(smoothing)(logits, torch.tensor(labels))
    with pytest.raises(ValueError, match="do not fit"):
        CrossEntropyLoss()(logits, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="differ in shape"):
        CrossEntropyLoss()(logits, torch.rand(2, 4))
    with pytest.raises(ValueError, match="3 classes want as many"):
        CrossEntropyLoss(class_weight=[1.0, 2.0])(logits, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="not one number per entry"):
        CrossEntropyLoss()(logits, torch.tensor([0, 1]), weight=torch.ones(3))
    with pytest.raises(ValueError, match="reduction"):
        CrossEntropyLoss(reduction="avg")
    with pytest.raises(ValueError, match="label_smoothing"):
        CrossEntropyLoss(-0.1)
    with pytest.raises(TypeError):
        CrossEntropyLoss(label_smooth=0.1)  # type: ignore[call-arg]
