"""Connectionist temporal classification: torch's own, with its edges mended."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss.common import check_reduction, divide, reduce, upcast


def check_lengths(lengths: Tensor, name: str, batch: int, most: int) -> None:
    """Raise ValueError unless ``lengths`` are ``batch`` numbers from 0 to ``most``."""
    if lengths.shape != (batch,):
        raise ValueError(f"{batch} sequences need as many {name}, not the shape {tuple(lengths.shape)}")
    if batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= most:
        raise ValueError(f"{name} must be from 0 to {most}, not {lengths.tolist()}")


def check_targets(targets: Tensor, target_lengths: Tensor, num_classes: int, blank: int) -> None:
    """Raise ValueError where a label within the lengths is the blank or no class; padding is not read."""
    if targets.ndim == 2:
        positions = torch.arange(targets.shape[1], device=targets.device)
        labels = targets[positions < target_lengths.to(targets.device)[:, None]]
    else:
        total = int(target_lengths.sum())
        if len(targets) != total:
            raise ValueError(f"{len(targets)} labels, but target_lengths of {total} in all")
        labels = targets
    if (labels == blank).any():
        raise ValueError(f"the blank, {blank}, stands among the targets")
    if ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"a target is outside [0, {num_classes})")


def mended(gradient: Tensor | None, feasible: Tensor) -> Tensor | None:
    """Return torch's gradient [T, N, C], with 0 where a loss is inf or a probability 0: it has NaN there."""
    return gradient if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0) * feasible


class CTCLoss(nn.Module):
    """Connectionist temporal classification: the label sequence over all its alignments to the input.

    With A(y) the paths over labels and blanks that collapse to the target y:

        loss = mean_n [-log sum_{path in A(y_n)} prod_t p_t(path_t)] / max(len(y_n), 1)

    "sum" and "none" do not divide by the length. With weights, the loss is what repeating a sequence would give.

    Args:
        blank: the class of the blank.
        reduction: "mean", "sum" or "none".
        zero_infinity: count a target that no alignment can give (too long for its input) as 0. Otherwise its
            loss is inf, as it must be; either way it has a zero gradient and leaves the others' alone.
        from_logits: the input is logits. False: it is log-probabilities, which must be normalised; the
            gradient is then torch's, that of the logits behind a log_softmax.
        batch_first: the input is [N, T, C] instead of [T, N, C].

    Shape:
        - logits: [T, N, C], or [N, T, C] with ``batch_first``.
        - targets: int64 [N, S] padded, or [sum of target_lengths] concatenated.
        - input_lengths, target_lengths: int64 [N], at most T and S.
        - weight: [N], how often each sequence counts; None: once.
        - output: scalar, or [N] with reduction "none".

    Raises:
        ValueError: the blank or what is no class within ``target_lengths``; wrong number of axes or lengths;
            lengths beyond the input or the targets; unknown reduction.

    Reference:
        Graves et al., "Connectionist Temporal Classification", ICML 2006, equations 3 and 8.

    Example:
        >>> logits = torch.zeros(2, 1, 3)                           # paths to "1": 1-, -1, 11; each 1 / 9
        >>> CTCLoss()(logits, torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1]))
        tensor(1.0986)
    """

    reads: ClassVar[dict[str, str]] = {
        "logits": "out.pred",
        "targets": "target.target",
        "input_lengths": "target.input_lengths",
        "target_lengths": "target.target_lengths",
        "weight": "target.weight?",
    }

    def __init__(
        self,
        blank: int = 0,
        reduction: str = "mean",
        zero_infinity: bool = False,
        from_logits: bool = True,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.blank = blank
        self.reduction = reduction
        self.zero_infinity = zero_infinity
        self.from_logits = from_logits
        self.batch_first = batch_first

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see the class."""
        if logits.ndim != 3:
            raise ValueError(f"the input must have three axes, not the shape {tuple(logits.shape)}")
        logits = upcast(logits)
        input_lengths, target_lengths = torch.as_tensor(input_lengths), torch.as_tensor(target_lengths)
        if self.batch_first:
            logits = logits.transpose(0, 1)
        steps, batch, classes = logits.shape
        check_lengths(input_lengths, "input_lengths", batch, steps)
        check_lengths(target_lengths, "target_lengths", batch, targets.shape[-1])
        check_targets(targets, target_lengths, classes, self.blank)
        # a view of the caller's log-probabilities, so that the hook below is not on the caller's tensor
        log_probs = logits.log_softmax(2) if self.from_logits else logits.view_as(logits)
        if batch == 0:  # torch refuses it
            return reduce(log_probs.sum((0, 2)), self.reduction)
        values = F.ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            reduction="none",
            zero_infinity=self.zero_infinity,
        )
        if log_probs.requires_grad:
            feasible = values.detach().isfinite()[None, :, None]
            log_probs.register_hook(lambda gradient: mended(gradient, feasible))
        if self.reduction == "mean":
            values = divide(values, target_lengths.to(values))
        return reduce(values, self.reduction, weight)
