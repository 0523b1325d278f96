"""Scores of captions under coco-caption's names, equal to pycocoevalcap 1.2's."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from data.errors import UserError
from data.tokenizer import tokenize
from metrics import meteor
from metrics.cider_reward import CiderReward
from metrics.meteor import MeteorProcess, Unavailable
from metrics.ngrams import ORDERS, NgramIndex, Sentence
from metrics.spice import spice

FAST = ("Bleu", "ROUGE_L", "CIDEr")
"""The metrics that need no Java."""

METRICS = ("Bleu", "METEOR", "ROUGE_L", "CIDEr", "SPICE")

NO_SHARES = {"vocabulary", "length", "length_std", "s / epoch", "restoration/PSNR", "restoration/LPIPS", "latent/KL"}
"""What is measured in words, seconds, decibels, distances and nats; all else is a share, or printed like one."""


def printed(name: str, *values: float) -> str:
    """A measure as tables print it, in hundredths where it is a share; of two values the second is their spread.

    >>> printed("CIDEr", 0.9394), printed("vocabulary", 124), printed("unique", 0.5, 0.01)
    ('93.94', '124', '50.00 ± 1.00')
    """
    return " ± ".join(f"{value:.3g}" if name in NO_SHARES else f"{100 * value:.2f}" for value in values)


@dataclass(frozen=True)
class Evidence:
    """What a metric needs to know of each image, in numbers that may be summed over any choice of images.

    Attributes:
        names: the M names of the scores: one, or Bleu_1 to Bleu_4.
        statistics: float64 [B, K].
        score: sums of statistics [..., K] to scores [..., M].
    """

    names: tuple[str, ...]
    statistics: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Scores:
    """The scores of a set of captions.

    Attributes:
        keys: the images, in the order of `per_image` and of `evidence`.
        evidence: the metrics that ran.
        unavailable: the metrics that could not run, with reason and remedy.
    """

    keys: tuple[Hashable, ...]
    evidence: tuple[Evidence, ...]
    unavailable: dict[str, str] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The corpus' scores: Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr, SPICE, as far as they ran."""
        return {name: float(values[0]) for name, values in self.weighted(np.ones((1, len(self.keys)))).items()}

    @cached_property
    def per_image(self) -> dict[str, np.ndarray]:
        """Each image's scores, float64 [B]; its CIDEr has the document frequencies of all images."""
        return _by_name((e.names, e.score(e.statistics)) for e in self.evidence)

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The corpus' scores, were image b in it `weights[r, b]` times; [R, B] to [R] per metric."""
        return _by_name((e.names, e.score(weights @ e.statistics)) for e in self.evidence)


def _by_name(columns: Iterable[tuple[tuple[str, ...], np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: scores[..., m] for names, scores in columns for m, name in enumerate(names)}


def score_captions(
    hypotheses: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    metrics: Sequence[str] = METRICS,
) -> Scores:
    """Score one caption an image against the image's references.

    Captions are tokenised as coco-caption does. CIDEr's document frequencies are those of `references`.

    Args:
        hypotheses: image to caption.
        references: the same images to their reference captions, in any order.
        metrics: of `METRICS`; `FAST` where Java is not wanted.

    Raises:
        UserError: there is no image; an image has no caption, no reference, or is unknown; it names them.
        ValueError: a metric that does not exist.

    Example:
        >>> scores = score_captions({1: "A red plane."}, {1: ["a red plane", "one plane"]}, ["ROUGE_L"])
        >>> scores.metrics
        {'ROUGE_L': 1.0}
    """
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"unknown metrics {sorted(unknown)}; there are {', '.join(METRICS)}")
    _match(hypotheses, references)
    keys = tuple(references)
    texts = [" ".join(tokenize(hypotheses[key])) for key in keys]
    reference_texts = [[" ".join(tokenize(caption)) for caption in references[key]] for key in keys]
    words = [text.split() for text in texts]
    reference_words = [[text.split() for text in group] for group in reference_texts]

    def run(metric: str) -> Evidence:
        match metric:
            case "Bleu":
                names = tuple(f"Bleu_{order}" for order in range(1, ORDERS + 1))
                return Evidence(names, bleu_statistics(words, reference_words), bleu)
            case "METEOR":
                return Evidence(("METEOR",), _meteor_process().align(texts, reference_texts), _meteor)
            case "ROUGE_L":
                return _mean("ROUGE_L", rouge_l(texts, reference_texts))
            case "CIDEr":
                return _mean("CIDEr", CiderReward(dict(enumerate(reference_words)))(words, range(len(keys))))
            case _:
                return _mean("SPICE", spice(texts, reference_texts))

    evidence: list[Evidence] = []
    unavailable: dict[str, str] = {}
    for metric in (metric for metric in METRICS if metric in metrics):
        try:
            evidence.append(run(metric))
        except Unavailable as reason:
            unavailable[metric] = str(reason)
    return Scores(keys, tuple(evidence), unavailable)


def _match(hypotheses: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> None:
    problems = {
        "no caption for": [key for key in references if key not in hypotheses],
        "unknown": [key for key in hypotheses if key not in references],
        "no reference for": [key for key, group in references.items() if not group],
    }
    found = [f"{problem} {_listed(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise UserError(f"captions and references do not match: {'; '.join(found)}")
    if not references:
        raise UserError("no captions to score: choose a split that holds images")


def _listed(keys: Sequence[Hashable], most: int = 10) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(map(str, keys[:most])) + more


def _mean(name: str, scores: np.ndarray) -> Evidence:
    """A metric whose corpus score is the mean of its images' scores."""
    statistics = np.stack([scores, np.ones(len(scores))], axis=1)
    return Evidence((name,), statistics, lambda sums: sums[..., :1] / sums[..., 1:])


_process: MeteorProcess | None = None


def _meteor_process() -> MeteorProcess:
    global _process
    if _process is None or not _process.alive:
        _process = MeteorProcess()
    return _process


def _meteor(sums: np.ndarray) -> np.ndarray:
    return meteor.score(sums)[..., None]


def bleu_statistics(hypotheses: Sequence[Sentence], references: Sequence[Sequence[Sentence]]) -> np.ndarray:
    """What BLEU counts of each caption.

    Args:
        hypotheses: B sentences.
        references: for each its references.

    Returns:
        float64 [B, 10]: n-grams that stand in a reference too, each as often as in the reference that has it
        most often, n = 1..4; n-grams, n = 1..4; words; words of the reference closest in length, of two the
        shorter.
    """
    image = np.repeat(np.arange(len(references)), [len(group) for group in references])
    index = NgramIndex([sentence for group in references for sentence in group])
    length = np.array([len(sentence) for sentence in hypotheses])
    correct = []
    for there, here, size in zip(index.counts, index.count(hypotheses), index.sizes, strict=True):
        key = image[there.sentence] * size + there.ngram
        order = np.lexsort((there.times, key))  # of an image's equal n-grams the most frequent comes last
        key, most = np.append(-1, key[order]), np.append(0, there.times[order])
        wanted = np.where(here.ngram < size, here.sentence * size + here.ngram, -1)
        place = np.searchsorted(key, wanted, side="right") - 1
        hit = np.where(key[place] == wanted, np.minimum(here.times, most[place]), 0)
        correct.append(np.bincount(here.sentence, hit, minlength=len(hypotheses)))
    guessed = [np.maximum(length - n, 0) for n in range(ORDERS)]
    closest = [
        min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in group)[1]
        for hypothesis, group in zip(hypotheses, references, strict=True)
    ]
    return np.stack([*correct, *guessed, length, closest], axis=1).astype(np.float64)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 of summed `bleu_statistics`, with the constants by which coco-caption avoids 0 / 0.

    BLEU-n = min(1, exp(1 - reference words / words)) * (product of the precisions up to n)^(1/n).

    Args:
        sums: float64 [..., 10].

    Returns:
        float64 [..., 4].

    Reference:
        Papineni et al.: BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002.
    """
    tiny, small = 1e-15, 1e-9
    precision = (sums[..., :ORDERS] + tiny) / (sums[..., ORDERS : 2 * ORDERS] + small)
    ratio = (sums[..., -2:-1] + tiny) / (sums[..., -1:] + small)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0))
    return np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1)) * brevity


def rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> np.ndarray:
    """ROUGE-L: F-score of the longest common subsequence of words.

    Precision and recall are each taken at the reference where it is best.

    Args:
        hypotheses: B tokenised captions, words separated by one space; an empty one counts as one empty word.
        references: for each its tokenised references.
        beta: weight of recall.

    Returns:
        float64 [B], 0 to 1.

    Reference:
        Lin: ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    scores = []
    for hypothesis, group in zip(hypotheses, references, strict=True):
        words = hypothesis.split(" ")
        others = [reference.split(" ") for reference in group]
        common = [common_subsequence(words, other) for other in others]
        precision = max(common) / len(words)
        recall = max(length / len(other) for length, other in zip(common, others, strict=True))
        below = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / below if below else 0.0)
    return np.array(scores)


def common_subsequence(a: Sentence, b: Sentence) -> int:
    """Length of the longest common subsequence, by the bits of one integer (Hyyrö 2004).

    Example:
        >>> common_subsequence("a road near a river".split(), "a river near a road".split())
        3
    """
    places: dict[Hashable, int] = {}
    for place, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << place
    ones = (1 << len(b)) - 1
    row = ones  # bit j is 0 where the table's row grows at column j
    for word in a:
        match = row & places.get(word, 0)
        row = (row + match | row - match) & ones
    return len(b) - row.bit_count()
