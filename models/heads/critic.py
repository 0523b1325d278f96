"""A critic of captions: whether a person wrote this one for this image."""

from typing import ClassVar

from torch import Tensor, nn

from models.heads import Seen
from models.heads.retrieval import RetrievalHead


class CriticHead(nn.Module):
    """A discriminator of image-caption pairs (Dai et al., "Diverse and Natural Image Descriptions", ICCV 2017, eq. 1).

        score = <image, text>,   probability of a person's hand = sigmoid(score)

    with the embeddings of `RetrievalHead`. What is wrong with a caption for any image lies along the image's bias.

    Args:
        channels: D. vocabulary_size: V. width: E of words, states and embeddings. dropout: on features and words.
    """

    gives: ClassVar[tuple[str, ...]] = ("pred",)

    def __init__(self, channels: int, vocabulary_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.pair = RetrievalHead(channels, vocabulary_size, width, dropout)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """`pred`, the score of each caption [P]."""
        given = self.pair(seen)
        return {"pred": (given["image_embeddings"] * given["text_embeddings"]).sum(-1)}
