"""Cross entropy: torch's own, with its edges mended."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import (
    along_first,
    bounded,
    check_class_weight,
    check_reduction,
    find_class_dim,
    read_pair,
    reduce,
    upcast,
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
    class_dims: tuple[int, ...] = (1, -1),
    weight: Tensor | None = None,
    token_count: Tensor | float | None = None,
) -> Tensor:
    """Return the cross entropy of logits [N, C, ...] against labels [N, ...] or probabilities [N, C, ...].

    The formula is that of :class:`CrossEntropyLoss`. The class axis is the first of ``class_dims`` that fits
    (for probabilities: the first). ``weight`` [N] says how often each entry of the first axis counts;
    ``token_count`` is the divisor of "mean" instead of this call's own. Labels out of range: IndexError, by
    torch's own kernel, so that checking them costs no further pass.
    """
    logits = upcast(logits)
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(f"probabilities {tuple(target.shape)} and logits {tuple(logits.shape)} differ in shape")
        dim = class_dims[0] % logits.ndim if logits.ndim > 1 else 0
        shape = logits.shape[:dim] + logits.shape[dim + 1 :]
        target = target.to(logits)
        logits = torch.where(target == 0, bounded(logits), logits)  # what is forbidden and not wanted takes no part
    else:
        dim = find_class_dim(logits, target, class_dims)
        shape = target.shape
        target = target.long()
    if class_weight is not None:
        check_class_weight(class_weight, logits.shape[dim])
        class_weight = class_weight.to(logits)
    # torch wants the classes on axis 1, and is fastest with them last: [N, T, C] -> [N * T, C]
    if dim != 1 and logits.ndim > 1:
        logits = logits.movedim(dim, -1).flatten(0, -2)
        target = target.movedim(dim, -1).flatten(0, -2) if target.is_floating_point() else target.flatten()
    fused = weight is None and reduction != "none"  # torch sums in the same pass
    values = F.cross_entropy(
        logits,
        target,
        weight=class_weight,
        ignore_index=ignore_index,
        reduction="sum" if fused else "none",
        label_smoothing=label_smoothing,
    )
    if reduction == "sum" and fused:
        return values
    # an ignored label has the value 0 from torch; here it also leaves the divisor, sum_i w_{y_i}
    if target.is_floating_point():
        counted = torch.ones(shape, dtype=values.dtype, device=values.device)
    else:
        counted = (target != ignore_index).reshape(shape)
        if class_weight is not None:
            counted = torch.where(counted, class_weight[target.reshape(shape).where(counted, 0)], 0.0)
    if not fused:
        values = values.reshape(shape)
        if weight is not None:
            weight = along_first(weight, values)
            counted = counted * weight
    return reduce(values, reduction, weight, counted.sum() if token_count is None else token_count)


class CrossEntropyLoss(nn.Module):
    """Cross entropy with label smoothing, ignored labels and class weights.

    With q = (1 - e) onehot(y) + e / C, class weights w and p = softmax(logits):

        loss = sum_i [(1 - e) w_{y_i} (-log p_{y_i}) + e / C sum_c w_c (-log p_c)] / sum_i w_{y_i}

    over the entries i whose label is not ignored; exactly 0.0 if there is none. A target of probabilities
    stands in place of the onehot, and the divisor is the number of entries.

    Args:
        label_smoothing: e in [0, 1]; 0.0 is plain cross entropy.
        ignore_index: label that does not count.
        class_weight: w, one number per class [C]; None means 1. (The ``weight`` of a YAML entry is another
            thing: the weight of the whole loss.)
        reduction: "mean", "sum" or "none".
        class_dim: the axis of the classes; None takes axis 1, and the last axis where only that one fits
            ([B, T, V] with [B, T]). A model whose classes come last should say -1: with T == V both fit.

    Shape:
        - out: logits [N, C, ...], or a mapping with them under "pred".
        - target: int64 labels [N, ...] or probabilities [N, C, ...], or a mapping with them under "target",
          and optionally "weight" and "token_count".
        - weight: [N], how often each entry of the first axis counts. token_count: the divisor of "mean"
          instead of this call's own, for a part of a larger batch.
        - output: scalar; [N, ...] with reduction "none". float32, or float64 for float64 logits.

    Raises:
        ValueError: shapes that do not fit, label_smoothing outside [0, 1], unknown reduction.
        IndexError: a label outside [0, C) that is not ``ignore_index``.

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> CrossEntropyLoss()(logits, torch.tensor([1, -100]))
        tensor(0.6931)
    """

    reads: ClassVar[dict[str, str]] = {
        "pred": "out.pred",
        "target": "target.target",
        "weight": "target.weight?",
        "token_count": "target.token_count?",
    }

    def __init__(
        self,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weight: Tensor | Sequence[float] | None = None,
        reduction: str = "mean",
        class_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.class_dims = (1, -1) if class_dim is None else (class_dim,)
        self.class_weight: Tensor | None
        weights = None if class_weight is None else torch.as_tensor(class_weight)
        self.register_buffer("class_weight", weights, persistent=False)

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
        return cross_entropy(
            pred,
            labels,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            class_weight=self.class_weight,
            reduction=self.reduction,
            class_dims=self.class_dims,
            weight=weight,
            token_count=token_count,
        )
