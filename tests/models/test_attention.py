import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import additive_gradients, energies, exponentials, weights

KEYS, QUERY, SCORE = torch.randn(2, 5, 6), torch.randn(2, 3, 6), torch.randn(6)


def test_additive_energies_against_a_naive_loop() -> None:
    """Equation 4 of "Show, Attend and Tell", one number at a time, all larger by the same."""
    found = energies(KEYS, QUERY, SCORE) - SCORE.sum()
    for b in range(2):
        for c in range(3):
            for n in range(5):
                e = sum(float(SCORE[i]) * math.tanh(float(KEYS[b, n, i] + QUERY[b, c, i])) for i in range(6))
                assert float(found[b, c, n]) == pytest.approx(e, abs=1e-5)


def test_dot_attention_is_torchs_own() -> None:
    values, mask = torch.randn(2, 5, 6), torch.rand(2, 5) < 0.7
    context = weights(energies(KEYS, QUERY, None), mask) @ values
    expected = F.scaled_dot_product_attention(QUERY, KEYS, values, mask[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(context, expected)


def test_additive_gradients_are_those_of_autograd() -> None:
    query, upstream = QUERY[:, 0], torch.randn(2, 5)
    given = [tensor.clone().requires_grad_() for tensor in (KEYS, SCORE, query)]
    exact = (1 + torch.tanh(given[0] + given[2][:, None])) @ given[1]
    expected = torch.autograd.grad(exact, given, upstream)
    slopes, of_score = torch.ones_like(KEYS), torch.ones_like(SCORE)  # sums are added to
    of_query = additive_gradients(exponentials(KEYS), exponentials(query), SCORE, upstream, slopes, of_score)
    for a, b in zip((4 * (slopes - 1) * SCORE, of_score - 1, of_query), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # of float32


def test_weights_of_what_is_there() -> None:
    energy = torch.randn(3, 2, 5)
    mask = torch.tensor([[True] * 5, [True, False, True, False, True], [False, False, False, True, False]])
    found = weights(energy, mask)
    exps = energy.exp() * mask[:, None]
    torch.testing.assert_close(found, exps / exps.sum(-1, keepdim=True))
    assert found[2].tolist() == [[0, 0, 0, 1, 0]] * 2
    torch.testing.assert_close(weights(energy, None), weights(energy, torch.ones(3, 5, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("far", [10.0, 100.0, 60_000.0])
def test_additive_energies_of_far_keys_saturate(dtype: torch.dtype, far: float) -> None:
    keys = torch.tensor([[[far, -far], [far, far], [-far, -far]]], dtype=dtype)
    query = torch.tensor([[[0.5, -3.0], [far, far]]], dtype=dtype)
    found = energies(keys, query, torch.tensor([1.0, 2.0], dtype=dtype)) - 3
    assert found[0, 0].tolist() == pytest.approx([-1, 3, -3], abs=1e-4)  # 1 - tanh(7) = 2e-6, and bfloat16 of 0 to 6
    assert found[0, 1, 1] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("additive", [False, True])
def test_attention_is_a_distribution_in_half_precision(dtype: torch.dtype, additive: bool) -> None:
    keys, query = torch.randn(4, 49, 64).to(dtype) * 50, torch.randn(4, 2, 64).to(dtype)
    score: Tensor | None = torch.randn(64).to(dtype) if additive else None
    found = weights(energies(keys, query, score), None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 2))
