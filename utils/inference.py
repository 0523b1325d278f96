"""Captions for images with a trained captioner: one path for validation, eval.py and caption.py."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.loading import BatchKey, Visuals, visual_loader
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from models.decoding import beam_search
from utils.config import DecodingConfig
from utils.devices import autocast
from utils.progress import track


class Caption(NamedTuple):
    """A caption of one image.

    `score` is its length-normalised log-probability; `attention` float32 [words, N] says where each word looked.
    """

    words: list[str]
    score: float
    attention: np.ndarray

    @property
    def text(self) -> str:
        """The words with spaces between them."""
        return " ".join(self.words)


@torch.inference_mode()
def caption_rows(
    captioner: Captioner,
    vocabulary: Vocabulary,
    visuals: Visuals,
    rows: Sequence[int],
    decoding: DecodingConfig,
    precision: str,
    batch_size: int = 64,
    workers: int = 0,
    what: str = "captions",
) -> Iterator[list[Caption]]:
    """For each of `rows`, in order, its `beam_size` best captions, best first; under a progress bar named `what`."""
    device = captioner.encoder.mean.device
    captioner.eval()
    keys = [BatchKey(0, list(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
    for chunk in track(visual_loader(visuals, keys, workers), len(keys), what):
        with autocast(device, precision):
            regions = captioner.regions(chunk.to(device))
            found = beam_search(
                captioner.decoder, regions, decoding.beam_size, decoding.max_words, decoding.length_penalty
            )
        for hypotheses in found:
            yield [Caption(vocabulary.decode(h.tokens), h.score, h.attention.numpy()) for h in hypotheses]
