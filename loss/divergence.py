"""Kullback-Leibler divergence of two categorical or two Gaussian distributions, elementwise.

KL(P || Q) = sum_x P(x) log(P(x) / Q(x)): 0 where P is 0, whatever Q is, and inf where Q alone is 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gaussian = Sequence[Tensor]  # mean and log standard deviation


class CategoricalKL(torch.autograd.Function):
    """P log(P / Q), elementwise, of P = softmax(p_logits) and Q = softmax(q_logits) on the last axis.

    By hand because autograd would meet -inf - -inf and 0 * inf where P is 0, and masks against it
    cost more than the loss. The gradients, with G that of the output: to q_logits Q sum(P G) - P G; to
    p_logits U - P sum(U) with U = (P log(P / Q) + P) G.
    """

    @staticmethod
    def forward(ctx: Any, p_logits: Tensor, q_logits: Tensor) -> Tensor:
        """Return the values; what is 0 by P stays 0 whatever Q is."""
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        p = log_p.exp()
        # NaN is 0 * inf here, and becomes 0 ...
        broken = p[..., :1].isnan() | log_q[..., :1].isnan()
        values = log_p.sub_(log_q).mul_(p).nan_to_num_(0.0, torch.inf, -torch.inf)
        # ... unless the logits were NaN: then their whole row is, and must stay so
        values[..., :1].masked_fill_(broken, torch.nan)
        ctx.save_for_backward(p, log_q, values)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of both logits, where they are wanted."""
        p, log_q, values = ctx.saved_tensors
        to_p = to_q = None
        if ctx.needs_input_grad[0]:
            u = (values + p).mul_(gradient)
            to_p = u - p * u.sum(-1, keepdim=True)
        if ctx.needs_input_grad[1]:
            weighted = p * gradient
            to_q = log_q.exp().mul_(weighted.sum(-1, keepdim=True)).sub_(weighted)
        return to_p, to_q


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return P log(P / Q), elementwise, in the finer of both precisions; see :class:`CategoricalKL`."""
    dtype = torch.promote_types(p_logits.dtype, q_logits.dtype)
    return CategoricalKL.apply(p_logits.to(dtype), q_logits.to(dtype))


def gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """Return KL(N(mu_p, s_p^2) || N(mu_q, s_q^2)), elementwise, of pairs (mu, log s).

    log(s_q / s_p) + (s_p^2 + (mu_p - mu_q)^2) / (2 s_q^2) - 1 / 2; with r = log(s_p^2 / s_q^2) that is
    (exp(r) - 1 - r + (mu_p - mu_q)^2 / s_q^2) / 2, which loses no digits where r is small.
    """
    log_ratio = 2.0 * (p[1] - q[1])
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + (p[0] - q[0]).square() * torch.exp(-2.0 * q[1]))
