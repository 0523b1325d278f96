"""Adversarial losses: vanilla, least squares, Wasserstein with gradient penalty, hinge."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import along_first, check_choice, check_same_shape, reduce, upcast, zero_with_graph

GAN_MODES = ("vanilla", "lsgan", "wgangp", "hinge")


def gradient_penalty(
    netD: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    mode: str = "mixed",
    constant: float = 1.0,
    lambda_gp: float = 10.0,
    alpha: Tensor | None = None,
) -> Tensor:
    """Return lambda_gp mean_n (||grad_x netD(x_n)||_2 - constant)^2, to be added to the discriminator's loss.

    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, equation 3. The gradient of the
    result reaches the parameters of ``netD``, not ``real`` or ``fake``.

    Args:
        netD: the discriminator, [N, ...] -> scores of any shape.
        real, fake: [N, ...], the same shape.
        mode: where x lies: "mixed" = alpha real + (1 - alpha) fake, "real" or "fake".
        constant: the norm to be near.
        lambda_gp: the weight of the penalty.
        alpha: [N, 1] in [0, 1] for "mixed"; None draws it from the uniform distribution.

    Raises:
        ValueError: an unknown mode, shapes that differ.
    """
    check_choice("mode", mode, ("mixed", "real", "fake"))
    check_same_shape(real, fake)
    real, fake = real.detach(), fake.detach()
    if mode == "mixed":
        if alpha is None:
            alpha = torch.rand(real.shape[0], 1, dtype=real.dtype, device=real.device)
        alpha = alpha.reshape(-1, *[1] * (real.ndim - 1)).to(real)
        x = alpha * real + (1.0 - alpha) * fake
    else:
        x = real if mode == "real" else fake
    x = x.detach().requires_grad_(True)  # a new tensor: the caller's keep their flag
    scores = netD(x)
    if len(x) == 0:
        return zero_with_graph(scores)
    (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    # 1e-16 gives a slope of exactly 0 a direction to grow in
    norm = torch.linalg.vector_norm(upcast(slope).flatten(1) + 1e-16, dim=1)
    return lambda_gp * reduce((norm - constant).square())


class GANLoss(nn.Module):
    """Adversarial loss of a discriminator's raw scores x (no sigmoid); the label y is real_ or fake_label.

        vanilla: loss = mean BCE(sigmoid(x), y)
        lsgan:   loss = mean (x - y)^2
        wgangp:  loss = -mean x for real, mean x for fake      (add :meth:`gradient_penalty` for D)
        hinge:   loss = mean max(0, 1 - x) for real, mean max(0, 1 + x) for fake; -mean x for the generator

    The generator asks for its fakes to be called real, in "vanilla" the non-saturating form. Where each score has a
    label of its own, the loss is the discriminator's, (loss of the real ones + loss of the fakes) / 2: however many
    there are of each, both count the same.

    Args:
        gan_mode: "vanilla", "lsgan", "wgangp" or "hinge".
        real_label: y of real images ("vanilla", "lsgan").
        fake_label: y of fake images ("vanilla", "lsgan").

    Shape:
        - prediction: scores of any shape, or a list of such (scales of a discriminator), which are averaged.
        - target_is_real: a bool for all scores, or a bool tensor [N], one for each entry of the first axis.
        - weight: [N], how often each entry counts; None: once.
        - output: scalar.

    Raises:
        ValueError: unknown mode; hinge for a generator that wants to be called fake; labels that are not one an entry,
            or that a generator is given.

    Reference:
        Goodfellow et al., NeurIPS 2014; Mao et al., "Least Squares GANs", ICCV 2017; Gulrajani et al.,
        NeurIPS 2017; Lim and Ye, "Geometric GAN", arXiv 1705.02894; Miyato et al., ICLR 2018.

    Example:
        >>> loss = GANLoss("lsgan")
        >>> loss.discriminator_loss(real=torch.tensor([0.5]), fake=torch.tensor([1.0]))
        tensor(0.6250)
        >>> loss.generator_loss(fake=torch.tensor([1.0]))
        tensor(0.)
        >>> loss(torch.tensor([0.5, 1.0, 1.0]), torch.tensor([True, False, False]))
        tensor(0.6250)
    """

    reads: ClassVar[dict[str, str]] = {
        "prediction": "out.pred",
        "target_is_real": "target.target_is_real",
        "weight": "target.weight?",
    }
    gradient_penalty = staticmethod(gradient_penalty)

    def __init__(self, gan_mode: str = "vanilla", real_label: float = 1.0, fake_label: float = 0.0) -> None:
        super().__init__()
        check_choice("gan_mode", gan_mode, GAN_MODES)
        self.gan_mode = gan_mode
        self.real_label = real_label
        self.fake_label = fake_label

    def forward(
        self,
        prediction: Tensor | Sequence[Tensor],
        target_is_real: bool | Tensor,
        for_discriminator: bool = True,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return how far ``prediction`` is from what it should be for real (or fake) images."""
        if not isinstance(prediction, Tensor):
            if not prediction:
                raise ValueError("prediction is an empty list")
            scales = [self(scale, target_is_real, for_discriminator, weight) for scale in prediction]
            return torch.stack(scales).mean()
        scores = upcast(prediction)
        if not isinstance(target_is_real, Tensor):
            counts = None if weight is None else along_first(weight, scores)
            return self._mean(scores, target_is_real, for_discriminator, counts)
        if not for_discriminator:
            raise ValueError("a generator wants all its fakes to be called real; target_is_real must be True")
        counts = along_first(torch.ones_like(target_is_real) if weight is None else weight, scores).to(scores.dtype)
        real = counts * along_first(target_is_real, scores)
        return 0.5 * (self._mean(scores, True, True, real) + self._mean(scores, False, True, counts - real))

    def _mean(self, scores: Tensor, real: bool, for_discriminator: bool, weight: Tensor | None) -> Tensor:
        """The mean loss of scores that should all be real, or all fake."""
        label = self.real_label if real else self.fake_label
        if self.gan_mode == "vanilla":
            # without the term that a label of 0 or 1 has not: 0 * inf would be NaN
            shares = ((label, scores), (1.0 - label, -scores))
            return torch.stack([share * reduce(-F.logsigmoid(x), weight=weight) for share, x in shares if share]).sum()
        if self.gan_mode == "lsgan":
            return reduce((scores - label).square(), weight=weight)
        if self.gan_mode == "hinge" and for_discriminator:
            return reduce(F.relu(1.0 - scores if real else 1.0 + scores), weight=weight)
        if self.gan_mode == "hinge" and not real:
            raise ValueError("the hinge loss of a generator needs target_is_real=True")
        return reduce(-scores if real else scores, weight=weight)

    def discriminator_loss(self, real: Tensor | Sequence[Tensor], fake: Tensor | Sequence[Tensor]) -> Tensor:
        """Return half the sum of the discriminator's losses on the scores of real and of fake images."""
        return 0.5 * (self(real, True) + self(fake, False))

    def generator_loss(self, fake: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the generator's loss on the scores of its images."""
        return self(fake, True, for_discriminator=False)
