"""Captions for images with a trained captioner: one path for validation, eval.py and caption.py."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.errors import UserError
from data.loading import Readable, in_order, visual_loader
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from models.decoding import Hypothesis, beam_search, greedy, sample
from models.pooling import Visual
from models.runtime import translated
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


def caption_rows(
    captioner: Captioner,
    vocabulary: Vocabulary,
    visuals: Readable[Visual],
    rows: Sequence[int],
    decoding: DecodingConfig,
    precision: str,
    batch_size: int = 64,
    what: str = "captions",
) -> Iterator[list[Caption]]:
    """For each of `rows`, in order, its captions, best first, under a progress bar named `what`.

    A beam gives `beam_size` captions an image, sampling `samples`, anything else one.
    """
    keys = in_order(rows, batch_size)
    chunks = track(visual_loader(visuals, keys, workers=0), len(keys), what)
    with translated(captioner.encoder, len(rows) * decoding.views, precision):
        for key, chunk in zip(keys, chunks, strict=True):
            yield from caption_batch(captioner, vocabulary, chunk, decoding, precision, seed=key.rows[0])


@torch.inference_mode()
def caption_batch(
    captioner: Captioner,
    vocabulary: Vocabulary,
    visual: Visual,
    decoding: DecodingConfig,
    precision: str,
    seed: int,
) -> list[list[Caption]]:
    """The captions of each image of a batch, best first; `seed` fixes what sampling draws."""
    device = captioner.encoder.mean.device
    captioner.eval()
    with autocast(device, precision):
        found = decode(captioner, visual.to(device), decoding, seed)
    return [[Caption(vocabulary.decode(h.tokens), h.score, h.attention.numpy()) for h in image] for image in found]


def decode(captioner: Captioner, visual: Visual, decoding: DecodingConfig, seed: int) -> list[list[Hypothesis]]:
    """The hypotheses for each image of a batch by the configured method; `seed` fixes what sampling draws."""
    decoder, most = captioner.decoder, decoding.max_words
    seen = visual._replace(content=captioner.features(visual.content, decoding.views))
    match decoding.method:
        case "beam":
            return beam_search(decoder, captioner.regions(seen), decoding.beam_size, most, decoding.length_penalty)
        case "greedy":
            found = greedy(decoder, captioner.regions(seen), most)
        case "parallel":
            if captioner.speaker is None:
                raise UserError("decoding.method=parallel wants a captioner with a loss of head: parallel")
            found = captioner.speaker.say(seen.content)
        case "sample":
            generator = torch.Generator(visual.content.device).manual_seed(seed)
            if captioner.draws_codes:
                copies = seen.repeated(decoding.samples)
                found = greedy(decoder, captioner.regions(copies, 1, decoding.temperature, generator), most)
            else:
                regions = captioner.regions(seen)
                found = sample(decoder, regions, most, decoding.temperature, generator, decoding.samples)
            groups = (found[i : i + decoding.samples] for i in range(0, len(found), decoding.samples))
            return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in groups]
    return [[hypothesis] for hypothesis in found]
