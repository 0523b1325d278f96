"""Numbered n-grams, n = 1..4: what BLEU, CIDEr and the diversity measures count."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

ORDERS = 4

Sentence = Sequence[Hashable]
"""Words of a sentence: strings or token ids."""


class Counts(NamedTuple):
    """How often each n-gram of one order stands in each sentence; sorted by sentence, then n-gram."""

    sentence: np.ndarray  # [K] int64
    ngram: np.ndarray  # [K] int64
    times: np.ndarray  # [K] int64


class NgramIndex:
    """The n-grams of a set of sentences, each with a number.

    An n-gram's number is the place of (number of its first n - 1 words, its last word) among all such pairs,
    so numbers are exact whatever the size of the vocabulary.

    Attributes:
        counts: per order the `Counts` of the sentences that were indexed.
        sizes: per order how many n-grams are known; they have the numbers below that.

    Example:
        >>> index = NgramIndex([["a", "road", "a", "road"]])
        >>> index.sizes
        [2, 2, 2, 1]
        >>> index.count([["a", "river"]])[0].ngram.tolist()  # "river" is new: a number past the known ones
        [0, 2]
    """

    def __init__(self, sentences: Sequence[Sentence]):
        self._words: dict[Hashable, int] = {}
        self._keys = [np.empty(0, np.int64) for _ in range(ORDERS - 1)]  # sorted pairs of orders 2..4
        self.counts = self._count(sentences, learn=True)
        self.sizes = [len(self._words), *(len(keys) for keys in self._keys)]

    def count(self, sentences: Sequence[Sentence]) -> list[Counts]:
        """Count the n-grams of sentences, per order; unknown ones get numbers from `sizes` on."""
        return self._count(sentences, learn=False)

    def _count(self, sentences: Sequence[Sentence], learn: bool) -> list[Counts]:
        known = len(self._words)
        words = self._words if learn else dict(self._words)
        word = np.array([words.setdefault(w, len(words)) for s in sentences for w in s], np.int64)
        length = np.array([len(s) for s in sentences], np.int64)
        sentence = np.repeat(np.arange(len(sentences)), length)
        left = np.repeat(np.cumsum(length), length) - np.arange(len(word))  # words from here to the end

        counts = [_tally(sentence, word)]
        ngram = word
        for order in range(2, ORDERS + 1):
            start = np.flatnonzero(left >= order)
            prefix, last = ngram[start], word[start + order - 1]
            prefixes = known if order == 2 else len(self._keys[order - 3])
            keys = self._keys[order - 2]
            key = prefix * max(known, 1) + last
            place = np.searchsorted(keys, key)
            new = (prefix >= prefixes) | (last >= known)
            new |= keys[np.minimum(place, len(keys) - 1)] != key if len(keys) else True
            unknown, inverse = np.unique(prefix[new] * len(words) + last[new], return_inverse=True)
            place[new] = len(keys) + inverse
            ngram = np.full(len(word), -1)
            ngram[start] = place
            counts.append(_tally(sentence[start], place))
            if learn:
                self._keys[order - 2] = unknown
        return counts


def _tally(sentence: np.ndarray, ngram: np.ndarray) -> Counts:
    width = int(ngram.max(initial=0)) + 1
    key, count = np.unique(sentence * width + ngram, return_counts=True)
    return Counts(key // width, key % width, count)
