"""Captions for images with a trained captioner: one path for validation, eval.py and caption.py."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from data.errors import UserError
from data.loading import Readable, in_order, visual_loader
from data.vocabulary import Vocabulary
from metrics.cider_reward import CiderReward
from models.captioner import Captioner
from models.decoding import Hypothesis, arithmetic_sample, beam_search, greedy, sample
from models.pooling import Visual, together
from models.runtime import translated
from utils.config import DecodingConfig
from utils.devices import autocast
from utils.progress import track

LOOKED_AT = 64  # images that are read and seen by the encoder at a time
CAPTIONED = 256  # images that are captioned at a time: on a CPU a fifth faster than 64, since products are larger
SAMPLED = 4096  # voters at a time: where each looked is held, 30 MB for every 1,000 of an encoder of 256 cells


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
    batch_size: int = CAPTIONED,
    what: str = "captions",
) -> Iterator[list[Caption]]:
    """For each of `rows`, in order, its captions, best first, under a progress bar named `what`.

    A beam gives up to `beam_size` captions an image, by consensus in the order of its votes, sampling `samples`,
    anything else one.
    """
    size = min(batch_size, LOOKED_AT)
    keys = in_order(rows, size)
    chunks = track(visual_loader(visuals, keys, workers=0), len(keys), what)
    seen: list[Visual] = []
    with translated(captioner, len(rows) * decoding.views, precision):
        for done, chunk in enumerate(chunks, 1):
            seen.append(look(captioner, chunk, decoding.views, precision))
            if len(seen) == batch_size // size or done == len(keys):
                first = keys[done - len(seen)].rows[0]
                yield from caption_batch(captioner, vocabulary, together(seen), decoding, precision, seed=first)
                seen.clear()


@torch.no_grad()
def look(captioner: Captioner, visual: Visual, views: int, precision: str) -> Visual:
    """A batch with features in place of images; what a GPU's memory does not hold at once is looked at in halves."""
    device = captioner.encoder.mean.device
    captioner.eval()
    visual, half = visual.to(device), len(visual.content) // 2
    with autocast(device, precision):
        try:
            return visual._replace(content=captioner.features(visual.content, views))
        except torch.OutOfMemoryError:
            if not half:
                raise
    return together([look(captioner, part, views, precision) for part in visual.split(half)])


@torch.no_grad()
def caption_batch(
    captioner: Captioner,
    vocabulary: Vocabulary,
    visual: Visual,
    decoding: DecodingConfig,
    precision: str,
    seed: int,
) -> list[list[Caption]]:
    """The captions of each image of a batch, best first; `seed` fixes what sampling draws."""
    seen = look(captioner, visual, decoding.views, precision)
    with autocast(seen.content.device, precision):
        found = decode(captioner, seen, decoding, seed)
    return [[Caption(vocabulary.decode(h.tokens), h.score, h.attention.numpy()) for h in image] for image in found]


def decode(captioner: Captioner, seen: Visual, decoding: DecodingConfig, seed: int) -> list[list[Hypothesis]]:
    """The hypotheses for each image of a batch, `seen` as features, by the configured method; `seed` as above."""
    decoder, most = captioner.decoder, decoding.max_words
    each = 1  # captions of an image in `found`
    match decoding.method:
        case "beam" | "consensus":
            regions = captioner.regions(seen)
            beams = beam_search(decoder, regions, decoding.beam_size, most, decoding.length_penalty)
            _need(all(beams))
            if decoding.method == "beam":
                return beams
            voted = []
            for part in torch.arange(len(beams), device=seen.content.device).split(max(1, SAMPLED // decoding.voters)):
                voters = arithmetic_sample(decoder, regions.select(part), most, decoding.voters)
                voted += by_consensus([beams[i] for i in part.tolist()], voters)
            return voted
        case "greedy":
            found = greedy(decoder, captioner.regions(seen), most)
        case "parallel":
            if captioner.speaker is None:
                raise UserError("decoding.method=parallel wants a captioner with a loss of head: parallel")
            found = captioner.speaker.say(seen.content)
        case "sample":
            generator, each = torch.Generator(seen.content.device).manual_seed(seed), decoding.samples
            if captioner.draws_codes:
                found = []
                for some in seen.split(max(1, CAPTIONED // each)):  # copies take as much memory as images
                    copies = some.repeated(each)
                    found += greedy(decoder, captioner.regions(copies, decoding.temperature, generator), most)
            else:
                found = sample(decoder, captioner.regions(seen), most, decoding.temperature, generator, each)
    _need(not any(math.isnan(hypothesis.score) for hypothesis in found))
    groups = (found[i : i + each] for i in range(0, len(found), each))
    return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in groups]


def _need(sound: bool) -> None:
    if not sound:
        raise UserError("no caption has a probability (NaN or overflow); train it with train.precision=fp32")


def by_consensus(beams: Sequence[list[Hypothesis]], voters: Sequence[Hypothesis]) -> list[list[Hypothesis]]:
    """Each image's captions, that most like what else the captioner would say of it first.

        caption = argmax_c  E_(y ~ p(. | image)) CIDEr-D(c, y)        over the beam's c

    which is the caption of least Bayes risk, where people's captions are as likely as p has it. The mean over `voters`,
    as many of each image side by side, stands for the expectation; every n-gram counts alike, so that no other image
    is asked.

    Reference:
        Kumar, Byrne: Minimum Bayes-Risk Decoding for Statistical Machine Translation, NAACL 2004.
    """
    each = len(voters) // len(beams)
    said = {i: [voter.tokens for voter in voters[i * each : (i + 1) * each]] for i in range(len(beams))}
    pairs = [(i, beam) for i, image in enumerate(beams) for beam in image]
    votes = iter(CiderReward(said, even=True)([beam.tokens for _, beam in pairs], [i for i, _ in pairs]).tolist())
    voted = [[(next(votes), beam) for beam in image] for image in beams]
    return [[beam for _, beam in sorted(image, key=lambda pair: -pair[0])] for image in voted]
