"""Sequences: captions as bare words, for a head that says all of them at once and finds itself which goes where."""

from collections.abc import Sequence
from typing import Any

import torch

from data.annotations import AnnotatedImage
from data.loading import Batch
from data.pairs import Pairs
from models.tokens import END, PAD


class Sequences:
    """The words of each caption, without `<start>` and `<end>`, for `ctc_loss` over `slots` of logits.

    `target` int64 [P, S] padded with `<pad>`, `target_lengths` and `input_lengths` [P]; `labels` and `weight` [P] as of
    `Pairs`; `captions`, for the score, are those of each image as they were written.
    """

    gives = ("target", "target_lengths", "input_lengths", "captions", *Pairs.gives)

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Any]:
        """The sequences of a batch with these images."""
        words = batch.tokens[:, 1:]
        words = words.masked_fill(words == END, PAD)
        return {
            "target": words,
            "target_lengths": (words != PAD).sum(1),
            "input_lengths": torch.full((len(words),), self.slots),
            "captions": [image.captions for image in images],
            **Pairs().read(images, batch),
        }
