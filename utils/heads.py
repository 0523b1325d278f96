"""The heads that a configuration's losses ask for, with their targets and the metric that says whether they learn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.annotations import AnnotatedImage
from data.concepts import Concepts
from data.loading import BatchKey, Readable, Targets, visual_loader
from models.captioner import Captioner
from models.heads import ConceptHead
from models.pooling import Visual
from utils.config import HeadsConfig
from utils.devices import autocast


@dataclass(frozen=True)
class Head:
    """A head's module, what it should give, and its scores from all outputs and targets of a split."""

    module: nn.Module
    targets: Targets
    score: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, float]]


def build_concepts(config: HeadsConfig, images: Sequence[AnnotatedImage], channels: int) -> Head:
    """The head that predicts the content words of the captions."""
    concepts = Concepts(images, config.concepts.min_images)
    target = concepts.read(images)["target"]
    frequencies = (target.sum(0) + 1) / (len(images) + 2)  # never 0 or 1
    return Head(ConceptHead(channels, frequencies, config.concepts.dropout), concepts, mean_average_precision)


# head -> what makes it, and the keys that its losses can read
HEADS: dict[str, Callable[[HeadsConfig, Sequence[AnnotatedImage], int], Head]] = {"concepts": build_concepts}
OUT = [f"concepts.{key}" for key in ConceptHead.gives]
TARGET = [f"concepts.{key}" for key in Concepts.gives]


def mean_average_precision(out: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, float]:
    """`mAP` over the concepts that stand in at least one caption: the mean of each one's average precision.

    `out["pred"]` are logits [B, C]; an image has a concept where `target["target"]` [B, C] is above 0.
    """
    from sklearn.metrics import average_precision_score  # its import takes a second

    truth = (target["target"] > 0).numpy()
    present = truth.any(0)
    if not present.any():
        return {"mAP": 0.0}
    return {"mAP": float(average_precision_score(truth[:, present], out["pred"].float().numpy()[:, present]))}


@torch.inference_mode()
def score_heads(
    captioner: Captioner,
    heads: Mapping[str, Head],
    images: Sequence[AnnotatedImage],
    visuals: Readable[Visual],
    precision: str,
    batch_size: int = 64,
) -> dict[str, float]:
    """`head/metric` of every head on these images, whose visual input is `visuals`."""
    if not heads:
        return {}
    device = captioner.encoder.mean.device
    captioner.eval()
    keys = [BatchKey(0, list(range(len(images)))[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    outs: list[dict[str, dict[str, Tensor]]] = []
    for chunk in visual_loader(visuals, keys, workers=0):
        with autocast(device, precision):
            outs.append(captioner.look(chunk.to(device)))
    scores: dict[str, float] = {}
    for name, head in heads.items():
        out = {key: torch.cat([o[name][key].cpu() for o in outs]) for key in outs[0][name]}
        values = head.score(out, head.targets.read(images))
        scores |= {f"{name}/{metric}": value for metric, value in values.items()}
    return scores
