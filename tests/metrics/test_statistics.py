import numpy as np
import pytest
from scipy import stats

from metrics.scores import FAST, Evidence, Scores, score_captions
from metrics.statistics import bootstrap, crossed_test, paired_test


def of(values: np.ndarray) -> Scores:
    """Scores of a metric that is a mean over images."""
    statistics = np.stack([values, np.ones(len(values))], axis=1)
    return Scores(tuple(range(len(values))), (Evidence(("m",), statistics, lambda s: s[..., :1] / s[..., 1:]),))


COLOURS, THINGS = ["red", "green", "white", "black"], ["roof", "road", "river", "plane", "tank"]


def system(seed: int, right: float, images: int = 300) -> Scores:
    """A system that names an image's thing with probability `right`, its colour half as often."""
    truth = np.random.default_rng(0)
    things, colours = truth.choice(THINGS, images), truth.choice(COLOURS, images)
    dice = np.random.default_rng(seed)
    said = np.where(dice.random(images) < right, things, dice.choice(THINGS, images))
    hue = np.where(dice.random(images) < right / 2, colours, dice.choice(COLOURS, images))
    references = {
        i: [f"there is a {c} {t} here", f"a {c} {t}"] for i, (c, t) in enumerate(zip(colours, things, strict=True))
    }
    return score_captions(
        {i: f"there is a {c} {t}" for i, (c, t) in enumerate(zip(hue, said, strict=True))}, references, FAST
    )


def test_interval_of_a_mean_is_its_normal_interval() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    low, high = bootstrap(of(values), n=4000)["m"]
    error = 1.96 * values.std() / 20
    # A percentile of 4,000 draws is itself off by about 0.04 standard errors.
    assert low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.15 * error)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    dice = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        low, high = bootstrap(of(dice.exponential(1.0, 80)), n=400, seed=trial)["m"]
        held += low <= 1.0 <= high
    # 95 % of 300 is 285; percentile intervals of skewed data fall a little short, chance adds +- 2.5 % (2
    # sd).
    assert 0.89 <= held / 300 <= 0.985


def test_false_positives_are_as_rare_as_p_says() -> None:
    dice = np.random.default_rng(2)
    p = []
    for trial in range(300):
        image = dice.normal(0, 1, 60)  # what makes an image hard is common to both systems
        first, second = (of(image + dice.normal(0, 0.5, 60)) for _ in range(2))
        p.append(paired_test(first, second, n=200, seed=trial)["m"].p)
    # Uniform p: 5 % below 0.05 (sd 1.3 %), half below 0.5 (sd 2.9 %).
    assert np.mean(np.array(p) <= 0.05) <= 0.09
    assert 0.41 <= np.mean(np.array(p) <= 0.5) <= 0.59


def test_pairing_finds_what_is_common_to_all_images() -> None:
    """A gain of 0.1 on images that differ by 1: invisible between samples, plain on the same images."""
    dice = np.random.default_rng(3)
    image = dice.normal(0, 1, 100)
    baseline, better = of(image), of(image + 0.1 + dice.normal(0, 0.1, 100))
    (low, high), (_, top) = bootstrap(better)["m"], bootstrap(baseline)["m"]
    assert low < top < high  # the intervals overlap
    comparison = paired_test(baseline, better)["m"]
    assert comparison.p == pytest.approx(1 / 1001)
    assert 0 < comparison.low < 0.1 < comparison.high < 0.15


def test_captions_noise_and_gain() -> None:
    first, same, better = system(1, 0.6), system(2, 0.6), system(3, 0.95)
    noise, gain = paired_test(first, same), paired_test(first, better)
    assert set(noise) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    for name in noise:
        assert noise[name].p > 0.05 and noise[name].low < 0 < noise[name].high, name
        assert gain[name].p < 0.01 and gain[name].low > 0, name
        assert gain[name].difference == better.metrics[name] - first.metrics[name]


def test_a_system_against_itself() -> None:
    scores = system(1, 0.6)
    for comparison in paired_test(scores, scores, n=50).values():
        assert comparison == pytest.approx((0, 0, 0, 1), abs=1e-12)


def test_seeds() -> None:
    scores = system(1, 0.6)
    assert bootstrap(scores, n=300, seed=4) == bootstrap(scores, n=300, seed=4)
    assert bootstrap(scores, n=300, seed=4) != bootstrap(scores, n=300, seed=5)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images differ"):
        paired_test(of(np.zeros(3)), of(np.zeros(4)))


def test_a_metric_that_one_of_them_lacks_is_left_out() -> None:
    texts = {1: ["a road"], 2: ["a river"]}
    hypotheses = {1: "a road", 2: "a lake"}
    both = score_captions(hypotheses, texts, FAST)
    assert set(paired_test(both, score_captions(hypotheses, texts, ["CIDEr"]), n=10)) == {"CIDEr"}


def test_one_seed_is_the_paired_t_test() -> None:
    dice = np.random.default_rng(4)
    first, second = dice.normal(0, 1, (1, 50)), dice.normal(0.3, 1, (1, 50))
    test, oracle = crossed_test(first, second), stats.ttest_rel(second[0], first[0])
    low, high = oracle.confidence_interval()
    assert test == pytest.approx((float((second - first).mean()), low, high, oracle.pvalue), abs=1e-12)


def test_many_images_leave_the_t_test_over_seeds() -> None:
    dice = np.random.default_rng(5)
    d = np.repeat(dice.normal(0.3, 1, (4, 1)), 30, axis=1)  # all images alike: only seeds differ
    test, oracle = crossed_test(np.zeros_like(d), d), stats.ttest_1samp(d[:, 0], 0)
    assert (test.p, test.low) == pytest.approx((oracle.pvalue, oracle.confidence_interval().low), abs=1e-9)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "most"), [(2, 0.0, 0.05), (2, 0.05, 0.05), (3, 0.05, 0.05), (5, 0.05, 0.05), (3, 0.5, 0.07)]
)
def test_luck_of_seeds_and_images_is_not_called_a_gain(seeds: int, of_seed: float, most: float) -> None:
    dice = np.random.default_rng(6)
    below = []
    for _ in range(600):
        images = 0.7 * dice.normal(0, 1, 200)
        d = images + dice.normal(0, of_seed, (seeds, 1)) + dice.normal(0, 1, (seeds, 200))
        below.append(crossed_test(np.zeros_like(d), d).p <= 0.05)
    assert np.mean(below) <= most + 0.02  # of 600 trials: two standard deviations


def test_equal_systems_do_not_differ() -> None:
    scores = np.random.default_rng(7).random((2, 9))
    assert crossed_test(scores, scores) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="seeds, images"):
        crossed_test(scores, scores[:1])
