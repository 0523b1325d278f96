"""What models that are not trained say next: as they are asked, or from a file of soft targets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.datasets import CaptionDataset
from data.errors import UserError
from data.loading import Batch, CaptionBatches, Readable, Visuals
from data.soft_targets import SoftTargets
from models.captioner import Captioner
from models.pooling import Visual
from models.tokens import PAD
from utils.checkpoint import Checkpoint
from utils.config import Config
from utils.devices import autocast
from utils.sources import frozen_features, stored_regions

Teacher = Callable[[Batch, int], Tensor]
"""log p [P, T, V] of what follows each token of a batch that is seen in an epoch."""


class LiveTeacher:
    """A captioner that is asked.

    Args:
        captioner: it has the run's vocabulary. visuals: what it looks at, by row of the train split; None: what the
            batch holds. device, precision: of the products.
    """

    def __init__(
        self, captioner: Captioner, visuals: Readable[Visual] | None, device: torch.device, precision: str
    ) -> None:
        self.captioner, self.visuals, self.precision = captioner.to(device).eval(), visuals, precision

    def __call__(self, batch: Batch, epoch: int) -> Tensor:
        """Log p [P, T, V], float32."""
        if self.visuals is not None:
            seen = self.visuals.read(batch.rows.tolist(), epoch).to(batch.tokens.device)
            batch = replace(batch, visuals=seen)
        return next_words(self.captioner, batch, self.precision).float().log_softmax(-1)


class StoredTeacher:
    """What was said of the images as they are, whatever view the batch has of them.

    Raises `UserError` where a caption of `batches` was not asked about.
    """

    def __init__(self, targets: SoftTargets, batches: CaptionBatches) -> None:
        self.targets, self.names = targets, [image.filename for image in batches.images]
        targets.check((self.names[row], tokens) for row in batches.rows for tokens in batches.captions[row])

    def __call__(self, batch: Batch, epoch: int) -> Tensor:
        """Log p [P, T, V], float32, 0 where nothing follows."""
        said = [self.targets.read(self.names[row], tokens) for row, tokens in captions_of(batch)]
        return pad_sequence(said, batch_first=True).to(batch.tokens.device)


def make_teacher(
    config: Config,
    teachers: Sequence[Checkpoint | SoftTargets],
    dataset: CaptionDataset,
    batches: CaptionBatches,
    device: torch.device,
    precision: str,
    views: int | None,
) -> Teacher:
    """The mean of the probabilities of all teachers, as logits log sum_m p_m, float32 [P, T, V].

    A captioner looks at so many views of the images, by its own encoder; None: at the batch's, and `UserError` where
    its regions are others.
    """

    def asked(teacher: Checkpoint | SoftTargets) -> Teacher:
        if isinstance(teacher, Checkpoint):
            if views is None and teacher.config.regions != config.regions:
                raise UserError(
                    "train.teachers: one that looks at what a trained encoder looks at needs the run's regions; set "
                    "model.encoder.trainable=false, or name one with the same regions"
                )
            visuals = None if views is None else teacher_visuals(config, teacher, dataset, precision, views)
            return LiveTeacher(teacher.captioner, visuals, device, precision)
        if config.train.reward:
            raise UserError(f"train.teachers: {teacher.path} holds no word on samples (train.reward); name checkpoints")
        return StoredTeacher(teacher, batches)

    return mean_of([asked(teacher) for teacher in teachers])


def mean_of(teachers: Sequence[Teacher]) -> Teacher:
    """The teacher that says the mean of the probabilities of others (without 1/M, which a softmax does not see)."""
    return lambda batch, epoch: torch.stack([teacher(batch, epoch) for teacher in teachers]).logsumexp(0)


def teacher_visuals(
    config: Config, teacher: Checkpoint, dataset: CaptionDataset, precision: str, views: int
) -> Visuals:
    """The features of the train images, in so many views, by a teacher's own encoder, and its regions."""
    kept = config.data.model_dump(include={"cache_dir", "workers", "blank_images"}) | {"views": views}
    own = teacher.config.model_copy(update={"seed": config.seed, "data": teacher.config.data.model_copy(update=kept)})
    encoder, images = teacher.captioner.encoder, dataset.split("train")
    features = frozen_features(own, dataset, images, encoder, precision, views)
    return Visuals(features, stored_regions(own, dataset, images, encoder))


def captions_of(batch: Batch) -> list[tuple[int, tuple[int, ...]]]:
    """Of each caption of a batch its image's row and its tokens, without padding."""
    rows, lengths = batch.rows[batch.image_of].tolist(), (batch.tokens != PAD).sum(1).tolist()
    return [(r, tuple(tokens[:n])) for r, tokens, n in zip(rows, batch.tokens.tolist(), lengths, strict=True)]


@contextmanager
def evaluating(captioner: Captioner) -> Iterator[None]:
    """Without dropout and gradients, and back."""
    training = captioner.training
    captioner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        captioner.train(training)


def next_words(captioner: Captioner, batch: Batch, precision: str) -> Tensor:
    """A captioner's logits [P, T, V] after each token of the batch, without dropout and gradients."""
    with evaluating(captioner), autocast(batch.tokens.device, precision):
        return captioner(batch.visuals, batch.tokens[:, :-1], batch.image_of).logits
