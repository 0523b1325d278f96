import pytest
import torch

from models.dropout import Dropout

COUNT = 10**6 + 3  # no multiple of four or eight


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_each_element_is_dropped_by_itself_and_the_rest_is_scaled(p: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(COUNT, requires_grad=True)
    y = Dropout(p)(x + 1)
    kept = y.detach() != 0
    deviation = (p * (1 - p) / COUNT) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * deviation
    torch.testing.assert_close(y[kept], (x[kept] + 1) / (1 - p), rtol=2e-4, atol=0)  # p in steps of 2^-16: at 0.9, 8e-5
    for distance in range(1, 17):  # of elements that share a draw, and that do not
        both = (kept[distance:] & kept[:-distance]).double().mean()
        assert abs(float(both) - (1 - p) ** 2) < 5 * (1 / COUNT) ** 0.5  # at most the deviation of such a mean
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y / (x + 1))


def test_what_is_dropped_depends_on_the_seed_and_not_on_the_shape() -> None:
    drop, drawn = Dropout(0.5), []
    for seed, shape in ((0, (6, 5)), (0, (30,)), (1, (30,))):
        torch.manual_seed(seed)
        drawn.append(drop(torch.ones(shape)).flatten())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_and_everything_are_limits(dtype: torch.dtype) -> None:
    x = torch.rand(7, dtype=dtype)
    assert torch.equal(Dropout(0)(x), x) and torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
    dropped = Dropout(0.5)(x)
    assert dropped.dtype == dtype and ((dropped == 0) | (dropped == 2 * x)).all()
    assert Dropout(0.5)(x[:0]).shape == (0,)
