"""Region overlap for segmentation: Dice and IoU (Jaccard) of soft masks."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import check_choice, check_labels, reduce, upcast

MODES = ("binary", "multiclass", "multilabel")
EMPTY = ("zero", "smooth")


def dice_score(intersection: Tensor, total: Tensor, smooth: float = 0.0, eps: float = 1e-7) -> Tensor:
    """Return (I + smooth) / max(S / 2 + smooth, eps) of I = |A and B| and S = |A| + |B|.

    >>> dice_score(torch.tensor(1.0), torch.tensor(4.0))
    tensor(0.5000)
    """
    return (intersection + smooth) / (total / 2 + smooth).clamp(min=eps)


def iou_score(intersection: Tensor, total: Tensor, smooth: float = 0.0, eps: float = 1e-7) -> Tensor:
    """Return (I + smooth) / max(S - I + smooth, eps) of I = |A and B| and S = |A| + |B|.

    >>> iou_score(torch.tensor(1.0), torch.tensor(4.0))
    tensor(0.3333)
    """
    return (intersection + smooth) / (total - intersection + smooth).clamp(min=eps)


def one_channel(masks: Tensor) -> Tensor:
    """Return [N, 1, ...] as [N, ...], and anything else as it is."""
    return masks.squeeze(1) if masks.ndim > 1 else masks


def soft_masks(
    pred: Tensor, target: Tensor, mode: str, from_logits: bool = True, ignore_index: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted and true masks [N, C, M], both 0 where ignored, and which entries count
    [N, 1 or C, M].

    Args and shapes as in :class:`DiceLoss`; M is the number of pixels.
    """
    check_choice("mode", mode, MODES)
    pred = upcast(pred)
    channels = 1 if mode == "binary" else pred.shape[1]
    pixels = pred.numel() // max(len(pred) * channels, 1)
    entries = (len(pred), 1 if mode == "multiclass" else channels, pixels)
    places = (pred[:, 0] if mode == "multiclass" else one_channel(pred) if mode == "binary" else pred).shape
    if target.shape != places and (mode == "multilabel" or one_channel(target).shape != places):
        raise ValueError(f"{mode} masks {list(target.shape)} do not fit predictions {list(pred.shape)}")
    pred, target = pred.reshape(len(pred), channels, pixels), target.reshape(entries)

    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    if ignore_index is not None:
        pred = pred.masked_fill(~valid, 0.0)
    if from_logits:
        pred = pred.softmax(1) if mode == "multiclass" else pred.sigmoid()
        if ignore_index is not None:
            pred = pred.masked_fill(~valid, 0.0)
    if mode == "multiclass":
        labels = target.squeeze(1).long()
        check_labels(labels, channels, ignore_index)
        target = F.one_hot(labels.where(valid.squeeze(1), 0), channels).transpose(1, 2)
    return pred, target.to(pred.dtype).masked_fill(~valid, 0.0), valid


def overlap_loss(
    pred: Tensor,
    target: Tensor,
    score: Callable[..., Tensor],
    mode: str = "multiclass",
    smooth: float = 0.0,
    eps: float = 1e-7,
    ignore_index: int | None = None,
    log_loss: bool = False,
    from_logits: bool = True,
    classes: Sequence[int] | None = None,
    class_weights: Tensor | None = None,
    per_image: bool = False,
    empty: str = "zero",
) -> Tensor:
    """Compute :class:`DiceLoss` (``score=dice_score``) or :class:`IoULoss` (``iou_score``) as a function."""
    check_choice("empty", empty, EMPTY)
    pred, target, valid = soft_masks(pred, target, mode, from_logits, ignore_index)
    axes = (2,) if per_image else (0, 2)
    true = target.sum(axes)  # [N, C] or [C]
    scores = score(torch.min(pred, target).sum(axes), pred.sum(axes) + true, smooth, eps)
    values = -scores.clamp(min=eps).log() if log_loss else 1 - scores
    counted = valid.any(2) if per_image else valid.any(2).any(0)  # a class without a single pixel has no value
    values = torch.where(true > 0 if empty == "zero" else counted, values, 0.0)

    chosen = list(range(values.shape[-1]) if classes is None else classes)
    if class_weights is not None:
        if len(class_weights) != values.shape[-1]:
            raise ValueError(f"{len(class_weights)} class weights for {values.shape[-1]} classes")
        class_weights = class_weights.to(values)[chosen]
    return reduce(values[..., chosen], "mean", class_weights)


class _OverlapLoss(nn.Module):
    """What Dice and IoU share: options, and everything but the score."""

    reads: ClassVar[dict[str, str]] = {"pred": "out.masks", "target": "target.masks"}
    score: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        mode: str = "multiclass",
        smooth: float = 0.0,
        eps: float = 1e-7,
        ignore_index: int | None = None,
        log_loss: bool = False,
        from_logits: bool = True,
        classes: Sequence[int] | None = None,
        class_weights: Tensor | Sequence[float] | None = None,
        per_image: bool = False,
        empty: str = "zero",
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_choice("empty", empty, EMPTY)
        if mode == "binary" and (classes is not None or class_weights is not None):
            raise ValueError("mode 'binary' has one class: classes and class_weights cannot be given")
        self.mode = mode
        self.smooth = smooth
        self.eps = eps
        self.ignore_index = ignore_index
        self.log_loss = log_loss
        self.from_logits = from_logits
        self.classes = classes
        self.class_weights: Tensor | None
        weights = None if class_weights is None else torch.as_tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.per_image = per_image
        self.empty = empty

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare predicted with true masks; see the class for shapes."""
        return overlap_loss(
            pred,
            target,
            type(self).score,
            self.mode,
            self.smooth,
            self.eps,
            self.ignore_index,
            self.log_loss,
            self.from_logits,
            self.classes,
            self.class_weights,
            self.per_image,
            self.empty,
        )


class DiceLoss(_OverlapLoss):
    r"""One minus the Dice coefficient of soft masks, averaged over classes.

    .. math::
        L = \frac{\sum_c w_c (1 - D_c)}{\sum_c w_c}, \qquad
        D_c = \frac{I_c + smooth}{S_c / 2 + smooth}, \quad
        I_c = \sum_i \min(p_{ci}, t_{ci}), \quad S_c = \sum_i p_{ci} + \sum_i t_{ci}

    with sums over all pixels of the batch; for hard masks min(p, t) is p t. A class without true pixels
    counts as 0 and stays in the average, so false positives of it cost nothing, unless ``empty="smooth"``.

    Args:
        mode: "binary", "multiclass" (softmax over classes) or "multilabel" (a sigmoid per class).
        smooth: added to both sides of the fraction.
        eps: least denominator.
        ignore_index: pixels with this label do not count.
        log_loss: -log(max(D, eps)) instead of 1 - D.
        from_logits: False takes ``pred`` as probabilities.
        classes: which classes are averaged; None means all. Not with "binary".
        class_weights: w, one number per class, all of them; None means 1. Not with "binary".
        per_image: sums are per image, and the losses averaged over images.
        empty: "zero", or "smooth": a class without true pixels counts with its D, which needs ``smooth`` > 0.

    Shape:
        - pred: "binary" [N, ...] or [N, 1, ...]; else [N, C, ...]
        - target: "binary" as pred, 0 and 1 (soft allowed); "multiclass" [N, ...] int64; "multilabel" [N, C,
          ...]
        - Output: scalar

    Raises:
        ValueError: an unknown ``mode`` or ``empty``, ``classes`` with "binary", shapes or weights that do
        not fit. IndexError: a label outside the classes that is not ``ignore_index``.

    Reference:
        Milletari, Navab, Ahmadi, V-Net, 3DV 2016 (arXiv 1606.04797), section 3.

    Example:
        >>> logits = torch.tensor([[[9.0, 9.0, -9.0, -9.0], [-9.0, -9.0, 9.0, 9.0]]])
        >>> DiceLoss()(logits, torch.tensor([[0, 1, 1, 1]]))
        tensor(0.2667)
    """

    score = staticmethod(dice_score)


class IoULoss(_OverlapLoss):
    r"""One minus the intersection over union (Jaccard index) of soft masks, averaged over classes.

    .. math::
        L = \frac{\sum_c w_c (1 - J_c)}{\sum_c w_c}, \qquad
        J_c = \frac{I_c + smooth}{S_c - I_c + smooth}, \quad
        I_c = \sum_i \min(p_{ci}, t_{ci}), \quad S_c = \sum_i p_{ci} + \sum_i t_{ci}

    with everything else as in :class:`DiceLoss`. For boxes, see :class:`~loss.box_iou.BoxIoULoss`.

    Args:
        mode, smooth, eps, ignore_index, log_loss, from_logits, classes, class_weights, per_image, empty:
            as in :class:`DiceLoss`.

    Shape:
        - pred, target, Output: as in :class:`DiceLoss`

    Raises:
        ValueError, IndexError: as :class:`DiceLoss`.

    Reference:
        Rahman and Wang, Optimizing intersection-over-union in deep neural networks for image segmentation,
        ISVC 2016, eq. 3 to 5.

    Example:
        >>> logits = torch.tensor([[[9.0, 9.0, -9.0, -9.0], [-9.0, -9.0, 9.0, 9.0]]])
        >>> IoULoss()(logits, torch.tensor([[0, 1, 1, 1]]))
        tensor(0.4167)
    """

    score = staticmethod(iou_score)
