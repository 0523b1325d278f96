"""Focal losses: sigmoid (independent classes) and softmax (one class of several)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import (
    along_first,
    bounded,
    check_class_weight,
    check_labels,
    check_reduction,
    find_class_dim,
    read_pair,
    reduce,
    upcast,
)
from loss.cross_entropy import cross_entropy


def sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    class_dims: tuple[int, ...] = (1, -1),
    weight: Tensor | None = None,
    token_count: Tensor | float | None = None,
) -> Tensor:
    """Return the focal loss of independent classes; all as in :class:`SigmoidFocalLoss`."""
    logits = upcast(logits)
    counts: Tensor | None = None  # which elements count, broadcastable to logits
    classes = 1
    if target.ndim == logits.ndim - 1 and not target.is_floating_point():
        dim = find_class_dim(logits, target, class_dims)
        classes = logits.shape[dim]
        check_labels(target, classes, ignore_index)
        counts = (target != ignore_index).unsqueeze(dim)
        index = target.long().unsqueeze(dim).where(counts, 0)
        target = torch.zeros_like(logits).scatter_(dim, index, counts.to(logits.dtype))
    elif target.shape != logits.shape:
        raise ValueError(f"target {tuple(target.shape)} does not fit logits {tuple(logits.shape)}")
    elif token_count is not None:
        raise ValueError("token_count is a number of labels, and the target is no labels but as large as the logits")
    target = target.to(logits.dtype)
    logits = bounded(logits)
    miss = torch.addcmul(target, logits.sigmoid(), torch.rsub(target, 1.0, alpha=2.0))  # 1 - p_t = t + p (1 - 2 t)
    if not float(gamma).is_integer():  # a power below 1 has an infinite slope at 0, and rounding may end below 0
        miss = miss.clamp(min=torch.finfo(miss.dtype).tiny)
    values = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * miss.pow(gamma)
    if alpha is not None and alpha >= 0:
        values = values * torch.rsub(target, 1.0 - alpha, alpha=1.0 - 2.0 * alpha)  # alpha t + (1 - alpha)(1 - t)
    if weight is not None:
        weight = along_first(weight, values)
        counts = weight if counts is None else counts * weight
    return reduce(values, reduction, counts, None if token_count is None else token_count * classes)


class SigmoidFocalLoss(nn.Module):
    r"""Focal loss of independent yes/no classes, as ``torchvision.ops.sigmoid_focal_loss`` defines it.

    With p = sigmoid(logits), p_t = p t + (1 - p)(1 - t), alpha_t = alpha t + (1 - alpha)(1 - t):

        loss = mean over all elements of alpha_t (1 - p_t)^gamma BCE(logits, t)

    The gradient stays finite for gamma < 1 where p_t is 1, and for infinite logits.

    Args:
        alpha: in [0, 1], the weight of t = 1 against t = 0; None or a negative number switches it off.
        gamma: >= 0; 0 leaves alpha-weighted BCE.
        reduction: "mean" (over all elements), "sum" or "none".
        ignore_index: label that does not count, where the target is of labels.
        class_dim: the axis of the classes, where the target is of labels; None takes axis 1, and the last
            axis where only that one fits.

    Shape:
        - out: logits of any shape, or a mapping with them under "pred".
        - target: the same shape, numbers in [0, 1]; or int64 labels with one axis less, made one-hot inside;
          or a mapping with either under "target", and optionally "weight" and "token_count".
        - weight: [N], how often each entry of the first axis counts. token_count: the number of labels that
          "mean" divides by (times C) instead of this call's own, for a part of a larger batch.
        - output: scalar, or the shape of the logits with reduction "none".

    Raises:
        ValueError: shapes that do not fit, alpha above 1, gamma below 0, unknown reduction.
        IndexError: a label outside [0, C) that is not ``ignore_index``.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5.

    Example:
        >>> SigmoidFocalLoss()(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))     # (.25 + .75) / 4 log 2 / 2
        tensor(0.0866)
    """

    reads: ClassVar[dict[str, str]] = {
        "pred": "out.pred",
        "target": "target.target",
        "weight": "target.weight?",
        "token_count": "target.token_count?",
    }

    def __init__(
        self,
        alpha: float | None = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        ignore_index: int = -100,
        class_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_gamma(gamma)
        if alpha is not None and alpha > 1:
            raise ValueError(f"alpha must be in [0, 1], or None or negative for none, not {alpha}")
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.class_dims = (1, -1) if class_dim is None else (class_dim,)

    def forward(
        self,
        out: Tensor | Mapping[str, Tensor],
        target: Tensor | Mapping[str, Tensor],
        *,
        weight: Tensor | None = None,
        token_count: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss; see the class."""
        pred, labels, weight, token_count = read_pair(out, target, weight, token_count)
        return sigmoid_focal_loss(
            pred,
            labels,
            alpha=self.alpha,
            gamma=self.gamma,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            class_dims=self.class_dims,
            weight=weight,
            token_count=token_count,
        )


def softmax_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    ignore_index: int = -100,
    class_dims: tuple[int, ...] = (1, -1),
    weight: Tensor | None = None,
    token_count: Tensor | float | None = None,
) -> Tensor:
    """Return the focal loss of one class of several; all as in :class:`SoftmaxFocalLoss`."""
    if labels.is_floating_point():
        raise ValueError("labels must be class indices; several classes at once want focal_loss")
    # -log p_t; an ignored label has 0 here
    surprise = cross_entropy(logits, labels, ignore_index=ignore_index, class_dims=class_dims, reduction="none")
    # 1 - p_t, a constant where p_t is 0 (inf * 0 would make its gradient NaN), and above 0, where a power
    # below 1 has no infinite slope
    miss = torch.where(surprise.isinf(), 1.0, -torch.expm1(-surprise))
    miss = miss.clamp(min=torch.finfo(surprise.dtype).tiny)
    values = miss.pow(gamma) * surprise
    valid = labels != ignore_index
    if isinstance(alpha, Tensor) and alpha.ndim:
        check_class_weight(alpha, logits.shape[find_class_dim(logits, labels, class_dims)])
        values = values * alpha.to(values)[labels.where(valid, 0)]
    elif alpha is not None:
        values = values * alpha
    counts = valid if weight is None else valid * along_first(weight, values)
    return reduce(values, reduction, counts, token_count)


class SoftmaxFocalLoss(nn.Module):
    r"""Focal loss of one class of several: cross entropy that counts well-classified entries less.

    With p_t the softmax probability of the label's class:

        loss = mean over entries not ignored of -alpha (1 - p_t)^gamma log p_t

    A scalar alpha only scales the loss; to balance the classes give one alpha per class. log p_t comes from
    log_softmax, so a p_t near 0 keeps its gradient (log(p_t + 1e-8) would lose it, and overflow in half).
    Several labels at once want the sigmoid form, ``focal_loss``.

    Args:
        alpha: one factor, one per class [C], or None for 1.
        gamma: >= 0; 0 leaves alpha-weighted cross entropy.
        reduction: "mean", "sum" or "none".
        ignore_index: label that does not count.
        class_dim: the axis of the classes; None takes axis 1, and the last axis where only that one fits
            ([B, T, V] with [B, T]). A model whose classes come last should say -1: with T == V both fit.

    Shape:
        - logits: [N, C, ...] (or as ``class_dim`` says).
        - labels: int64, the shape of the logits without the class axis.
        - weight: [N], how often each entry of the first axis counts. token_count: the divisor of "mean"
          instead of this call's own, for a part of a larger batch.
        - output: scalar, or the labels' shape with reduction "none".

    Raises:
        ValueError: shapes that do not fit, gamma below 0, unknown reduction.
        IndexError: a label outside [0, C) that is not ``ignore_index``.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4, with softmax for sigmoid.

    Example:
        >>> SoftmaxFocalLoss()(torch.zeros(1, 2), torch.tensor([0]))              # .25 * .5^2 * log 2
        tensor(0.0433)
    """

    reads: ClassVar[dict[str, str]] = {
        "logits": "out.pred",
        "labels": "target.target",
        "weight": "target.weight?",
        "token_count": "target.token_count?",
    }

    def __init__(
        self,
        alpha: float | Tensor | Sequence[float] | None = 0.25,
        gamma: float = 2.0,
        reduction: str = "mean",
        ignore_index: int = -100,
        class_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        check_gamma(gamma)
        self.alpha: float | Tensor | None
        if alpha is None or isinstance(alpha, int | float):
            self.alpha = alpha
        else:
            self.register_buffer("alpha", torch.as_tensor(alpha), persistent=False)
        self.gamma = gamma
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.class_dims = (1, -1) if class_dim is None else (class_dim,)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        weight: Tensor | None = None,
        token_count: Tensor | float | None = None,
    ) -> Tensor:
        """Return the loss; see the class."""
        return softmax_focal_loss(
            logits,
            labels,
            alpha=self.alpha,
            gamma=self.gamma,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            class_dims=self.class_dims,
            weight=weight,
            token_count=token_count,
        )


def check_gamma(gamma: float) -> None:
    """Raise ValueError for a gamma below 0."""
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
