"""SPICE through its reference implementation, where its parser's models are installed."""

import subprocess
from collections.abc import Sequence

import numpy as np

from metrics.meteor import Unavailable, find_java, find_scorer

_MODELS = ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"]


def spice(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE, the F-score of scene-graph tuples, of each caption.

    Args:
        hypotheses: B tokenised captions, words separated by spaces.
        references: for each its tokenised references.

    Returns:
        float64 [B], 0 to 1, NaN where SPICE gives none.

    Raises:
        Unavailable: Java or the models are missing, or SPICE failed; with the remedy.

    Reference:
        Anderson et al.: SPICE: Semantic Propositional Image Caption Evaluation, ECCV 2016.
    """
    find_java()
    library = find_scorer("spice") / "lib"
    if not all((library / name).exists() for name in _MODELS):
        raise Unavailable(
            f"the models of CoreNLP 3.6.0 are not installed; put {' and '.join(_MODELS)} from "
            f"https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip "
            "into the folder spice/lib of the installed pycocoevalcap"
        )
    from pycocoevalcap.spice.spice import Spice

    try:
        _, scores = Spice().compute_score(
            {image: list(group) for image, group in enumerate(references)},
            {image: [hypothesis] for image, hypothesis in enumerate(hypotheses)},
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(
            f"SPICE failed ({error}); it needs Java 8 and a writable folder spice of the installed pycocoevalcap"
        ) from error
    return np.array([score["All"]["f"] for score in scores])
