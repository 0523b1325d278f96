import math

import pytest
import torch

from models.attention import SoftAttention


def naive(
    attention: SoftAttention,
    keys: torch.Tensor,
    values: torch.Tensor,
    query: torch.Tensor,
    mask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 4 to 6 of "Show, Attend and Tell", one number at a time."""
    v = attention.score.weight[0].tolist()
    contexts, weights = [], []
    for p in range(keys.shape[0]):
        energy = []
        for n in range(keys.shape[1]):
            e = sum(v[i] * math.tanh(float(keys[p, n, i] + query[p, i])) for i in range(keys.shape[2]))
            energy.append(math.exp(e) if mask[p, n] else 0.0)
        a = [e / sum(energy) for e in energy]
        weights.append(a)
        contexts.append([sum(a[n] * float(values[p, n, d]) for n in range(len(a))) for d in range(values.shape[2])])
    return torch.tensor(contexts), torch.tensor(weights)


def test_against_a_naive_loop() -> None:
    attention = SoftAttention(6)
    keys, values, query = torch.randn(3, 5, 6), torch.randn(3, 5, 4), torch.randn(3, 6)
    mask = torch.tensor([[True] * 5, [True, False, True, False, True], [False, False, False, True, False]])
    context, weights = attention(keys, values, query, mask)
    expected_context, expected_weights = naive(attention, keys, values, query, mask)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(context, expected_context)
    assert weights[2].tolist() == [0, 0, 0, 1, 0]


def test_no_mask_is_a_mask_of_ones() -> None:
    attention = SoftAttention(6)
    arguments = torch.randn(3, 5, 6), torch.randn(3, 5, 4), torch.randn(3, 6)
    for a, b in zip(
        attention(*arguments, None), attention(*arguments, torch.ones(3, 5, dtype=torch.bool)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_is_a_distribution_in_half_precision(dtype: torch.dtype) -> None:
    attention = SoftAttention(64).to(dtype)
    keys = torch.randn(4, 49, 64, dtype=dtype) * 50
    _, weights = attention(keys, keys, torch.randn(4, 64, dtype=dtype), None)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
