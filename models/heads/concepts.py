"""The content words of an image's captions, predicted from its features."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.heads import Seen


class ConceptHead(nn.Module):
    """Which content words an image calls for (attributes, after You et al., CVPR 2016).

        logits = W dropout(mean_n feature_n) + b,   b_c = log(p_c / (1 - p_c)) at first, p_c the mean target of c

    The bias begins at the concepts' frequencies (Lin et al., ICCV 2017, section 4.1), so that the first steps are not
    spent on learning that most words are absent.

    Args:
        channels: D. frequencies: [C], strictly between 0 and 1. dropout: on the mean feature.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred",)

    def __init__(self, channels: int, frequencies: Tensor, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, len(frequencies))
        nn.init.zeros_(self.classifier.weight)
        with torch.no_grad():
            self.classifier.bias.copy_(torch.logit(frequencies))

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`pred`, the logits [B, C]."""
        return {"pred": self.classifier(self.dropout(seen.features.mean(1)))}
