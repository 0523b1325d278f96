import random
import shutil
import threading
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor

from data.tokenizer import tokenize
from metrics import meteor
from metrics import scores as scoring
from metrics.meteor import MeteorProcess, Unavailable

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs a Java runtime")

WORDS = ["a", "the", "two", "many", "road", "roads", "river", "car", "automobile", "ran", "running", "(red)"]
WORDS += ["café", "isn't", "st.", "building", "quickly"]


@pytest.fixture(scope="module")
def process() -> MeteorProcess:
    return scoring._meteor_process()  # one for all: to start Java takes ten seconds of a core


def corpus(images: int) -> tuple[list[str], list[list[str]]]:
    dice = random.Random(0)

    def caption(most: int = 10) -> str:
        return " ".join(tokenize(" ".join(dice.choices(WORDS, k=dice.randint(0, most)))))

    references = [[caption() for _ in range(dice.randint(1, 5))] for _ in range(images)]
    odd = ["", "a", *(group[0] for group in references[2:40])]  # empty, one word, perfect
    return odd + [caption() for _ in range(images - len(odd))], references


def test_equals_pycocoevalcap(process: MeteorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    # pycocoevalcap leaves Java's encoding and locale to the machine.
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8 -Duser.language=en -Duser.country=US")
    hypotheses, references = corpus(300)
    theirs, per_image = Meteor().compute_score(
        dict(enumerate(references)), {image: [text] for image, text in enumerate(hypotheses)}
    )
    counts = process.align(hypotheses, references)
    np.testing.assert_allclose(meteor.score(counts), per_image, atol=1e-9)
    assert meteor.score(counts.sum(axis=0)) == pytest.approx(theirs, abs=1e-9)

    # A resample is scored as the jar scores the same captions, each as often.
    chosen = random.Random(1).choices(range(300), k=40)
    resample = process.align([hypotheses[i] for i in chosen], [references[i] for i in chosen])
    weights = np.bincount(chosen, minlength=300)
    assert meteor.score(weights @ counts) == pytest.approx(float(meteor.score(resample.sum(0))), abs=1e-12)


def test_a_perfect_caption_scores_1_and_a_foreign_one_0(process: MeteorProcess) -> None:
    counts = process.align(["two red planes", "zzz", ""], [["a road", "two red planes"], ["qqq"], ["a"]])
    np.testing.assert_allclose(meteor.score(counts), [1, 0, 0], atol=1e-12)


def test_separators_inside_a_caption_shift_nothing(process: MeteorProcess) -> None:
    counts = process.align(["a|||b road", "a river"], [["a road <x|||y>"], ["a river"]])
    assert meteor.score(counts)[1] == pytest.approx(1)


def test_no_images(process: MeteorProcess) -> None:
    assert process.align([], []).shape == (0, 23)


def test_a_large_request_does_not_block(process: MeteorProcess) -> None:
    """Requests and answers past what pipes hold (64 KiB): who writes all before reading waits for ever."""
    assert process.align(["a road near a river"] * 3000, [["a road"] * 5] * 3000).shape == (3000, 23)


def test_score_captions_goes_through_it(process: MeteorProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_process", process)
    scores = scoring.score_captions({1: "A red road.", 2: "x"}, {1: ["a red road"], 2: ["y"]}, ["METEOR"])
    assert scores.per_image["METEOR"].tolist() == [1, 0]
    assert 0 < scores.metrics["METEOR"] < 1
    assert scoring._meteor_process() is process


def test_when_java_dies_the_reason_is_told_and_the_next_call_starts_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Dying(MeteorProcess):
        def align(self, *args: Any) -> np.ndarray:
            # With more to read than a pipe holds: the writer, too, must notice.
            threading.Timer(0.2, self._process.kill).start()
            return super().align(*args)

    process = Dying()
    monkeypatch.setattr(scoring, "_process", process)
    images = range(5000)
    scores = scoring.score_captions(dict.fromkeys(images, "a road"), {image: ["b"] for image in images})
    assert "ended" in scores.unavailable["METEOR"] and "memory" in scores.unavailable["METEOR"]
    assert "CIDEr" in scores.metrics
    anew = scoring._meteor_process()
    assert anew is not process and anew.alive
    anew.close()


def test_when_java_hangs_it_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "PATIENCE_S", 0.0)
    process = MeteorProcess()
    with pytest.raises(Unavailable, match="silent"):
        process.align(["a road"], [["a road"]])
    assert not process.alive
