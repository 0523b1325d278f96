import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loss.divergence import categorical_kl

INF = torch.inf


def numbers(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def test_categorical_kl_is_torchs_and_its_gradients_are_autograds() -> None:
    p, q = numbers(0), numbers(1)
    ours = categorical_kl(p, q)
    torchs = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-15)
    weight = torch.rand(3, 5, dtype=torch.float64)  # every element has a gradient of its own
    gradients = [torch.autograd.grad((x * weight).sum(), (p, q)) for x in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
    torch.autograd.gradcheck(categorical_kl, (p, q))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_categorical_kl_of_two_precisions_has_the_finer(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    p, q = (x.detach().to(dtype) for x, dtype in zip((numbers(0), numbers(1)), dtypes, strict=True))
    torch.testing.assert_close(categorical_kl(p, q), categorical_kl(p.double(), q.double()), rtol=0, atol=0)
    torch.autograd.backward(categorical_kl(p.requires_grad_(), q.requires_grad_()).sum())
    assert (gradient(p).dtype, gradient(q).dtype) == dtypes


def test_categorical_kl_where_both_logits_are_minus_infinity() -> None:
    p = torch.tensor([[-INF, 0.0, 1.0]], requires_grad=True)
    q = torch.tensor([[-INF, 1.0, 0.0]], requires_grad=True)
    values = categorical_kl(p, q)
    values.sum().backward()
    torch.testing.assert_close(values[:, 1:], categorical_kl(p[:, 1:], q[:, 1:]))
    assert values[0, 0] == 0
    assert gradient(p).isfinite().all()
    assert gradient(q).isfinite().all()
    plain = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)
    assert plain.isnan()  # the quirk


def test_categorical_kl_where_only_p_is_0() -> None:
    p, q = torch.tensor([[-INF, 0.0]]), torch.tensor([[0.0, 0.0]], requires_grad=True)
    value = categorical_kl(p, q).sum()
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(gradient(q), torch.tensor([[0.5, -0.5]]))


def test_categorical_kl_where_only_q_is_0_is_infinite() -> None:
    q = torch.tensor([[-INF, 0.0]], requires_grad=True)
    value = categorical_kl(torch.zeros(1, 2), q).sum()
    value.backward()
    assert value == INF
    assert gradient(q).isfinite().all()


@pytest.mark.parametrize("side", [0, 1])
def test_categorical_kl_does_not_hide_nan(side: int) -> None:
    pair = [torch.zeros(2, 3), torch.zeros(2, 3)]
    pair[side][1, 2] = torch.nan
    assert categorical_kl(*pair).sum(-1).isnan().tolist() == [False, True]
