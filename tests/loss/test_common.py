import math

import pytest
import torch
from torch import Tensor

from loss.common import check_labels, divide, find_class_dim, reduce, sum_terms, upcast, zero_with_graph
from loss.cross_entropy import cross_entropy
from loss.gan import GANLoss
from loss.kl import KLDistillationLoss


def test_reduce_is_the_weighted_mean() -> None:
    values, weight = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([2, 0, 1])
    assert reduce(values, "mean", weight) == (2 * 1 + 9) / 3
    assert reduce(values, "sum", weight) == 11
    assert reduce(values, "none", weight).tolist() == [2, 0, 9]
    assert reduce(values, "mean") == 14 / 3


def test_reduce_of_parts_with_the_whole_count_adds_up() -> None:
    values, weight = torch.rand(6, dtype=torch.float64), torch.tensor([1, 0, 2, 1, 3, 0])
    parts = [reduce(values[i : i + 2], "mean", weight[i : i + 2], weight.sum()) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), reduce(values, "mean", weight))


@pytest.mark.parametrize("weight", [torch.tensor([True, False]), torch.tensor([1.0, 0.0])])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_does_not_count_may_be_anything(weight: Tensor, bad: float) -> None:
    values = torch.tensor([3.0, bad], requires_grad=True)
    loss = reduce(values, "mean", weight)
    loss.backward()
    assert loss == 3
    assert values.grad is not None
    assert values.grad.tolist() == [1, 0]


@pytest.mark.parametrize("weight", [torch.zeros(3, dtype=torch.bool), torch.zeros(3)])
def test_nothing_that_counts_is_zero_with_a_graph(weight: Tensor) -> None:
    values = torch.ones(3, requires_grad=True)
    loss = reduce(values, "mean", weight)
    loss.backward()
    assert loss == 0
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0, 0]


def test_reduce_of_no_elements() -> None:
    values = torch.zeros(0, requires_grad=True)
    loss = reduce(values)
    loss.backward()
    assert loss == 0
    assert values.grad is not None
    assert values.grad.shape == (0,)


def test_reduce_refuses_an_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="'mean', 'sum', 'none'"):
        reduce(torch.ones(1), "average")


def test_divide_works_elementwise_and_by_a_number() -> None:
    assert divide(torch.tensor([4.0, 0.0]), torch.tensor([2, 0])).tolist() == [2, 0]
    assert divide(torch.tensor(4.0), 2) == 2
    assert divide(torch.tensor(0.0), 0) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_upcast(dtype: torch.dtype) -> None:
    assert upcast(torch.ones(1, dtype=dtype)).dtype == torch.float32
    double = torch.ones(1, dtype=torch.float64)
    assert upcast(double) is double


def test_zero_with_graph_of_several_tensors() -> None:
    x = torch.full((2, 2), torch.nan, requires_grad=True)
    y = torch.tensor(torch.inf, dtype=torch.float16, requires_grad=True)
    zero_with_graph(x, y).backward()
    assert x.grad is not None
    assert x.grad.eq(0).all()
    assert y.grad == 0


@pytest.mark.parametrize(
    ("logits", "labels", "dims", "expected"),
    [
        ((2, 5, 3), (2, 3), (1, -1), 1),
        ((2, 3, 5), (2, 3), (1, -1), 2),
        ((2, 3, 3), (2, 3), (1, -1), 1),
        ((2, 3, 3), (2, 3), (-1, 1), 2),
        ((7,), (), (1, -1), 0),
        ((4, 7), (4,), (1, -1), 1),
        ((2, 5, 4, 4), (2, 4, 4), (1, -1), 1),
    ],
)
def test_find_class_dim(logits: tuple[int, ...], labels: tuple[int, ...], dims: tuple[int, ...], expected: int) -> None:
    assert find_class_dim(torch.zeros(logits), torch.zeros(labels), dims) == expected


def test_find_class_dim_refuses_what_fits_nowhere() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) do not fit logits \(2, 5\)"):
        find_class_dim(torch.zeros(2, 5), torch.zeros(3))


def test_check_labels() -> None:
    check_labels(torch.tensor([0, 2, -100]), 3, -100)
    check_labels(torch.zeros(0, dtype=torch.long), 3)
    for labels in ([3], [-1]):
        with pytest.raises(IndexError, match=rf"{labels[0]} is outside \[0, 3\)"):
            check_labels(torch.tensor(labels), 3, -100)


def test_sum_terms_detaches_only_the_terms() -> None:
    x = torch.ones((), requires_grad=True)
    total, terms = sum_terms({"a": 2 * x, "b": 3 * x}, True)
    total.backward()
    assert x.grad == 5
    assert {name: (float(term), term.requires_grad) for name, term in terms.items()} == {
        "a": (2, False),
        "b": (3, False),
    }


@pytest.mark.parametrize(("dtype", "count"), [(torch.float16, 70_000), (torch.bfloat16, 257)])
def test_weights_of_half_precision_are_counted_in_full(dtype: torch.dtype, count: int) -> None:
    weight = torch.ones(count, dtype=dtype)  # the sum of so many is no number of this precision
    assert reduce(torch.full((count,), 3.0), "mean", weight) == 3
    assert cross_entropy(torch.zeros(count, 2), torch.zeros(count).long(), weight=weight) == pytest.approx(math.log(2))
    assert GANLoss("lsgan")(torch.zeros(count), True, weight=weight) == 1
    teacher = torch.tensor([[0.0, 1.0]]).expand(count, 2)
    whole, masked = (KLDistillationLoss()(torch.zeros(count, 2), teacher, mask) for mask in (None, weight))
    assert float(masked) == pytest.approx(float(whole))
