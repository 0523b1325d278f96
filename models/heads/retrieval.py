"""Images and captions in one space."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from models.heads import Seen
from models.tokens import PAD


class RetrievalHead(nn.Module):
    """Embeddings of images and of their captions, to be found by each other (after Faghri et al., VSE++, BMVC 2018).

        image = W LN(mean_n feature_n),   text = mean over words of the hidden states of a GRU

    Args:
        channels: D. vocabulary_size: V. width: E of words, states and embeddings. dropout: on features and words.
    """

    gives: ClassVar[tuple[str, ...]] = ("image_embeddings", "text_embeddings", "embeddings")

    def __init__(self, channels: int, vocabulary_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.LayerNorm(channels), nn.Dropout(dropout), nn.Linear(channels, width))
        self.words = nn.Embedding(vocabulary_size, width, padding_idx=PAD)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, seen: Seen) -> dict[str, Tensor]:
        """A pair for each caption: `image_embeddings`, `text_embeddings` [P, E], and both as `embeddings` [2, P, E]."""
        text = self.embed_text(seen.tokens)
        # index_select, since the gradient of image[image_of] adds up in whatever order the threads come
        image = self.embed_images(seen.features).index_select(0, seen.image_of)
        return {"image_embeddings": image, "text_embeddings": text, "embeddings": torch.stack([image, text])}

    def embed_images(self, features: Tensor) -> Tensor:
        """Embeddings [B, E] of images with features [B, h * w, D]."""
        return self.image(features.mean(1))

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Embeddings [P, E] of captions `tokens` int64 [P, T], padded with `<pad>`."""
        states, _ = self.gru(self.dropout(self.words(tokens)))
        real = (tokens != PAD)[..., None].to(states.dtype)
        return (states * real).sum(1) / real.sum(1)
