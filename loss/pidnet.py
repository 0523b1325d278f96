"""PIDNet: semantic, boundary and boundary-aware terms, with online hard example mining as an option."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import bounded, check_same_shape, divide, reduce, sum_terms, upcast


def resize(maps: Tensor, size: torch.Size) -> Tensor:
    """Return ``maps`` [N, C, h, w] as [N, C, H, W]: bilinear, corners aligned, in float32 at least."""
    maps = upcast(maps)
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(bounded(maps), size=size, mode="bilinear", align_corners=True)


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Return the cross entropy of each pixel, 0 where ignored: logits [N, C, H, W], target [N, H, W]."""
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")


def ohem_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int, thresh: float, min_kept: int) -> Tensor:
    """Return the mean cross entropy of the hard pixels, exactly 0.0 where there is none.

    Hard is a pixel whose true class has a probability below max(``thresh``, the ``min_kept`` + 1 smallest
    of them, or the greatest where there are fewer pixels). With few pixels this drops the easiest one; so
    does the paper's code.

    Args:
        logits: [N, C, H, W].
        target: [N, H, W] int64.
        ignore_index: label that never counts.
        thresh: probability from which a pixel is easy.
        min_kept: how many pixels are kept at least, as long as there are more.
    """
    values = pixel_cross_entropy(logits, target, ignore_index)
    with torch.no_grad():
        valid = target != ignore_index
        labels = torch.where(valid, target, 0)
        prob = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)[valid]
        hard = torch.zeros_like(valid)
        if len(prob):
            rank = min(max(min_kept, 1), len(prob) - 1) + 1
            hard[valid] = prob < prob.kthvalue(rank).values.clamp(min=thresh)
    return reduce(values, "mean", hard)


def boundary_loss(logits: Tensor, boundary: Tensor) -> Tensor:
    """Return the class-balanced binary cross entropy of a boundary map, averaged over all pixels.

    mean_i w_i BCE(x_i, y_i), w = #neg / (#pos + #neg) on boundary pixels, #pos / (#pos + #neg) on the others,
    counted over the batch; a pixel that is neither 0 nor 1 has w = 0. All-0 and all-1 maps give 0.

    Args:
        logits: [N, 1, H, W].
        boundary: [N, H, W] or [N, 1, H, W] of 0 and 1, any dtype. ValueError for any other shape.
    """
    check_same_shape(boundary if boundary.ndim == logits.ndim else boundary.unsqueeze(1), logits)
    logits = bounded(logits.squeeze(1))
    boundary = boundary.reshape(logits.shape)
    pos, neg = boundary == 1, boundary == 0
    num_pos, num_neg = pos.sum(), neg.sum()
    share = divide(num_pos.to(logits.dtype), num_pos + num_neg)
    weight = torch.where(pos, 1 - share, torch.where(neg, share, 0.0))
    return reduce(F.binary_cross_entropy_with_logits(logits, pos.to(logits.dtype), weight, reduction="none"))


class PIDNetLoss(nn.Module):
    r"""Semantic segmentation of three branches: class maps, boundaries, and classes near boundaries.

    .. math::
        L = \underbrace{b_0 CE(P, y) + b_1 CE(I, y)}_{semantic}
          + \underbrace{\lambda\, wBCE(D, y_{bd})}_{boundary}
          + \underbrace{s\, CE(I, y \text{ where } \sigma(D) > t)}_{boundary\ aware}

    with P = extra_p, I = pred, D = extra_d and wBCE of :func:`boundary_loss`. Maps are resized to the target
    (bilinear, corners aligned). CE is the mean over pixels that are not ignored; where there is none it is
    0. With ``ohem``, both CE of I are :func:`ohem_cross_entropy`, and that of P is averaged over all
    pixels, ignored ones as 0.

    Args:
        ignore_index: label that does not count.
        ohem: mine hard pixels, as the paper's training does.
        ohem_thresh: probability of the true class from which a pixel is easy.
        ohem_min_kept: how many pixels OHEM keeps at least.
        balance_weights: (b_0, b_1).
        sb_weight: s.
        bd_weight: lambda.
        bd_thresh: t.

    Shape:
        - out["extra_p"]: [N, C, h, w] logits or None (no auxiliary term); out["pred"]: [N, C, h, w] logits;
          out["extra_d"]: [N, 1, h, w] boundary logits
        - target["target"]: [N, H, W] int64; target["bd_gt"]: [N, H, W] of 0 and 1, any dtype
        - Output: scalar; with ``return_terms`` also the terms semantic, boundary, boundary_aware

    Raises:
        IndexError: a label outside the classes that is not ``ignore_index``.
        ValueError: not two balance weights.

    Reference:
        Xu, Xiong, Bhattacharyya, PIDNet, CVPR 2023 (arXiv 2206.02066), section 3.4 and eq. 3 to 5.

    Example:
        >>> out = {"extra_p": None, "pred": torch.zeros(1, 2, 2, 2), "extra_d": torch.zeros(1, 1, 2, 2)}
        >>> target = {"target": torch.tensor([[[0, 1], [255, 1]]]), "bd_gt": torch.tensor([[[1, 0], [0, 0]]])}
        >>> PIDNetLoss()(out, target, return_terms=True)[1]
        {'semantic': tensor(0.6931), 'boundary': tensor(5.1986), 'boundary_aware': tensor(0.)}
    """

    reads: ClassVar[dict[str, str]] = {
        "extra_p": "out.extra_p?",
        "pred": "out.pred",
        "extra_d": "out.extra_d",
        "target": "target.target",
        "bd_gt": "target.bd_gt",
    }

    def __init__(
        self,
        ignore_index: int = 255,
        ohem: bool = False,
        ohem_thresh: float = 0.9,
        ohem_min_kept: int = 131072,
        balance_weights: tuple[float, float] = (0.4, 1.0),
        sb_weight: float = 1.0,
        bd_weight: float = 20.0,
        bd_thresh: float = 0.8,
    ) -> None:
        super().__init__()
        if len(balance_weights) != 2:
            raise ValueError(f"balance_weights must be two numbers, for extra_p and pred, not {balance_weights}")
        self.ignore_index = ignore_index
        self.ohem = ohem
        self.ohem_thresh = ohem_thresh
        self.ohem_min_kept = ohem_min_kept
        self.balance_weights = balance_weights
        self.sb_weight = sb_weight
        self.bd_weight = bd_weight
        self.bd_thresh = bd_thresh

    def forward(
        self, out: Mapping[str, Tensor | None], target: Mapping[str, Tensor], return_terms: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compare three maps with labels and boundaries; see the class for shapes."""
        labels = target["target"].long()
        pred, extra_d, extra_p = out["pred"], out["extra_d"], out.get("extra_p")
        if pred is None or extra_d is None:
            raise ValueError("pred and extra_d must be maps; only extra_p may be None")
        pred, extra_d = resize(pred, labels.shape[1:]), resize(extra_d, labels.shape[1:])

        semantic = self.balance_weights[1] * self._main(pred, labels)
        if extra_p is not None:
            values = pixel_cross_entropy(resize(extra_p, labels.shape[1:]), labels, self.ignore_index)
            counts = None if self.ohem else labels != self.ignore_index
            semantic = semantic + self.balance_weights[0] * reduce(values, "mean", counts)
        near_boundary = extra_d.squeeze(1).sigmoid() > self.bd_thresh
        terms = {
            "semantic": semantic,
            "boundary": self.bd_weight * boundary_loss(extra_d, target["bd_gt"]),
            "boundary_aware": self.sb_weight * self._main(pred, torch.where(near_boundary, labels, self.ignore_index)),
        }
        return sum_terms(terms, return_terms)

    def _main(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of the main branch."""
        if self.ohem:
            return ohem_cross_entropy(logits, labels, self.ignore_index, self.ohem_thresh, self.ohem_min_kept)
        values = pixel_cross_entropy(logits, labels, self.ignore_index)
        return reduce(values, "mean", labels != self.ignore_index)
