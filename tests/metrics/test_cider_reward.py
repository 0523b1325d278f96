import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metrics.cider_reward import CiderReward
from metrics.ngrams import NgramIndex

sentences = st.lists(st.integers(0, 4), max_size=8)
corpora = st.lists(st.lists(sentences, min_size=1, max_size=4), min_size=1, max_size=6)


def grams(sentence: Sequence[Hashable], n: int) -> Counter:
    return Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))


def naive(corpus: list[list[list[int]]], hypothesis: list[int], image: int) -> float:
    """CIDEr-D as section 6 of the paper has it, with the document frequencies of `corpus`."""
    total = 0.0
    for reference in corpus[image]:
        for n in range(1, 5):

            def vector(sentence: Sequence[Hashable], n: int = n) -> dict:
                frequency = {
                    gram: sum(any(gram in grams(r, n) for r in group) for group in corpus)
                    for gram in grams(sentence, n)
                }
                return {
                    gram: count * (math.log(len(corpus)) - math.log(max(1, frequency[gram])))
                    for gram, count in grams(sentence, n).items()
                }

            g, r = vector(hypothesis), vector(reference)
            norms = math.hypot(*g.values()) * math.hypot(*r.values())
            if norms:
                penalty = math.exp(-((max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)) ** 2) / 72)
                total += penalty * sum(min(g[gram], r.get(gram, 0)) * r.get(gram, 0) for gram in g) / norms
    return 10 / 4 * total / len(corpus[image])


@settings(max_examples=150, deadline=None)
@given(corpora, st.data())
def test_equals_the_naive_formula(corpus: list, data: st.DataObject) -> None:
    images = data.draw(st.lists(st.integers(0, len(corpus) - 1), max_size=6))
    # 5 and 6 stand in no reference.
    hypotheses = [data.draw(st.lists(st.integers(0, 6), max_size=8)) for _ in images]
    scores = CiderReward(dict(enumerate(corpus)))(hypotheses, images)
    expected = [naive(corpus, h, image) for h, image in zip(hypotheses, images, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert scores.dtype == np.float64 and scores.shape == (len(images),)


@settings(max_examples=100, deadline=None)
@given(corpora, st.data())
def test_evenly_weighed_it_is_the_cosine_of_counts(corpus: list, data: st.DataObject) -> None:
    image = data.draw(st.integers(0, len(corpus) - 1))
    hypothesis = data.draw(st.lists(st.integers(0, 6), max_size=8))
    total = 0.0
    for reference in corpus[image]:
        penalty = math.exp(-((max(len(hypothesis) - 1, 0) - max(len(reference) - 1, 0)) ** 2) / 72)
        for n in range(1, 5):
            g, r = grams(hypothesis, n), grams(reference, n)
            if g and r:
                clipped = sum(min(g[gram], r[gram]) * r[gram] for gram in g)
                total += penalty * clipped / math.hypot(*g.values()) / math.hypot(*r.values())
    score = CiderReward(dict(enumerate(corpus)), even=True)([hypothesis], [image])
    np.testing.assert_allclose(score, 10 / 4 * total / len(corpus[image]), atol=1e-12)


def test_words_and_token_ids_are_the_same_to_it() -> None:
    words = {"x": [["a", "red", "roof"], ["a", "roof"]], "y": [["a", "river"]]}
    numbers = {word: i for i, word in enumerate(["a", "red", "roof", "river", "green"])}
    ids = {key: [[numbers[w] for w in s] for s in group] for key, group in words.items()}
    hypothesis = ["a", "green", "roof"]
    expected = CiderReward(words)([hypothesis], ["x"])
    assert expected > 0
    np.testing.assert_array_equal(CiderReward(ids)([[numbers[w] for w in hypothesis]], ["x"]), expected)


def test_the_reward_of_a_caption_does_not_depend_on_its_batch() -> None:
    references = {image: [[image, 7, 8, 9], [image, 7]] for image in range(6)}
    reward = CiderReward(references)
    hypotheses = [[image, 7, 99, 8, 98] for image in range(6)]
    together = reward(hypotheses, range(6))
    alone = [reward([h], [image])[0] for image, h in enumerate(hypotheses)]
    np.testing.assert_allclose(together, alone, rtol=1e-15)


def test_a_caption_that_breaks_off_pays_where_the_end_token_counts() -> None:
    end = 0
    corpus = {i: [[1, 10 + i, 2, 20 + i, end]] for i in range(5)}
    whole, broken = CiderReward(corpus)([[1, 10, 2, 20, end], [1, 10, 2, 20]], [0, 0])
    assert whole == pytest.approx(10) and broken < whole - 1


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="no references"):
        CiderReward({})
    with pytest.raises(ValueError, match="'b'"):
        CiderReward({"a": [[1]], "b": []})
    with pytest.raises(KeyError, match="'z'"):
        CiderReward({"a": [[1]]})([[1]], ["z"])


@example([[0]], [[0, 0], [0, 1]])  # no bigram is known: found by chance once, kept
@given(st.lists(sentences, max_size=6), st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=4))
def test_ngram_index_equals_counters(known: list, others: list) -> None:
    index = NgramIndex(known)
    for n in range(1, 5):
        assert index.sizes[n - 1] == len({gram for s in known for gram in grams(s, n)})
    for group, counted in [(known, index.counts), (others, index.count(others)), (known, index.count(known))]:
        for n, counts in enumerate(counted, start=1):
            names: dict[int, set] = {}
            for i, sentence in enumerate(group):
                here = counts.sentence == i
                expected = grams(sentence, n)
                assert sorted(counts.times[here].tolist()) == sorted(expected.values())
                assert (counts.ngram[here] < index.sizes[n - 1]).sum() == sum(
                    any(gram in grams(s, n) for s in known) for gram in expected
                )
                for number in counts.ngram[here].tolist():
                    names.setdefault(number, set()).add(i)
            # One number, one n-gram: both stand in the same sentences.
            places = Counter(
                tuple(i for i, s in enumerate(group) if gram in grams(s, n))
                for gram in {gram for s in group for gram in grams(s, n)}
            )
            assert Counter(tuple(sorted(found)) for found in names.values()) == places
