"""How sure a score is, and whether one system's is better than another's."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import stats

from metrics.scores import Scores

_CHUNK = 256  # resamples at a time: keeps the weights of a large split within a few megabytes


class Comparison(NamedTuple):
    """Two systems on the same images, by one metric.

    Attributes:
        difference: the second system's score minus the first's.
        low, high: 95 % interval of the difference, over samples of images.
        p: probability of a difference at least this large, were the two systems' captions interchangeable.
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap(scores: Scores, n: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the corpus' scores, over images drawn with replacement.

    Each resample is scored as a corpus: BLEU and METEOR from the summed counts of its images, not as a mean
    over images. CIDEr's document frequencies stay those of the whole set, so it is the mean of the images'
    CIDEr.

    Args:
        scores: of B images.
        n: resamples.
        seed: of the random numbers.

    Returns:
        Metric to (low, high).

    Reference:
        Koehn: Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004.
    """
    resampled = _join(scores.weighted(weights) for weights in _resamples(len(scores.keys), n, seed))
    return {name: _interval(values) for name, values in resampled.items()}


def paired_test(baseline: Scores, scores: Scores, n: int = 1000, seed: int = 0) -> dict[str, Comparison]:
    """Compare two systems' captions of the same images.

    The interval is the paired bootstrap's: both systems on the same resampled images. The p-value is
    approximate randomisation's, two-sided: images' captions are swapped between the systems at random, and p
    is the share of n such shuffles, plus the one observed, whose difference is at least as large.

    Args:
        baseline: the first system's scores.
        scores: the second system's, of the same images in the same order against the same references.
        n: resamples, and shuffles.
        seed: of the random numbers.

    Returns:
        Per metric that both have, what to print beside it.

    Raises:
        ValueError: the images differ, or stand in another order.

    Reference:
        Noreen: Computer-Intensive Methods for Testing Hypotheses, 1989. Riezler, Maxwell: On Some Pitfalls in
        Automatic Evaluation and Significance Testing for MT, ACL workshop 2005.
    """
    if baseline.keys != scores.keys:
        raise ValueError("the two systems' images differ, or stand in another order")
    both = _pool(baseline, scores)
    images = len(scores.keys)
    nothing = np.zeros((1, images))
    everything = nothing + 1

    observed = _differences(both, everything, nothing)
    resampled = _join(_differences(both, w, 0 * w) for w in _resamples(images, n, seed))
    shuffles = np.random.default_rng([seed, 1])
    shuffled = _join(
        _differences(both, keep, 1 - keep) for keep in (shuffles.integers(0, 2, (size, images)) for size in _chunks(n))
    )
    comparisons = {}
    for name, (difference,) in observed.items():
        # A shuffle that differs by rounding alone is as large.
        as_large = int(np.count_nonzero(np.abs(shuffled[name]) >= abs(difference) - 1e-12))
        comparisons[name] = Comparison(float(difference), *_interval(resampled[name]), p=(as_large + 1) / (n + 1))
    return comparisons


def crossed_test(baseline: np.ndarray, scores: np.ndarray) -> Comparison:
    """Compare two recipes, each trained with several seeds, by a score that is a mean over images.

    Both images and seeds are samples of what might have been, so both belong in the error. The differences
    d_si of seed s and image i are split as in a two-way analysis of variance without repetition, with mean
    squares M_image, M_seed and M_rest (each of its deviations, over its degrees of freedom), and

        t = mean d / sqrt(v / (S B)),   v = M_image + max(M_seed - M_rest, 0)

    is held against Student's t, whose degrees of freedom are Satterthwaite's for v. With one seed this is the
    paired t-test over images, and says nothing about other seeds. With two seeds whose luck far outweighs that of
    the images, p is too small (one null in nine is below 0.05); with three, that is one in fourteen.

    Args:
        baseline: scores of S seeds on B images, [S, B].
        scores: the other recipe's, of the same seeds and images in the same order.

    Returns:
        The difference with its 95 % interval and two-sided p.

    Raises:
        ValueError: the shapes differ, or there are fewer than two images.

    Reference:
        Clark: The Language-as-Fixed-Effect Fallacy, Journal of Verbal Learning and Verbal Behavior 12, 1973
        (quasi-F). Satterthwaite: An Approximate Distribution of Estimates of Variance Components, 1946.

    Example:
        >>> test = crossed_test(np.array([[0.1, 0.5, 0.9, 0.4]]), np.array([[0.2, 0.7, 0.8, 0.6]]))
        >>> round(test.difference, 3), round(test.p, 3)
        (0.1, 0.252)
    """
    if baseline.shape != scores.shape or baseline.ndim != 2 or baseline.shape[1] < 2:
        raise ValueError(f"{baseline.shape} and {scores.shape} are not both [seeds, images] of two images or more")
    d = scores - baseline
    (seeds, images), mean = d.shape, d.mean()
    of_seed, of_image = d.mean(1, keepdims=True) - mean, d.mean(0, keepdims=True) - mean
    rest_of = d - mean - of_seed - of_image
    freedom = np.maximum([images - 1, seeds - 1, (images - 1) * (seeds - 1)], 1)
    squares = np.array([seeds * (of_image**2).sum(), images * (of_seed**2).sum(), (rest_of**2).sum()])
    image, seed, rest = squares / freedom
    parts = np.array([image, seed, rest]) if seed > rest else np.array([image, 0.0, 0.0])
    v = image + max(seed - rest, 0.0)
    if v == 0:  # the same difference everywhere: none at all, or one without a doubt
        return Comparison(float(mean), float(mean), float(mean), p=float(mean == 0))
    error = np.sqrt(v / (seeds * images))
    t = stats.t(v**2 / (parts**2 / freedom).sum())
    reach = error * t.ppf(0.975)
    return Comparison(float(mean), float(mean - reach), float(mean + reach), p=float(2 * t.sf(abs(mean) / error)))


def _pool(baseline: Scores, scores: Scores) -> Scores:
    """The captions of both systems as one set: first the baseline's, then the other's."""
    other = {evidence.names: evidence for evidence in scores.evidence}
    pooled = [
        replace(mine, statistics=np.concatenate([mine.statistics, other[mine.names].statistics]))
        for mine in baseline.evidence
        if mine.names in other
    ]
    return Scores(baseline.keys + scores.keys, tuple(pooled))


def _differences(both: Scores, keep: np.ndarray, swap: np.ndarray) -> dict[str, np.ndarray]:
    """Second score minus first, with each image `keep` times in its own system, `swap` in the other."""
    first = both.weighted(np.concatenate([keep, swap], axis=1))
    second = both.weighted(np.concatenate([swap, keep], axis=1))
    return {name: second[name] - first[name] for name in first}


def _chunks(n: int) -> list[int]:
    return [min(_CHUNK, n - start) for start in range(0, n, _CHUNK)]


def _resamples(images: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image stands in each of n samples with replacement, [R, B], some samples at a time."""
    generator = np.random.default_rng(seed)
    for size in _chunks(n):
        yield generator.multinomial(images, np.full(images, 1 / images), size)


def _join(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    collected = list(parts)
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
