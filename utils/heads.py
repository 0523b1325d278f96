"""The heads that a configuration's losses ask for, with their targets and the metric that says whether they learn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate.utils import convert_to_fp32
from torch import nn

from data.concepts import Concepts
from data.datasets import CaptionDataset
from data.errors import UserError
from data.loading import Batch, CaptionBatches, Targets, in_order, loader, moved
from data.pairs import Authors, Pairs
from data.scenery.classes import CLASSES, THINGS
from data.sequences import Sequences
from data.truth import Boxes, Masks, Pictures, Subject, truth_of
from data.vocabulary import Vocabulary
from loss.perceptual import PerceptualLoss, load_lpips_weights
from metrics.heads import (
    Pair,
    average_precision,
    latent_information,
    mean_average_precision,
    mean_box_iou,
    mean_iou,
    mean_iou_and_boundaries,
    parallel_captions,
    recall,
    restoration,
    telling_apart,
)
from models.captioner import Captioner
from models.heads.boxes import RetinaNetDetector, SubjectHead, YOLOXDetector
from models.heads.concepts import ConceptHead
from models.heads.critic import CriticHead
from models.heads.latent import LatentHead
from models.heads.parallel import ParallelHead
from models.heads.pictures import PIDNetHead, RestorationHead, SegmentationHead
from models.heads.retrieval import RetrievalHead
from utils.checkpoint import Sizes, make_concepts, make_critic, make_latent, make_parallel, make_retrieval
from utils.config import Config
from utils.devices import autocast

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What a head is built for: the recipe, the data, its words, and the N cells of D channels it sees."""

    config: Config
    dataset: CaptionDataset
    vocabulary: Vocabulary
    cells: int
    channels: int

    @property
    def sizes(self) -> Sizes:
        """What the shapes of weights depend on beside the configuration."""
        return Sizes(len(self.vocabulary), self.channels)

    @property
    def side(self) -> int:
        """Cells a side of the encoder's grid."""
        side = math.isqrt(self.cells)
        if side * side != self.cells:
            raise UserError(f"{self.config.model.encoder.name} gives no square grid of cells; choose another encoder")
        return side


@dataclass(frozen=True)
class Head:
    """A head's module, what it should give, and its scores from all batches of a split."""

    module: nn.Module
    targets: Targets
    score: Callable[[Sequence[Pair]], dict[str, float]]


@dataclass(frozen=True)
class Kind:
    """What losses can read of a head and of its targets, and what makes it.

    A `placed` head's targets lie somewhere in the image as it is: the image must not be turned.
    """

    gives: tuple[str, ...]
    wants: tuple[str, ...]
    build: Callable[[Setting], Head]
    placed: bool = False


def build_concepts(setting: Setting) -> Head:
    """The content words of the captions."""
    options = setting.config.model.heads.concepts
    images = setting.dataset.split("train")
    concepts = Concepts(images, options.min_images)
    frequencies = (concepts.shares(images).sum(0) + 1) / (len(images) + 2)  # never 0 or 1
    head = make_concepts(setting.config, setting.sizes, frequencies)
    return Head(head, concepts, mean_average_precision)


def build_retrieval(setting: Setting) -> Head:
    """Images and captions that find each other."""
    head = make_retrieval(setting.config, setting.sizes)
    return Head(head, Pairs(), recall)


def build_critic(setting: Setting) -> Head:
    """Captions of people from captions of the captioner."""
    head = make_critic(setting.config, setting.sizes)
    return Head(head, Authors(), telling_apart)


def build_segmentation(setting: Setting) -> Head:
    """What covers the ground."""
    head = SegmentationHead(setting.channels, width_of(setting), len(CLASSES))
    return Head(head, Masks(truth_of(setting.dataset, "segmentation"), 4 * setting.side), mean_iou)


def build_pidnet(setting: Setting) -> Head:
    """The same by detail, context and boundaries."""
    head = PIDNetHead(setting.channels, width_of(setting), len(CLASSES))
    return Head(head, Masks(truth_of(setting.dataset, "pidnet"), 4 * setting.side), mean_iou_and_boundaries)


def build_yolox(setting: Setting) -> Head:
    """Every thing, without anchors."""
    size = setting.config.data.size
    head = YOLOXDetector(setting.channels, width_of(setting), len(THINGS), size)
    return Head(head, Boxes(truth_of(setting.dataset, "yolox"), size), partial(average_precision, head.find))


def build_retinanet(setting: Setting) -> Head:
    """Every thing, with anchors."""
    size = setting.config.data.size
    head = RetinaNetDetector(setting.channels, width_of(setting), len(THINGS), size, setting.side)
    return Head(head, Boxes(truth_of(setting.dataset, "retinanet"), size), partial(average_precision, head.find))


def build_subject(setting: Setting) -> Head:
    """The largest thing."""
    size = setting.config.data.size
    head = SubjectHead(setting.channels, width_of(setting), size, setting.side)
    return Head(head, Subject(truth_of(setting.dataset, "subject"), size), mean_box_iou)


def build_restoration(setting: Setting) -> Head:
    """The picture itself."""
    try:
        lpips = PerceptualLoss(criterion="lpips", lin_weights=load_lpips_weights(), normalize=True)
    except FileNotFoundError as error:
        raise UserError(f"head: restoration is scored by LPIPS: {error}") from None
    head = RestorationHead(setting.channels, width_of(setting))
    return Head(head, Pictures(setting.dataset, 8 * setting.side), partial(restoration, lpips))


def build_latent(setting: Setting) -> Head:
    """What kind of caption comes."""
    if setting.config.train.reward:
        raise UserError("head: latent codes captions of people, and train.reward samples others; drop one")
    head = make_latent(setting.config, setting.sizes)
    return Head(head, Pairs(), latent_information)


def build_parallel(setting: Setting) -> Head:
    """All words at once."""
    if setting.config.regions.kind != "grid":
        raise UserError("head: parallel looks at the encoder's cells; set regions.kind=grid")
    head = make_parallel(setting.config, setting.sizes)
    return Head(head, Sequences(len(head.queries)), partial(parallel_captions, setting.vocabulary))


def width_of(setting: Setting) -> int:
    """Channels of the maps of heads that say something of each place."""
    return setting.config.model.heads.width


HEADS: dict[str, Kind] = {
    "concepts": Kind(ConceptHead.gives, Concepts.gives, build_concepts),
    "retrieval": Kind(RetrievalHead.gives, Pairs.gives, build_retrieval),
    "critic": Kind(CriticHead.gives, Authors.gives, build_critic),
    "segmentation": Kind(SegmentationHead.gives, Masks.gives, build_segmentation, placed=True),
    "pidnet": Kind(PIDNetHead.gives, Masks.gives, build_pidnet, placed=True),
    "yolox": Kind(YOLOXDetector.gives, Boxes.gives, build_yolox, placed=True),
    "retinanet": Kind(RetinaNetDetector.gives, Boxes.gives, build_retinanet, placed=True),
    "subject": Kind(SubjectHead.gives, Subject.gives, build_subject, placed=True),
    "restoration": Kind(RestorationHead.gives, Pictures.gives, build_restoration, placed=True),
    "latent": Kind(LatentHead.gives, Pairs.gives, build_latent),
    "parallel": Kind(ParallelHead.gives, Sequences.gives, build_parallel),
}
OUT = [f"{name}.{key}" for name, kind in HEADS.items() for key in kind.gives]
TARGET = [f"{name}.{key}" for name, kind in HEADS.items() for key in kind.wants]


def build_heads(names: Sequence[str | None], setting: Setting) -> dict[str, Head]:
    """The heads among `names`, in the registry's order; `UserError` where the data or the recipe cannot serve one."""
    asked = {name: kind for name, kind in HEADS.items() if name in names}
    config = setting.config
    turned = {
        "data.augment=false": config.model.encoder.trainable and config.data.augment,
        "data.views=1": not config.model.encoder.trainable and config.data.views > 1,
        "decoding.views=1": not config.model.encoder.trainable and config.decoding.views > 1,
    }
    placed = [name for name, kind in asked.items() if kind.placed]
    if placed and any(turned.values()):
        ways = " ".join(key for key, on in turned.items() if on)
        raise UserError(f"head: {placed[0]} learns where things lie, and images are turned; set {ways}")
    return {name: kind.build(setting) for name, kind in asked.items()}


@torch.inference_mode()
def score_heads(
    captioner: Captioner,
    heads: Mapping[str, Head],
    batches: CaptionBatches,
    precision: str,
    show: Callable[[Batch], Batch] = lambda batch: batch,
    batch_size: int = 64,
) -> dict[str, float]:
    """`head/metric` of every head on the images of `batches`, each seen as `show` gives it."""
    if not heads:
        return {}
    torch.manual_seed(0)  # what `show` draws depends on nothing before
    device = captioner.encoder.mean.device
    captioner.eval()
    keys = in_order(batches.rows, batch_size)
    pairs: dict[str, list[Pair]] = {name: [] for name in heads}
    for batch in loader(batches, keys, workers=0):
        seen = show(batch.to(device))
        with autocast(device, precision):
            out = captioner.look(seen.visuals, seen.tokens[:, :-1], seen.image_of, seen.shown)
        for name, given in out.items():
            pairs[name].append((convert_to_fp32(moved(given, HOST)), moved(seen.targets[name], HOST)))
    scores: dict[str, float] = {}
    for name, head in heads.items():
        scores |= {f"{name}/{metric}": value for metric, value in head.score(pairs[name]).items()}
    return scores
