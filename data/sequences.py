"""Sequences: an image's one caption as bare words, for a head that says all of them at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from data.annotations import AnnotatedImage
from data.loading import Batch
from models.tokens import PAD


class Sequences:
    """Of each image the caption that is most like all its captions, for `ctc_loss` over `slots` of logits.

    One, since slots that do not see what the others say would mix the words of several (the multimodality problem: Gu
    et al., ICLR 2018). `target` int64 [B, S] without `<start>` and `<end>`, padded with `<pad>`; `target_lengths` and
    `input_lengths` [B]; `captions`, for the score, are those of each image as they were written.
    """

    gives = ("target", "target_lengths", "input_lengths", "captions")

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Any]:
        """The sequences of a batch with these images."""
        groups: list[list[tuple[list[int], float]]] = [[] for _ in images]
        rows = (part.tolist() for part in (batch.tokens, batch.image_of, batch.weight))
        for tokens, image, times in zip(*rows, strict=True):
            groups[image].append(([token for token in tokens if token != PAD][1:-1], times))
        chosen = [torch.tensor(most_like_all(group)) for group in groups]
        return {
            "target": pad_sequence(chosen, batch_first=True, padding_value=PAD),
            "target_lengths": torch.tensor([len(words) for words in chosen]),
            "input_lengths": torch.full((len(chosen),), self.slots),
            "captions": [image.captions for image in images],
        }


def most_like_all(captions: Sequence[tuple[list[int], float]]) -> list[int]:
    """The medoid of captions that stand there so many times each, the first of several.

    Likeness is the share of two captions' different words that both have; a caption is like itself, so that what stands
    there often is preferred.

    >>> most_like_all([([4, 5], 1), ([4, 6, 7], 1), ([4, 6, 7, 8], 1)])
    [4, 6, 7]
    """
    words = [set(caption) for caption, _ in captions]
    likeness = [
        sum(times * len(one & other) / len(one | other) for other, (_, times) in zip(words, captions, strict=True))
        for one in words
    ]
    return captions[likeness.index(max(likeness))][0]
