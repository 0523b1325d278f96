import numpy as np
import torch

from utils.heads import mean_average_precision


def naive(scores: list[float], truth: list[bool]) -> float:
    """Average precision by its definition: the mean, over what is there, of the precision down to it."""
    ranked = [t for _, t in sorted(zip(scores, truth, strict=True), key=lambda pair: -pair[0])]
    precisions = [sum(ranked[: i + 1]) / (i + 1) for i, t in enumerate(ranked) if t]
    return sum(precisions) / len(precisions)


def test_mean_average_precision_by_its_definition() -> None:
    pred, target = torch.randn(20, 7), torch.rand(20, 7).where(torch.rand(20, 7) < 0.3, 0.0)
    target[:, 3] = 0  # a concept that no image has: no precision to speak of
    target[0, 0] = 0.2
    columns = [i for i in range(7) if target[:, i].any()]
    expected = np.mean([naive(pred[:, i].tolist(), (target[:, i] > 0).tolist()) for i in columns])
    found = mean_average_precision({"pred": pred}, {"target": target})
    assert abs(found["mAP"] - expected) < 1e-9


def test_mean_average_precision_without_concepts_is_zero() -> None:
    nothing = mean_average_precision({"pred": torch.zeros(3, 2)}, {"target": torch.zeros(3, 2)})
    assert nothing == {"mAP": 0.0}
