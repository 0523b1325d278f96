"""The content words of an image's captions, predicted from its features."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.heads import Seen


class ConceptHead(nn.Module):
    """Which content words an image calls for (attributes, after You et al., CVPR 2016).

        logits = W dropout(mean_n feature_n) + b,   b_c = log(p_c / (1 - p_c)) at first, p_c the mean target of c
        told   = U sigmoid(logits), U = 0 at first  what the decoder hears with every word, if it does; the logits learn
                                                    from their own loss alone

    The bias begins at the concepts' frequencies (Lin et al., ICCV 2017, section 4.1), so that the first steps are not
    spent on learning that most words are absent.

    Args:
        channels: D. frequencies: [C], strictly between 0 and 1. dropout: on the mean feature. told: the decoder's
            width; None: it is told nothing.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred",)

    def __init__(self, channels: int, frequencies: Tensor, dropout: float, told: int | None = None) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, len(frequencies))
        nn.init.zeros_(self.classifier.weight)
        with torch.no_grad():
            self.classifier.bias.copy_(torch.logit(frequencies))
        self.tell = nn.Linear(len(frequencies), told, bias=False) if told else None
        if self.tell:
            nn.init.zeros_(self.tell.weight)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`pred`, the logits [B, C], and `told` [P, told] where the decoder is told."""
        pred = self.classifier(self.dropout(seen.features.mean(1)))
        told = {"told": self._told(pred).index_select(0, seen.image_of)} if self.tell else {}
        return {"pred": pred, **told}

    def draw(self, features: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """What the decoder is told [B, told] of each image [B, h * w, D]; there is nothing to draw."""
        return self._told(self.classifier(features.mean(1)))

    def _told(self, pred: Tensor) -> Tensor:
        assert self.tell is not None
        return self.tell(pred.detach().sigmoid())
