"""The captioning loss: cross entropy and two regularisers of the attention over regions."""

import warnings
from typing import ClassVar

import torch
from torch import Tensor, nn

from loss.common import reduce, sum_terms, upcast
from loss.cross_entropy import cross_entropy


def doubly_stochastic(attention: Tensor, region_mask: Tensor | None = None) -> Tensor:
    """Return per caption how far each region's attention, summed over time, is from 1.

    sum_n (1 - sum_t a_tn)^2, Xu et al. 2015, equation 14.

    Args:
        attention: [B, T, N], 0 at steps that do not count.
        region_mask: bool [B, N], the regions that count; None counts all.

    Returns:
        [B].
    """
    deviation = (1.0 - attention.sum(1)).square()  # [B, N]
    return deviation.sum(1) if region_mask is None else torch.where(region_mask, deviation, 0.0).sum(1)


def attention_variance(
    attention: Tensor,
    region_count: int | Tensor,
    steps: Tensor | None = None,
    region_mask: Tensor | None = None,
) -> Tensor:
    """Return per caption the distance of the attention from the uniform one, summed over time.

    sum_t ||a_t - 1 / region_count||_2. At exactly uniform attention the gradient is 0 (the norm's
    subgradient), not NaN.

    Args:
        attention: [B, T, N], finite.
        region_count: the number of regions that the uniform attention is over, of all captions or [B] of each.
        steps: bool [B, T], the steps that count; None counts all.
        region_mask: bool [B, N], the regions that count; None counts all.

    Returns:
        [B].
    """
    if isinstance(region_count, Tensor):  # in attention's precision: 1.0 / an int64 tensor is float32
        region_count = region_count.to(attention).reshape(-1, 1, 1)
    deviation = attention - 1.0 / region_count
    if region_mask is not None:
        deviation = torch.where(region_mask[:, None], deviation, 0.0)
    norms = torch.linalg.vector_norm(deviation, dim=2)  # [B, T]
    return norms.sum(1) if steps is None else torch.where(steps, norms, 0.0).sum(1)


class custum_loss(nn.Module):  # the documented name
    """Cross entropy with doubly stochastic (DSR) and variance (AVR) regularisation of the attention.

        loss = CE + beta DSR + gamma AVR
        CE   = mean over words of -log p(word)
        DSR  = mean_b sum_n (1 - sum_t a_btn)^2
        AVR  = mean_b sum_t ||a_bt - 1 / Region_count||_2

    DSR asks that every region is looked at once in total. AVR asks for an attention near the uniform one: it
    is a norm summed over time (like a standard deviation, not a variance). Whether the paper's AVR has this
    sign was not checked against its text; here a positive gamma favours even attention.

    Which steps count: with ``ground_truth`` [B, T] and ``attention`` of the same B and T, a step whose label
    is ``ignore_index`` (padding) counts in no term, and a caption without a word is not averaged over. With
    flat ``ground_truth`` [M] nobody can tell which step is padding, so every step of ``attention`` counts.

    Args:
        use_dsr: add the DSR term.
        use_avr: add the AVR term.
        beta: weight of DSR.
        gamma: weight of AVR.
        ignore_index: label that does not count.
        label_smoothing: of the cross entropy.

    Shape:
        - predicted: logits [M, V] or [B, T, V] (or [B, V, T], where the last axis cannot be the classes).
        - ground_truth: int64 [M] or [B, T].
        - attention: [B, T, N], softmax over N.
        - Region_count: int or 0-d tensor; N unless you mean otherwise (a warning says when it is not). Or [B], the
          regions that each caption's image has, with ``region_mask`` for which they are.
        - weight: [B], how often each caption stands in the data; the same value as repeating caption b
          weight_b times: CE = sum w_b ce_bt / sum w_b n_b, DSR and AVR = sum w_b x_b / sum w_b.
        - region_mask: bool [B, N], True for a real region; the others count neither in DSR nor in AVR.
        - token_count, caption_count: divisors of CE and of DSR and AVR instead of this batch's own (which are
          sum w_b n_b and sum w_b). With those of a whole batch, the losses of its parts add up to its loss.
        - output: scalar; with ``return_terms`` (scalar, {"ce", "dsr", "avr"}), detached, beta and gamma
          applied, summing to the scalar.

    Raises:
        ValueError: shapes that do not fit; Region_count below 1; ``weight`` with flat ``ground_truth``.
        IndexError: a label outside [0, V) that is not ``ignore_index`` (torch's own kernel checks; on a GPU
            it is a device assert, so that no step waits for the answer).

    Reference:
        Zhao, Shi, Zou, "High-Resolution Remote Sensing Image Captioning Based on Structured Attention",
        TGRS 60, 2021; DSR: Xu et al., "Show, Attend and Tell", ICML 2015, equation 14.

    Example:
        >>> attention = torch.full((1, 2, 2), 0.5)                  # two words, two regions, uniform
        >>> logits, words = torch.zeros(1, 2, 4), torch.tensor([[1, 3]])
        >>> custum_loss()(logits, words, attention, 2)              # log 4 + 0 + 0
        tensor(1.3863)
    """

    reads: ClassVar[dict[str, str]] = {
        "predicted": "out.pred",
        "ground_truth": "target.target",
        "attention": "out.attention",
        "Region_count": "out.region_count",
        "weight": "target.weight?",
        "region_mask": "target.region_mask?",
        "token_count": "target.token_count?",
        "caption_count": "target.caption_count?",
    }

    def __init__(
        self,
        use_dsr: bool = True,
        use_avr: bool = True,
        beta: float = 1.0,
        gamma: float = 1.0,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
        self.use_dsr = use_dsr
        self.use_avr = use_avr
        self.beta = beta
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    @property
    def scales(self) -> dict[str, float]:
        """What each term but the cross entropy is multiplied by."""
        return {"dsr": self.beta, "avr": self.gamma}

    def DSR(self, attention: Tensor) -> Tensor:  # the documented name
        """Return the DSR term of ``attention`` [B, T, N] without beta: mean_b sum_n (1 - sum_t a_btn)^2."""
        return reduce(doubly_stochastic(upcast(attention)))

    def AVR(self, attention: Tensor, Region_count: int | Tensor) -> Tensor:  # the documented name
        """Return the AVR term of ``attention`` [B, T, N] without gamma: mean_b sum_t ||a_bt - 1/R||_2."""
        check_region_count(Region_count, attention)
        return reduce(attention_variance(upcast(attention), Region_count))

    def forward(
        self,
        predicted: Tensor,
        ground_truth: Tensor,
        attention: Tensor,
        Region_count: int | Tensor,
        *,
        weight: Tensor | None = None,
        region_mask: Tensor | None = None,
        token_count: Tensor | float | None = None,
        caption_count: Tensor | float | None = None,
        return_terms: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and with ``return_terms`` its terms; see the class."""
        if attention.ndim != 3:
            raise ValueError(f"attention must be [B, T, N], not {tuple(attention.shape)}")
        if ground_truth.ndim == 2 and len(ground_truth) != len(attention):
            raise ValueError(f"attention of {len(attention)} captions, but words of {len(ground_truth)}")
        if weight is not None and ground_truth.ndim != 2:
            raise ValueError("weight is per caption, so ground_truth must be [B, T], not flat")
        terms = {
            "ce": cross_entropy(
                predicted,
                ground_truth,
                label_smoothing=self.label_smoothing,
                ignore_index=self.ignore_index,
                class_dims=(-1, 1),
                weight=weight,
                token_count=token_count,
            )
        }
        attention = upcast(attention)
        steps = ground_truth != self.ignore_index if ground_truth.shape == attention.shape[:2] else None
        captions = None
        if steps is not None:
            attention = torch.where(steps[:, :, None], attention, 0.0)  # whatever stands at padding, NaN too
            captions = steps.any(1)  # [B]: those that have a word
        if weight is not None:
            captions = weight if captions is None else captions * weight
        if self.use_dsr:
            values = doubly_stochastic(attention, region_mask)
            terms["dsr"] = self.beta * reduce(values, "mean", captions, caption_count)
        if self.use_avr:
            check_region_count(Region_count, attention)
            values = attention_variance(attention, Region_count, steps, region_mask)
            terms["avr"] = self.gamma * reduce(values, "mean", captions, caption_count)
        return sum_terms(terms, return_terms)


def check_region_count(region_count: int | Tensor, attention: Tensor) -> None:
    """Raise ValueError for a count below 1, warn for one that is not ``attention``'s N.

    Counts of each caption, and a count on an accelerator, are not read: that would wait for the device.
    """
    if isinstance(region_count, Tensor) and (region_count.ndim or region_count.device.type != "cpu"):
        return
    if region_count < 1:
        raise ValueError(f"Region_count must be at least 1, not {region_count}")
    if region_count != attention.shape[2]:
        warnings.warn(f"Region_count {int(region_count)} is not the attention's {attention.shape[2]}", stacklevel=3)
