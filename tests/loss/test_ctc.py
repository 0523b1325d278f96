import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loss.ctc import CTCLoss

T, N, C = 5, 3, 4
TARGETS = torch.tensor([[1, 2, 0], [3, 3, 1], [2, 0, 0]])  # the zeros are padding, which may be the blank
INPUTS, LENGTHS = torch.tensor([5, 4, 3]), torch.tensor([2, 2, 1])


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(T, N, C, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def naive(logits: Tensor, n: int, target: list[int], blank: int = 0) -> float:
    """-log of the summed probability of all paths that collapse to the target."""
    p = logits.softmax(2)[: INPUTS[n], n].tolist()
    total = 0.0
    for path in itertools.product(range(C), repeat=len(p)):
        collapsed = [c for c, _ in itertools.groupby(path) if c != blank]
        if collapsed == target:
            total += math.prod(p[t][c] for t, c in enumerate(path))
    return -math.log(total)


def test_definition(logits: Tensor) -> None:
    expected = [naive(logits, n, TARGETS[n, : LENGTHS[n]].tolist()) for n in range(N)]
    values = CTCLoss(reduction="none")(logits, TARGETS, INPUTS, LENGTHS)
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    mean = sum(x / n for x, n in zip(expected, LENGTHS.tolist(), strict=True)) / N
    assert CTCLoss()(logits, TARGETS, INPUTS, LENGTHS).item() == pytest.approx(mean, rel=1e-12)
    assert CTCLoss(reduction="sum")(logits, TARGETS, INPUTS, LENGTHS).item() == pytest.approx(sum(expected), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_torchs(logits: Tensor, reduction: str) -> None:
    ours = CTCLoss(reduction=reduction)(logits, TARGETS, INPUTS, LENGTHS)
    torchs = F.ctc_loss(logits.log_softmax(2), TARGETS, INPUTS, LENGTHS, reduction=reduction)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_ways_to_give_the_same(logits: Tensor) -> None:
    expected = CTCLoss()(logits, TARGETS, INPUTS, LENGTHS)
    same = [
        CTCLoss(batch_first=True)(logits.transpose(0, 1), TARGETS, INPUTS, LENGTHS),
        CTCLoss()(logits, torch.tensor([1, 2, 3, 3, 2]), INPUTS, LENGTHS),
        CTCLoss(from_logits=False)(logits.log_softmax(2), TARGETS, INPUTS, LENGTHS),
        CTCLoss(blank=3)(logits[..., [1, 2, 3, 0]], torch.tensor([0, 1, 2, 2, 1]), INPUTS, LENGTHS),
        CTCLoss()(logits + torch.randn(T, N, 1), TARGETS, INPUTS, LENGTHS),
    ]
    for loss in same:
        torch.testing.assert_close(loss, expected)


def test_raw_logits_are_normalised_where_torch_would_go_negative(logits: Tensor) -> None:
    raw = F.ctc_loss(logits + 5, TARGETS, INPUTS, LENGTHS)
    assert raw < 0  # the quirk
    assert CTCLoss()(logits + 5, TARGETS, INPUTS, LENGTHS) > 0


def test_the_gradient_is_that_of_the_logits(logits: Tensor) -> None:
    torch.autograd.gradcheck(lambda x: CTCLoss()(x, TARGETS, INPUTS, LENGTHS), (logits,))


def test_an_impossible_target_is_infinite_and_spoils_no_gradient(logits: Tensor) -> None:
    targets, lengths = torch.tensor([[1, 2], [3, 3], [2, 0]]), torch.tensor([2, 2, 1])
    inputs = torch.tensor([5, 2, 3])  # "33" needs a blank between: three steps
    loss = CTCLoss(reduction="sum")(logits, targets, inputs, lengths)
    loss.backward()
    assert loss == torch.inf
    assert gradient(logits).isfinite().all()
    assert gradient(logits)[:, 1].eq(0).all()
    ours = gradient(logits).clone()
    logits.grad = None
    CTCLoss(reduction="sum", zero_infinity=True)(logits, targets, inputs, lengths).backward()
    torch.testing.assert_close(ours, gradient(logits))
    logits.grad = None
    F.ctc_loss(logits.log_softmax(2), targets, inputs, lengths, reduction="sum").backward()
    assert gradient(logits).isnan().any()  # the quirk


def test_the_callers_log_probabilities_keep_no_hook(logits: Tensor) -> None:
    log_probs = logits.detach().log_softmax(2).requires_grad_()
    impossible = torch.tensor([[1, 1, 1]] * N)  # 1-1-1 wants five steps
    CTCLoss(from_logits=False)(log_probs, impossible, torch.full((N,), 4), torch.full((N,), 3))
    log_probs.sum().backward()
    assert gradient(log_probs).eq(1).all()


def test_zero_infinity_counts_it_as_0(logits: Tensor) -> None:
    inputs = torch.tensor([5, 2, 3])
    values = CTCLoss(reduction="none", zero_infinity=True)(logits, TARGETS, inputs, LENGTHS)
    assert values[1] == 0
    assert (values[[0, 2]] > 0).all()


def test_forbidden_classes(logits: Tensor) -> None:
    forbidden = torch.tensor([False, False, False, True])
    targets, lengths = torch.tensor([[1, 2], [3, 1], [2, 2]]), torch.tensor([2, 2, 1])
    values = CTCLoss(reduction="none")(logits.masked_fill(forbidden, -torch.inf), targets, INPUTS, lengths)
    values.sum().backward()
    assert values.isinf().tolist() == [False, True, False]
    assert gradient(logits).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_upcast(logits: Tensor, dtype: torch.dtype) -> None:
    half = (1e3 * logits.detach()).to(dtype).requires_grad_()
    loss = CTCLoss()(half, TARGETS, INPUTS, LENGTHS)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, CTCLoss()(half.float(), TARGETS, INPUTS, LENGTHS))
    assert gradient(half).isfinite().all()


def test_an_empty_target_is_all_blanks(logits: Tensor) -> None:
    none = torch.zeros(N, dtype=torch.long)
    values = CTCLoss(reduction="none")(logits, TARGETS, INPUTS, none)
    blanks = [-logits.log_softmax(2)[: INPUTS[n], n, 0].sum() for n in range(N)]
    torch.testing.assert_close(values, torch.stack(blanks))
    torch.testing.assert_close(CTCLoss()(logits, TARGETS, INPUTS, none), values.mean())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_empty_batch_is_zero_with_a_graph(reduction: str) -> None:
    logits = torch.zeros(T, 0, C, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss = CTCLoss(reduction=reduction)(logits, none[:, None], none, none).sum()
    loss.backward()
    assert loss == 0


def test_bad_input(logits: Tensor) -> None:
    with pytest.raises(ValueError, match="the blank, 0, stands among the targets"):
        CTCLoss()(logits, torch.tensor([[1, 0, 2], [3, 3, 1], [2, 0, 0]]), INPUTS, LENGTHS)
    with pytest.raises(ValueError, match="the blank"):
        CTCLoss()(logits, torch.tensor([1, 2, 0, 3, 2]), INPUTS, LENGTHS)
    for label in (C, -1):
        with pytest.raises(ValueError, match=r"outside \[0, 4\)"):
            CTCLoss()(logits, torch.tensor([1, 2, label, 3, 2]), INPUTS, LENGTHS)
    with pytest.raises(ValueError, match="three axes"):
        CTCLoss()(logits[0], TARGETS, INPUTS, LENGTHS)
    with pytest.raises(ValueError, match="3 sequences need as many input_lengths"):
        CTCLoss()(logits, TARGETS, INPUTS[:2], LENGTHS)
    for inputs, lengths in ((INPUTS + 1, LENGTHS), (INPUTS, LENGTHS + 2), (INPUTS, LENGTHS - 2)):
        with pytest.raises(ValueError, match=r"_lengths must be from 0 to (5|3)"):
            CTCLoss()(logits, TARGETS, inputs, lengths)
    with pytest.raises(ValueError, match="5 labels, but target_lengths of 6"):
        CTCLoss()(logits, torch.tensor([1, 2, 1, 3, 2]), INPUTS, torch.tensor([2, 2, 2]))
    with pytest.raises(ValueError, match="reduction"):
        CTCLoss(reduction="batchmean")
