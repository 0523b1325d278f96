import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.diversity import best_of, diversity, rare_recall, self_cider
from metrics.scores import score_captions


def test_counts_by_hand() -> None:
    found = diversity(["A red roof.", "a red car", "a red roof", ""], train=["a red roof .", "a blue car"])
    assert found == pytest.approx(
        {
            "distinct_1": 4 / 9,  # a, red, roof, car
            "distinct_2": 3 / 6,  # a red, red roof, red car
            "unique": 3 / 4,
            "seen_in_train": 2 / 4,
            "vocabulary": 4,
            "vocabulary_of_train": 4 / 5,
            "length": 9 / 4,
            "length_std": np.std([3, 3, 3, 0]),
        }
    )


def test_the_best_and_the_mean_of_an_images_captions_by_the_metric_itself() -> None:
    references = [["a red roof", "the roof"], ["two planes stand there", "planes"], ["a road by a river", "the road"]]
    captions = [["a roof", "a red roof"], ["two planes", "a road"], ["a river", "a road by a river"]]
    columns = [
        score_captions(dict(enumerate(column)), dict(enumerate(references)), ["CIDEr"]).per_image["CIDEr"]
        for column in zip(*captions, strict=True)
    ]
    found = best_of(captions, references)
    assert found["mean_cider"] == pytest.approx(np.mean(columns), rel=1e-12)
    assert found["best_cider"] == pytest.approx(np.maximum(*columns).mean(), rel=1e-12)


def test_one_caption_for_every_image() -> None:
    found = diversity(["there is a road"] * 100, train=[])
    assert found["distinct_1"] == 4 / 400 and found["distinct_2"] == 3 / 300 and found["unique"] == 0.01
    assert found["seen_in_train"] == 0
    assert np.isnan(found["vocabulary_of_train"])


def test_rare_words_by_hand() -> None:
    train = ["A road."] * 298 + ["a jetty and a kiln", "a jetty", "a barn"]  # 301: below 3.01 is rare
    references = [["a jetty by a road", "a kiln, a jetty"], ["a barn"], ["a zebra"]]
    assert rare_recall(["a jetty", "a road", "a zebra"], references, train) == 1 / 3  # jetty of jetty, kiln, barn
    assert rare_recall(["and a Kiln", "barn.", ""], references, train) == 2 / 3
    assert np.isnan(rare_recall(["a road"], [["a road"]], train)) and np.isnan(rare_recall([], [], []))
    more = [*train, *["a jetty"] * 2]  # 4 of 303 are no longer rare
    assert rare_recall(["a jetty", "", ""], references, more) == 0


def test_no_captions() -> None:
    assert np.isnan(diversity([], [])["distinct_1"])


REFERENCES = [["a red roof"], ["a river near trees"], ["two planes on the ground"], ["many cars"]]


def test_self_cider_limits() -> None:
    alike, apart, between = self_cider(
        [
            ["two planes on the ground"] * 4,
            ["two planes on the ground", "a river near trees", "many cars"],
            ["a river near trees", "a river near cars"],
        ],
        REFERENCES,
    )
    # A square root doubles the eigenvalues' rounding (1e-16) to 1e-8.
    assert alike == pytest.approx(0, abs=1e-6)
    # Three captions without a word in common, but of two kinds: "many cars" has no 3- and 4-grams.
    roots = np.sqrt([1, 1, 0.5])
    assert apart == pytest.approx(-np.log(1 / roots.sum()) / np.log(3), abs=1e-6)
    assert 0 < between < 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "red", "roof", "river", "x"]), max_size=6).map(" ".join),
        min_size=2,
        max_size=5,
    )
)
def test_self_cider_is_a_share_and_knows_no_order(captions: list[str]) -> None:
    (spread,) = self_cider([captions], REFERENCES)
    assert -1e-9 <= spread <= 1 + 1e-9
    assert self_cider([captions[::-1]], REFERENCES)[0] == pytest.approx(spread, abs=1e-6)


def test_self_cider_compares_at_least_two() -> None:
    with pytest.raises(ValueError, match=r"images \[1\]"):
        self_cider([["a", "b"], ["a"]], REFERENCES)
