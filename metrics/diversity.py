"""How varied a system's captions are: what accuracy does not show, and self-critical training destroys."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data.tokenizer import tokenize
from metrics.cider_reward import CiderReward
from metrics.ngrams import ORDERS, NgramIndex


def diversity(captions: Iterable[str], train: Iterable[str]) -> dict[str, float]:
    """Describe the variety of a system's captions, one an image; all on coco-caption's tokens.

    Args:
        captions: the captions, at least one of them with a word.
        train: the captions of the train split.

    Returns:
        `distinct_1`, `distinct_2`: different words and word pairs as shares of all (Li et al., NAACL 2016);
        `unique`: different captions as a share of all;
        `seen_in_train`: share of the captions that stand in train, word by word;
        `vocabulary`: different words used, `vocabulary_of_train`: of train's words the share that is used;
        `length`, `length_std`: words of a caption, mean and standard deviation.
        A share of nothing is NaN.

    Example:
        >>> diversity(["A road.", "a road", "a river"], train=["a road ."])["seen_in_train"]
        0.6666666666666666
    """
    sentences = [tuple(tokenize(caption)) for caption in captions]
    seen = {tuple(tokenize(caption)) for caption in train}
    index = NgramIndex(sentences)
    words, pairs = (int(counts.times.sum()) for counts in index.counts[:2])
    used = {word for sentence in sentences for word in sentence}
    known = {word for sentence in seen for word in sentence}
    lengths = np.array([len(sentence) for sentence in sentences], np.float64)
    return {
        "distinct_1": _share(index.sizes[0], words),
        "distinct_2": _share(index.sizes[1], pairs),
        "unique": _share(len(set(sentences)), len(sentences)),
        "seen_in_train": _share(sum(sentence in seen for sentence in sentences), len(sentences)),
        "vocabulary": float(len(used)),
        "vocabulary_of_train": _share(len(used & known), len(known)),
        "length": float(lengths.mean()) if len(lengths) else float("nan"),
        "length_std": float(lengths.std()) if len(lengths) else float("nan"),
    }


def rare_recall(captions: Sequence[str], references: Iterable[Sequence[str]], train: Iterable[str]) -> float:
    """The share of the rare words of images' references that the images' captions say, each word once an image.

    A word is rare that stands in fewer than one in a hundred of the captions `train`, and in one at least: a word that
    nobody could learn counts for no one. NaN where the references have no rare word.

    Example:
        >>> rare_recall(["two red planes"], [["two planes", "blue planes"]], ["planes"] * 300 + ["two", "blue", "red"])
        0.5
    """
    seen = [set(tokenize(caption)) for caption in train]
    counts = Counter(word for words in seen for word in words)
    rare = {word for word, count in counts.items() if 100 * count < len(seen)}
    said = wanted = 0
    for caption, group in zip(captions, references, strict=True):
        due = {word for reference in group for word in tokenize(reference)} & rare
        wanted += len(due)
        said += len(due & set(tokenize(caption)))
    return _share(said, wanted)


def self_cider(captions: Sequence[Sequence[str]], references: Iterable[Sequence[str]]) -> np.ndarray:
    """Self-CIDEr: how far an image's own m captions (samples, or beams) differ.

    With K the m x m matrix of the captions' CIDEr with each other, the mean over n = 1..4 of the cosines of
    their TF-IDF vectors, and l its eigenvalues: -log_m(sqrt(max l) / sum sqrt(l)). It is 0 where all captions
    are alike and 1 where no two share an n-gram and each has some of every order.

    Args:
        captions: for each of B images its captions, two or more.
        references: for each image of a split its reference captions: the document frequencies.

    Returns:
        float64 [B], 0 to 1; the system's score is the mean.

    Raises:
        ValueError: an image with fewer than two captions.

    Reference:
        Wang, Chan: Describing like Humans: on Diversity in Image Captioning, CVPR 2019, section 3.3.

    Example:
        >>> references = [["a road"], ["a river"], ["two planes"]]
        >>> self_cider([["a road", "a road"], ["a road", "two planes"]], references).round(6).tolist()
        [0.0, 1.0]
    """
    if few := [image for image, group in enumerate(captions) if len(group) < 2]:
        raise ValueError(f"self-CIDEr compares two captions of an image or more; fewer for images {few[:10]}")
    corpus = {image: [_words(caption) for caption in group] for image, group in enumerate(references)}
    cider = CiderReward(corpus)
    return np.array([_spread(_kernel(cider, [_words(caption) for caption in group])) for group in captions])


def best_of(captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """CIDEr of several captions an image: what one of them is worth, and what the set is to who may choose from it.

    Args:
        captions: for each of B images its captions, one or more. references: for each its reference captions.

    Returns:
        `mean_cider`: mean over images of the mean over their captions; `best_cider`: of the best, known by the
        references (the oracle of Vijayakumar et al., Diverse Beam Search, AAAI 2018).

    Example:
        >>> best_of([["a road", "a river"], ["two planes", "two planes"]], [["a road"], ["two planes"]])
        {'mean_cider': 4.0625, 'best_cider': 5.0}
    """
    cider = CiderReward({image: [_words(caption) for caption in group] for image, group in enumerate(references)})
    owner = [image for image, group in enumerate(captions) for _ in group]
    scores = iter(cider([_words(caption) for group in captions for caption in group], owner).tolist())
    groups = [[next(scores) for _ in group] for group in captions]
    return {
        "mean_cider": float(np.mean([np.mean(group) for group in groups])),
        "best_cider": float(np.mean([max(group) for group in groups])),
    }


def _kernel(cider: CiderReward, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """Mean over n-gram orders of the cosines of the sentences' TF-IDF vectors, [m, m]."""
    kernel = np.zeros((len(sentences), len(sentences)))
    for counts, weight, norm in cider.vectors(sentences):
        ngrams, column = np.unique(counts.ngram, return_inverse=True)
        vectors = np.zeros((len(sentences), len(ngrams)))
        vectors[counts.sentence, column] = weight
        unit = np.divide(vectors, norm[:, None], out=vectors, where=norm[:, None] > 0)
        kernel += unit @ unit.T / ORDERS
    return kernel


def _spread(kernel: np.ndarray) -> float:
    root = np.sqrt(np.clip(np.linalg.eigvalsh(kernel), 0, None))
    if not root.any():
        return 0.0
    return float(np.log(root.sum() / root[-1]) / np.log(len(root)))


def _words(caption: str) -> list[str]:
    return " ".join(tokenize(caption)).split()


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
