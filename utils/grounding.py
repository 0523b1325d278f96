"""Segmentation from captions alone: how well the attention of a noun lies on what it names.

Scored where the truth is known, on synthetic scenes: the words of the reference captions are given to the captioner one
by one, and the attention before each noun is painted back through the regions to pixels. The same words are scored for
every captioner, whatever it would say itself.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from data.annotations import AnnotatedImage
from data.datasets import CaptionDataset
from data.loading import CaptionBatches, Visuals, in_order, loader
from data.scenery.classes import CLASSES
from data.synthetic import REQUEST, Truth, read_truth
from data.vocabulary import Vocabulary
from models.captioner import Captioner
from utils.devices import autocast
from utils.inference import LOOKED_AT, look
from utils.visualize import paint

SCORES = ("pointing", "IoU", "chance")


def known_truth(dataset: CaptionDataset) -> dict[str, Truth]:
    """File name to what is true of the image; empty where that is not known, as of all real data sets."""
    root = dataset.image_root.parent
    ours = all((root / name).exists() for name in ("truth.json", REQUEST))  # as `write_dataset` leaves both
    return read_truth(root) if ours else {}


@torch.inference_mode()
def ground(
    captioner: Captioner,
    vocabulary: Vocabulary,
    visuals: Visuals,
    images: Sequence[AnnotatedImage],
    truths: Mapping[str, Truth],
    precision: str,
    views: int = 1,
    max_words: int = 30,
) -> dict[str, float]:
    """`pointing`, `IoU` and `chance` of the nouns' attention, means over the classes that nouns name.

    - pointing: how often a pixel drawn from those with the highest attention lies on the object (the pointing game of
      Zhang et al., ECCV 2016, with ties shared out);
    - IoU: of the object and the pixels with attention above the middle between its lowest and its highest;
    - chance: the object's share of the image, which is what even attention has in both.

    Images are seen in so many `views`, as for captions; of a caption the first `max_words` words count. Empty where
    `truths` are, and where no word that the captioner knows names a class.
    """
    if not truths:
        return {}
    device = captioner.encoder.mean.device
    captioner.eval()
    batches = CaptionBatches(images, visuals, vocabulary, max_words)
    keys = in_order(batches.rows, LOOKED_AT)
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for batch in loader(batches, keys, workers=0):
        on_device = batch.to(device)
        visual = look(captioner, on_device.visuals, views, precision)
        with autocast(device, precision):
            output = captioner(visual, on_device.tokens[:, :-1], on_device.image_of)
        attention = output.attention.float().cpu().numpy()
        owners = batch.rows[batch.image_of].tolist()
        for place, row in enumerate(dict.fromkeys(owners)):
            if images[row].filename not in truths:  # a picture that someone put beside ours
                continue
            mine = np.flatnonzero(batch.image_of.numpy() == place)
            words = [vocabulary.words[token] for token in batch.tokens[mine, 1:].flatten().tolist()]
            looks = attention[mine].reshape(len(words), -1)
            for name, scores in score_nouns(words, looks, visuals.masks(row), truths[images[row].filename]).items():
                found[name] += scores
    if not found:
        return {}
    means = np.mean([np.mean(scores, 0) for scores in found.values()], 0)
    return dict(zip(SCORES, means.tolist(), strict=True))


def score_nouns(
    words: Sequence[str], attention: np.ndarray, masks: np.ndarray | None, truth: Truth
) -> dict[str, list[tuple[float, float, float]]]:
    """Class to (pointing, IoU, chance) of each of `words` that names it.

    `attention` float [len(words), N], `masks` as `paint` takes them. A word that names two classes of the scene
    ("track") is right on either, and counts for the first.
    """
    named: dict[str, list[str]] = defaultdict(list)
    for name, nouns in truth.nouns.items():
        for noun in nouns:
            named[noun].append(name)
    places = [place for place, word in enumerate(words) if word in named]
    scores: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    if places:
        classes = truth.mask
        for place, looked in zip(places, paint(attention[places], masks), strict=True):
            names = named[words[place]]
            there = np.isin(classes, [CLASSES.index(name) for name in names])
            scores[names[0]].append(score_map(looked, there))
    return scores


def score_map(looked: np.ndarray, there: np.ndarray) -> tuple[float, float, float]:
    """(pointing, IoU, chance) of attention float [h, w] against an object's mask bool [H, W] of the same image.

    >>> score_map(np.array([[0.7, 0.1], [0.1, 0.1]]), np.array([[True, True], [False, False]]))
    (1.0, 0.5, 0.5)
    """
    rows, columns = (np.arange(have) * want // have for have, want in zip(there.shape, looked.shape, strict=True))
    looked = looked[rows][:, columns]
    low, high = looked.min(), looked.max()
    chosen = looked >= (low + high) / 2
    iou = (chosen & there).sum() / (chosen | there).sum()
    return float(there[looked == high].mean()), float(iou), float(there.mean())
