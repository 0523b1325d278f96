import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.gan import GANLoss, gradient_penalty


def scores(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()


def naive(mode: str, x: Tensor, real: bool, discriminator: bool = True, y: float | None = None) -> float:
    y = float(real) if y is None else y
    values = x.flatten().tolist()
    log_sigmoid = [-math.log1p(math.exp(-v)) for v in values]
    sign = 1 if real else -1
    per_score = {
        "vanilla": [-(y * s + (1 - y) * (s - v)) for v, s in zip(values, log_sigmoid, strict=True)],
        "lsgan": [(v - y) ** 2 for v in values],
        "wgangp": [-sign * v for v in values],
        "hinge": [max(0, 1 - sign * v) if discriminator else -v for v in values],
    }[mode]
    return sum(per_score) / len(per_score)


@pytest.mark.parametrize("mode", ["vanilla", "lsgan", "wgangp", "hinge"])
def test_definition(mode: str) -> None:
    loss, x, z = GANLoss(mode), scores(), scores(1)
    for real in (True, False):
        assert loss(x, real).item() == pytest.approx(naive(mode, x, real), rel=1e-12)
    expected = (naive(mode, x, True) + naive(mode, z, False)) / 2
    assert loss.discriminator_loss(x, z).item() == pytest.approx(expected, rel=1e-12)
    assert loss.generator_loss(z).item() == pytest.approx(naive(mode, z, True, discriminator=False), rel=1e-12)
    torch.autograd.gradcheck(loss.discriminator_loss, (x, z))
    torch.autograd.gradcheck(loss.generator_loss, (z,))


@pytest.mark.parametrize("mode", ["vanilla", "lsgan", "wgangp", "hinge"])
def test_labels_of_each_score_are_those_of_two_batches(mode: str) -> None:
    """Real and fake in one batch: half of each kind's own mean, a weight of 2 being the same score twice."""
    loss, x = GANLoss(mode), torch.tensor([0.3, -1.2, 2.0, 0.7, -0.1], dtype=torch.float64, requires_grad=True)
    real, weight = torch.tensor([True, False, False, True, False]), torch.tensor([1.0, 2.0, 1.0, 3.0, 0.0])
    torch.testing.assert_close(loss(x, real), loss.discriminator_loss(x[real], x[~real]))
    twice = loss.discriminator_loss(x[[0, 3, 3, 3]], x[[1, 1, 2]])
    torch.testing.assert_close(loss(x, real, weight=weight), twice)
    torch.testing.assert_close(loss(x, False, weight=weight), loss(x[[0, 1, 1, 2, 3, 3, 3]], False))
    only = torch.ones_like(real)
    torch.testing.assert_close(loss(x, only), 0.5 * loss(x, True))  # there is no fake to be wrong about
    with pytest.raises(ValueError, match="generator"):
        loss(x, real, for_discriminator=False)
    with pytest.raises(ValueError, match="one number per entry"):
        loss(x, real[:3])


def test_labels_can_be_smoothed() -> None:
    loss, x = GANLoss("vanilla", real_label=0.9, fake_label=0.1), scores()
    assert loss(x, True).item() == pytest.approx(naive("vanilla", x, True, y=0.9), rel=1e-12)
    assert loss(x, False).item() == pytest.approx(naive("vanilla", x, False, y=0.1), rel=1e-12)
    assert GANLoss("lsgan", 0.9)(x, True).item() == pytest.approx(naive("lsgan", x, True, y=0.9), rel=1e-12)


def test_vanilla_is_torchs_on_raw_scores_and_the_generators_is_non_saturating() -> None:
    x = scores()
    expected = F.binary_cross_entropy_with_logits(x, torch.ones_like(x))
    torch.testing.assert_close(GANLoss()(x, True), expected)
    sure_fake = torch.tensor([-50.0], requires_grad=True)
    GANLoss().generator_loss(sure_fake).backward()
    torch.testing.assert_close(sure_fake.grad, torch.tensor([-1.0]))  # minimax would leave it 0


def test_scales_are_averaged() -> None:
    loss = GANLoss("hinge")
    scales = [scores(), scores(1)[:, :, :2], scores(2)[:1]]
    expected = torch.stack([loss(scale, False) for scale in scales]).mean()
    torch.testing.assert_close(loss(scales, False), expected)
    torch.testing.assert_close(loss.discriminator_loss(scales[0], scales), 0.5 * (loss(scales[0], True) + expected))


def test_the_hinge_stops_at_the_margin_for_the_discriminator_alone() -> None:
    far = torch.tensor([1.5, 3.0])
    assert GANLoss("hinge")(far, True) == 0
    assert GANLoss("hinge").generator_loss(far).item() == -2.25
    with pytest.raises(ValueError, match="target_is_real=True"):
        GANLoss("hinge")(far, False, for_discriminator=False)


class Quadratic(nn.Module):
    """f(x) = w |x|^2 / 2, whose gradient at x is w x."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x.square().flatten(1).sum(1, keepdim=True) / 2


@pytest.mark.parametrize("mode", ["mixed", "real", "fake"])
def test_gradient_penalty_in_closed_form(mode: str) -> None:
    critic, real, fake = Quadratic(0.7), scores(), scores(1)
    alpha = torch.tensor([[0.25], [1.0]], dtype=torch.float64)
    penalty = GANLoss("wgangp").gradient_penalty(
        critic, real, fake, mode=mode, constant=0.5, lambda_gp=3.0, alpha=alpha
    )
    points = {"real": real, "fake": fake, "mixed": torch.stack([(real[0] + 3 * fake[0]) / 4, real[1]])}[mode]
    norms = points.detach().flatten(1).norm(dim=1)
    expected = 3 * ((0.7 * norms - 0.5) ** 2).mean()
    torch.testing.assert_close(penalty, expected, rtol=1e-12, atol=0)
    penalty.backward()
    slope = 3 * (2 * (0.7 * norms - 0.5) * norms).mean()
    torch.testing.assert_close(critic.w.grad, slope, rtol=1e-12, atol=0)
    assert real.grad is None
    assert fake.grad is None


def test_gradient_penalty_leaves_its_inputs_alone_and_draws_alpha_itself() -> None:
    critic, real = Quadratic(1.0), torch.ones(3, 2, dtype=torch.float64)
    for mode in ("real", "fake", "mixed"):
        gradient_penalty(critic, real, -real, mode)
        assert not real.requires_grad
    torch.manual_seed(3)
    alpha = torch.rand(3, 1, dtype=torch.float64)
    torch.manual_seed(3)
    drawn = gradient_penalty(critic, real, -real)
    torch.testing.assert_close(drawn, gradient_penalty(critic, real, -real, alpha=alpha))


def test_gradient_penalty_of_a_flat_critic_is_finite() -> None:
    critic = Quadratic(0.0)
    penalty = gradient_penalty(critic, torch.ones(2, 3).double(), torch.ones(2, 3).double())
    penalty.backward()
    assert penalty.item() == pytest.approx(10)
    assert critic.w.grad is not None
    assert critic.w.grad.isfinite()


@pytest.mark.parametrize("mode", ["vanilla", "lsgan", "wgangp", "hinge"])
def test_degenerate_input(mode: str) -> None:
    loss = GANLoss(mode)
    empty = torch.zeros(0, 1, requires_grad=True)
    value = loss.discriminator_loss(empty, empty)
    value.backward()
    assert value == 0
    for dtype in (torch.float16, torch.bfloat16):
        large = torch.tensor([6e4, -6e4], dtype=dtype, requires_grad=True)
        value = loss(large, False)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert large.grad is not None
        assert large.grad.isfinite().all()


def test_infinite_scores_that_are_right_cost_nothing() -> None:
    scores = torch.tensor([torch.inf], requires_grad=True)
    loss = GANLoss().discriminator_loss(scores, -scores)
    loss.backward()
    assert loss == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.0]


def test_gradient_penalty_of_nothing_is_zero() -> None:
    critic = Quadratic(1.0)
    empty = torch.zeros(0, 2, dtype=torch.float64)
    penalty = gradient_penalty(critic, empty, empty)
    penalty.backward()
    assert penalty == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="gan_mode must be one of 'vanilla', 'lsgan', 'wgangp', 'hinge'"):
        GANLoss("wgan")
    with pytest.raises(ValueError, match="mode"):
        gradient_penalty(Quadratic(1.0), torch.ones(1, 1), torch.ones(1, 1), "middle")
    with pytest.raises(ValueError, match="differ"):
        gradient_penalty(Quadratic(1.0), torch.ones(1, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="empty list"):
        GANLoss()([], True)
    with pytest.raises(TypeError):
        GANLoss(use_lsgan=True)  # type: ignore[call-arg]


def test_scores_that_do_not_count_may_be_named_by_a_mask() -> None:
    real, counts = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    found = GANLoss("lsgan")(torch.tensor([0.5, 0.5, 9.0]), real, weight=counts)
    assert float(found) == pytest.approx(0.5 * (0.5**2 + 0.5**2))
