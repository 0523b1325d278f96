import math
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from data.errors import UserError
from data.tokenizer import tokenize
from metrics.scores import FAST, Scores, common_subsequence, score_captions

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs a Java runtime")

WORDS = [
    "a",
    "a",
    "road",
    "road",
    "river",
    "(red)",
    "café",
    "中国",
    "isn't",
    "2 1/2",
    ".",
    "st.",
    "x\ry",
    "<b>",
]

captions = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
corpora = st.dictionaries(
    st.integers(0, 50),
    st.tuples(captions, st.lists(captions, min_size=1, max_size=5)),
    min_size=1,
    max_size=8,
)
Corpus = dict[int, tuple[str, list[str]]]


def tokenised(corpus: Corpus) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and hypotheses as pycocoevalcap's scorers want them."""
    references = {key: [" ".join(tokenize(c)) for c in group] for key, (_, group) in corpus.items()}
    return references, {key: [" ".join(tokenize(caption))] for key, (caption, _) in corpus.items()}


def score(corpus: Corpus, metrics: Sequence[str] = FAST) -> Scores:
    return score_captions(
        {key: caption for key, (caption, _) in corpus.items()},
        {key: group for key, (_, group) in corpus.items()},
        metrics,
    )


@settings(max_examples=200, deadline=None)
@given(corpora)
def test_equals_pycocoevalcap(corpus: Corpus) -> None:
    # Where no reference has a word pycocoevalcap's CIDEr fails: max() of nothing.
    assume(any(tokenize(c) for _, group in corpus.values() for c in group))
    scores = score(corpus)
    references, hypotheses = tokenised(corpus)

    bleu, per_image = Bleu(4).compute_score(references, hypotheses, verbose=0)
    for n in range(4):
        assert scores.metrics[f"Bleu_{n + 1}"] == pytest.approx(bleu[n], abs=1e-9)
        np.testing.assert_allclose(scores.per_image[f"Bleu_{n + 1}"], per_image[n], atol=1e-9)
    for scorer, name in [(Rouge(), "ROUGE_L"), (Cider(), "CIDEr")]:
        corpus_score, per_image = scorer.compute_score(references, hypotheses)
        assert scores.metrics[name] == pytest.approx(corpus_score, abs=1e-9)
        np.testing.assert_allclose(scores.per_image[name], per_image, atol=1e-9)
    assert scores.keys == tuple(corpus)


def test_perfect_captions() -> None:
    texts = {1: "two red planes on a road", 2: "a green river near some trees"}
    scores = score_captions(texts, {key: [text] for key, text in texts.items()}, FAST)
    # BLEU is short of 1 by coco-caption's 1e-9 against division by zero.
    for n in range(1, 5):
        assert scores.metrics[f"Bleu_{n}"] == pytest.approx(1, abs=1e-8)
    assert scores.metrics["ROUGE_L"] == 1
    assert scores.metrics["CIDEr"] == pytest.approx(10, abs=1e-12)


def test_one_image_has_no_cider() -> None:
    """With one image every document frequency is all there is: ln 1 - ln 1 = 0, no word has a weight."""
    scores = score_captions({1: "a road"}, {1: ["a road"]}, FAST)
    assert scores.metrics["CIDEr"] == 0
    assert scores.metrics["ROUGE_L"] == 1


def test_no_reference_has_a_word() -> None:
    scores = score_captions({1: "", 2: "a road"}, {1: ["."], 2: [""]}, FAST)
    # In coco-caption an empty caption is one empty word: it has that in common with an empty reference.
    assert scores.metrics == pytest.approx(
        {"Bleu_1": 0, "Bleu_2": 0, "Bleu_3": 0, "Bleu_4": 0, "ROUGE_L": 0.5, "CIDEr": 0}, abs=1e-6
    )


@pytest.mark.parametrize("space", ["\r", "\x0c", "\u2028", "\x85", "\x0b", "\n"])
def test_a_line_end_in_a_caption_moves_no_other(space: str) -> None:
    plain = {key: (f"a road {key}", [f"a road {key}", "a river"]) for key in range(5)}
    broken = {**plain, 1: (f"a{space}road 1", [f"a road{space}1{space}", "a river"])}
    assert score(broken).metrics == score(plain).metrics


@settings(max_examples=50, deadline=None)
@given(corpora, st.data())
def test_weighted_is_the_corpus_of_copies(corpus: Corpus, data: st.DataObject) -> None:
    copies = data.draw(st.lists(st.integers(0, 3), min_size=len(corpus), max_size=len(corpus)))
    assume(any(copies))
    scores = score(corpus)
    chosen = [pair for pair, n in zip(corpus.values(), copies, strict=True) for _ in range(n)]
    expected = score(dict(enumerate(chosen)), ["Bleu", "ROUGE_L"]).metrics
    # CIDEr's document frequencies stay those of the whole corpus.
    expected["CIDEr"] = np.average(scores.per_image["CIDEr"], weights=copies)
    weighted = scores.weighted(np.array([copies]))
    assert {name: values[0] for name, values in weighted.items()} == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_common_subsequence_equals_the_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(a, b) == table[-1][-1]


@pytest.mark.parametrize(
    ("hypotheses", "references", "named"),
    [
        ({1: "a"}, {1: ["a"], 7: ["b"], "x.jpg": ["c"]}, "no caption for 7, x.jpg"),
        ({1: "a", 9: "b"}, {1: ["a"]}, "unknown 9"),
        ({1: "a", 2: "b"}, {1: ["a"], 2: []}, "no reference for 2"),
        ({k: "a" for k in range(30)}, {1: ["a"]}, "and 19 more"),
        ({}, {}, "no captions"),
    ],
)
def test_keys_that_do_not_match_are_named(hypotheses: Mapping, references: Mapping, named: str) -> None:
    with pytest.raises(UserError, match=named):
        score_captions(hypotheses, references, FAST)


def test_unknown_metric() -> None:
    with pytest.raises(ValueError, match="BLEU"):
        score_captions({1: "a"}, {1: ["a"]}, ["BLEU"])


def test_without_java_the_rest_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("metrics.scores._process", None)
    scores = score_captions({1: "a road", 2: "b"}, {1: ["a road"], 2: ["c"]})
    assert list(scores.metrics) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert set(scores.unavailable) == {"METEOR", "SPICE"}
    assert "default-jre" in scores.unavailable["METEOR"]
    assert math.isfinite(scores.metrics["CIDEr"])


@needs_java
def test_spice_without_models_names_the_remedy() -> None:
    scores = score_captions({1: "a road"}, {1: ["a road"]}, ["SPICE"])
    if not scores.unavailable:
        pytest.skip("SPICE's models are installed")
    assert "stanford-corenlp-3.6.0-models.jar" in scores.unavailable["SPICE"]
