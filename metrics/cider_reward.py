"""CIDEr-D of many captions at once, with the document frequencies of a fixed set of references."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from metrics.ngrams import ORDERS, Counts, NgramIndex, Sentence

SIGMA = 6.0  # width of the length penalty, in words


class _Vectors(NamedTuple):
    """The references' TF-IDF vectors of one n-gram order; K entries sorted by (image, n-gram)."""

    key: np.ndarray  # [K] image * n-grams + n-gram
    weight: np.ndarray  # [K] TF-IDF
    sentence: np.ndarray  # [K]
    norm: np.ndarray  # [S] Euclidean norm of each reference's vector
    idf: np.ndarray  # [n-grams + 1], the last for n-grams that stand in no reference


class CiderReward:
    r"""CIDEr-D (the `CIDEr` of coco-caption) against references whose vectors are computed once.

    For a hypothesis c and the references r_1..r_m of its image, with g_n the vector of n-gram counts times
    idf = ln(images) - ln(max(1, images in whose references the n-gram stands)) and l the number of bigrams:

        CIDEr-D(c) = 10 / 4 * sum_n 1/m sum_j exp(-(l_c - l_j)^2 / (2 * 6^2))
                                               * min(g_n(c), g_n(r_j)) . g_n(r_j) / (|g_n(c)| |g_n(r_j)|)

    Built on the references that are scored, it gives the metric. Built on the train split, it is the reward
    of self-critical training, whose document frequencies must not depend on the batch. Words are whatever can
    be compared: strings, or token ids. For self-critical training close references and hypotheses alike with
    the end token and hand over nothing past it: without it, a caption that breaks off (`a road near a`) costs
    nothing.

    Args:
        references: per image its sentences, each a sequence of words.
        even: every n-gram counts alike (idf = 1), so that an image's scores do not depend on the other images.

    Raises:
        ValueError: there is no image, or an image has no reference.

    Reference:
        Vedantam, Zitnick, Parikh: CIDEr: Consensus-based Image Description Evaluation, CVPR 2015, section 6.
        Rennie et al.: Self-critical Sequence Training for Image Captioning, CVPR 2017.

    Example:
        >>> reward = CiderReward({"a": [["two", "planes"]], "b": [["a", "river"]]})
        >>> reward([["two", "planes"], ["a", "plane"], []], ["a", "a", "b"]).tolist()
        [5.0, 0.0, 0.0]
    """

    def __init__(self, references: Mapping[Any, Sequence[Sentence]], even: bool = False):
        self._even = even
        empty = [key for key, sentences in references.items() if not sentences]
        if not references or empty:
            raise ValueError(f"every image needs a reference; none for {empty}" if empty else "no references")
        self._image = {key: image for image, key in enumerate(references)}
        self._references = np.array([len(sentences) for sentences in references.values()])
        sentences = [sentence for group in references.values() for sentence in group]
        self._bigrams = _bigrams(sentences)
        self._index = NgramIndex(sentences)
        image = np.repeat(np.arange(len(references)), self._references)
        self._vectors = [
            self._vectorise(counts, size, image)
            for counts, size in zip(self._index.counts, self._index.sizes, strict=True)
        ]

    def _vectorise(self, counts: Counts, size: int, image: np.ndarray) -> _Vectors:
        key = image[counts.sentence] * size + counts.ngram
        frequency = np.bincount(np.unique(key) % max(size, 1), minlength=size)
        idf = np.ones(size + 1) if self._even else np.log(len(self._image)) - np.log(np.append(frequency, 1))
        weight = counts.times * idf[counts.ngram]
        order = np.argsort(key, kind="stable")
        norm = np.sqrt(np.bincount(counts.sentence, weight**2, minlength=len(image)))
        return _Vectors(key[order], weight[order], counts.sentence[order], norm, idf)

    def __call__(self, hypotheses: Sequence[Sentence], keys: Sequence[Hashable]) -> np.ndarray:
        """Score hypotheses, each against the references of its image.

        Args:
            hypotheses: P sentences.
            keys: P keys of `references`; an image may bring several hypotheses.

        Returns:
            float64 [P], each in [0, 10].

        Raises:
            KeyError: a key that has no references.
        """
        image = np.array([self._image[key] for key in keys], np.int64)
        bigrams = _bigrams(hypotheses)
        score = np.zeros(len(hypotheses))
        of_orders = zip(self.vectors(hypotheses), self._index.sizes, self._vectors, strict=True)
        for (counts, weight, norm), size, vectors in of_orders:
            # Every meeting of a hypothesis' n-gram with one of its image's references: entries `here` and
            # `there`.
            shared = np.flatnonzero((counts.ngram < size) & (weight > 0))
            key = image[counts.sentence[shared]] * size + counts.ngram[shared]
            first = np.searchsorted(vectors.key, key)
            meetings = np.searchsorted(vectors.key, key, side="right") - first
            here = np.repeat(shared, meetings)
            there = np.arange(len(here)) + np.repeat(first - (np.cumsum(meetings) - meetings), meetings)

            hypothesis, reference = counts.sentence[here], vectors.sentence[there]
            product = np.minimum(weight[here], vectors.weight[there]) * vectors.weight[there]
            cosine = product / (norm[hypothesis] * vectors.norm[reference])
            penalty = np.exp(-((bigrams[hypothesis] - self._bigrams[reference]) ** 2) / (2 * SIGMA**2))
            score += np.bincount(hypothesis, cosine * penalty, minlength=len(hypotheses))
        return 10 / ORDERS * score / self._references[image]

    def vectors(self, sentences: Sequence[Sentence]) -> list[tuple[Counts, np.ndarray, np.ndarray]]:
        """The sentences' TF-IDF vectors, per n-gram order: `Counts` [K], weights [K], norms [S]."""
        result = []
        for counts, size, known in zip(self._index.count(sentences), self._index.sizes, self._vectors, strict=True):
            weight = counts.times * known.idf[np.minimum(counts.ngram, size)]
            norm = np.sqrt(np.bincount(counts.sentence, weight**2, minlength=len(sentences)))
            result.append((counts, weight, norm))
        return result


def _bigrams(sentences: Sequence[Sentence]) -> np.ndarray:
    return np.array([max(len(sentence) - 1, 0) for sentence in sentences], np.float64)
