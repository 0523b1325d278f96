"""Scores and reward beside pycocoevalcap's, in time and in value, on generated captions of RSICD's sizes.

    python benchmarks/metrics.py

pycocoevalcap's time includes its tokenizer (Java), ours includes our own.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metrics.cider_reward import CiderReward
from metrics.scores import FAST, score_captions

VAL, TRAIN, REFERENCES, WORDS = 1093, 8734, 5, 2600  # RSICD's images, captions an image, words
BATCH, SAMPLES = 64, 5
RUNS = 5

dice = random.Random(0)
vocabulary = [f"{a}{b}" for a in ("", "bar", "den", "lop", "mur") for b in ("a", "in", "of", "the", "is")]
vocabulary += ["".join(dice.choices("abcdefghilmnoprstu", k=dice.randint(3, 9))) for _ in range(WORDS)]
weights = [1 / (rank + 3) for rank in range(len(vocabulary))]  # Zipf


def caption() -> str:
    words = dice.choices(vocabulary, weights, k=max(3, round(dice.gauss(11, 3))))
    return " ".join(words) + " ."


def perturbed(text: str) -> str:
    return " ".join(dice.choice(vocabulary) if dice.random() < 0.3 else word for word in text.split(" "))


def image() -> list[str]:
    """Five captions of one image, as alike as annotators are."""
    first = caption()
    return [first, *(perturbed(first) for _ in range(REFERENCES - 1))]


def timed(call: Callable[[], Any], runs: int = RUNS) -> tuple[float, Any]:
    """Median seconds of some runs, and what the last returned."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def pycocoevalcap(hypotheses: dict[int, str], references: dict[int, list[str]]) -> dict[str, float]:
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({k: [{"caption": c} for c in group] for k, group in references.items()})
    result = tokenizer.tokenize({k: [{"caption": c}] for k, c in hypotheses.items()})
    bleu, _ = Bleu(4).compute_score(truth, result, verbose=0)
    scores = {f"Bleu_{n}": value for n, value in enumerate(bleu, start=1)}
    return scores | {
        "ROUGE_L": Rouge().compute_score(truth, result)[0],
        "CIDEr": Cider().compute_score(truth, result)[0],
    }


def scores() -> None:
    references = {key: image() for key in range(VAL)}
    hypotheses = {key: perturbed(group[0]) for key, group in references.items()}
    theirs_s, theirs = timed(lambda: pycocoevalcap(hypotheses, references), runs=3)
    ours_s, ours = timed(lambda: score_captions(hypotheses, references, FAST).metrics)
    print(f"BLEU, ROUGE-L, CIDEr with tokenization, {VAL} images x {REFERENCES} references, median seconds")
    print(f"  pycocoevalcap {theirs_s:.3f}   ours {ours_s:.3f}   {theirs_s / ours_s:.1f} times as fast")
    print(f"  largest difference of a score {max(abs(ours[name] - theirs[name]) for name in theirs):.1e}")


def reward() -> None:
    train = {key: [text.split() for text in image()] for key in range(TRAIN)}
    build_s, reward = timed(lambda: CiderReward(train), runs=1)
    keys = [key for key in dice.sample(range(TRAIN), BATCH) for _ in range(SAMPLES)]
    samples = [perturbed(" ".join(train[key][0])).split() for key in keys]
    ours_s, _ = timed(lambda: reward(samples, keys), runs=20)

    # pycocoevalcap takes document frequencies from what it scores: the batch, on which both can be compared.
    truth = {i: [" ".join(words) for words in train[key]] for i, key in enumerate(keys)}
    result = {i: [" ".join(words)] for i, words in enumerate(samples)}
    theirs_s, (_, theirs) = timed(lambda: Cider().compute_score(truth, result))
    on_batch = CiderReward({i: train[key] for i, key in enumerate(keys)})
    difference = np.abs(on_batch(samples, range(len(keys))) - theirs).max()
    print(f"CIDEr-D of {BATCH} images x {SAMPLES} samples, {REFERENCES} references, median milliseconds")
    print(
        f"  pycocoevalcap {1e3 * theirs_s:.1f}   ours {1e3 * ours_s:.1f}"
        f"   {theirs_s / ours_s:.1f} times as fast (once, for {TRAIN} images: {build_s:.2f} s)"
    )
    print(f"  largest difference of a reward, with the batch's document frequencies {difference:.1e}")


if __name__ == "__main__":
    scores()
    reward()
