"""What criteria read that is neither annotated nor the captioner's own output: teachers, and captions with rewards.

Guides change a batch before its step. `train.reward` replaces its captions by samples from the model, each weighted
with what it gained (self-critical training); then every other model that a criterion reads says, for the same words,
what it would say next (distillation, anchors).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.datasets import CaptionDataset
from data.errors import UserError
from data.loading import Batch, CaptionBatches, Readable, Visuals
from loss import LossFactory
from metrics.cider_reward import CiderReward
from models.captioner import Captioner
from models.decoding import greedy, sample
from models.pooling import Visual
from models.tokens import END, PAD, START
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.config import Config, RewardConfig
from utils.devices import autocast
from utils.sources import frozen_features, stored_regions

# what a criterion can read as target.KEY -> the option of `train` that brings it
TARGET = {"teacher_logits": "teachers", "ref_logits": "init", "old_policy": "reward"}


def load_models(config: Config) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The checkpoints `train.init` and `train.teachers`.

    Raises `UserError` where `train.init` has not the run's encoder, decoder and regions, or where two have other words.
    """
    paths = [path for path in (config.train.init, *config.train.teachers) if path]
    loaded = [load_checkpoint(Path(path)) for path in paths]
    for path, checkpoint in zip(paths, loaded, strict=True):
        if checkpoint.vocabulary.words != loaded[0].vocabulary.words:
            raise UserError(f"{path}: other words than {paths[0]} has; train both on the same captions")
    if config.train.init is None:
        return None, loaded
    for part in ("model.encoder.name", "model.decoder.width", "regions"):
        had, wanted = (attrgetter(part)(which) for which in (loaded[0].config, config))
        if had != wanted:
            raise UserError(f"{paths[0]}: trained with {part}={had}, not {wanted}; begin with the same")
    return loaded[0], loaded[1:]


class Guides:
    """All guides of a run; `guides(batch, epoch)` is what the step is made with.

    Only what a criterion reads is computed: `teacher_logits` of `train.teachers`; `ref_logits` of the frozen
    `train.init`; `old_policy`, the captioner's own logits when the captions were sampled.

    Args:
        config, criteria, captioner: the run's. init, teachers: the checkpoints of `train`. dataset, batches: what it
            is trained on. precision: of its products.
    """

    def __init__(
        self,
        config: Config,
        criteria: LossFactory,
        captioner: Captioner,
        init: Checkpoint | None,
        teachers: Sequence[Checkpoint],
        dataset: CaptionDataset,
        batches: CaptionBatches,
        precision: str,
    ) -> None:
        self.precision = precision
        self.rewards: Rewards | None = None
        self.sources: dict[str, Callable[[Batch, int], Tensor]] = {}
        if config.train.reward:
            self.rewards = Rewards(captioner, batches, config.train.reward, config.data.max_words, precision)
            if "target.old_policy" in criteria.reads:
                self.sources["old_policy"] = lambda batch, epoch: next_words(captioner, batch, precision)
        if init and "target.ref_logits" in criteria.reads:
            self.sources["ref_logits"] = Teachers([init.captioner], [None], captioner.encoder.mean.device, precision)
        if "target.teacher_logits" in criteria.reads:
            seen = [self._visuals(config, teacher, dataset) for teacher in teachers]
            device = captioner.encoder.mean.device
            self.sources["teacher_logits"] = Teachers([t.captioner for t in teachers], seen, device, precision)

    def _visuals(self, config: Config, teacher: Checkpoint, dataset: CaptionDataset) -> Visuals | None:
        """What a teacher looks at: the images that the student sees, or its own encoder's features of them."""
        if config.model.encoder.trainable:
            return None
        kept = config.data.model_dump(include={"cache_dir", "workers", "blank_images", "views"})
        own = teacher.config.model_copy(
            update={"seed": config.seed, "data": teacher.config.data.model_copy(update=kept)}
        )
        encoder, images = teacher.captioner.encoder, dataset.split("train")
        features = frozen_features(own, dataset, images, encoder, self.precision, config.data.views)
        return Visuals(features, stored_regions(own, dataset, images, encoder))

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch, with sampled captions where there are rewards, and with all that criteria read in `guides`."""
        if self.rewards:
            batch = self.rewards(batch)
        return replace(batch, guides=batch.guides | {key: say(batch, epoch) for key, say in self.sources.items()})


class Rewards:
    """Self-critical training's transformation of a batch (Rennie et al., CVPR 2017).

    K captions c_1..c_K are sampled of each image, and the loss of each is weighted by its advantage

        A_k = r(c_k) - b,   b = r(greedy caption)               (baseline "greedy")
                            b = 1/(K-1) sum_{j != k} r(c_j)     (baseline "mean"; Luo, arXiv 2003.09971)

    with r the CIDEr-D against the image's train captions. The gradient of cross-entropy without label smoothing is
    then that of -E[r], per word. Sampling is without dropout: what improves is the policy that captions are made by.

    Args:
        captioner: what is trained. batches: of the train split; they hold the references. config: K and b.
        max_words: of the longest caption. precision: of the products.
    """

    def __init__(
        self, captioner: Captioner, batches: CaptionBatches, config: RewardConfig, max_words: int, precision: str
    ) -> None:
        self.captioner, self.config, self.max_words, self.precision = captioner, config, max_words, precision
        references = {row: [tokens[1:] for tokens in batches.captions[row].elements()] for row in batches.rows}
        self.cider = CiderReward(references)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the P <= B * K distinct captions among B * K samples, `weight` [P] how often each was drawn.

        In `guides`, `weight` [P] is what the copies of each gained together, and `reward` the mean of r.
        """
        images, k, device = len(batch.rows), self.config.samples, batch.tokens.device
        owner = torch.arange(images, device=device).repeat_interleave(k)
        decoder, rows = self.captioner.decoder, batch.rows.tolist()
        with evaluating(self.captioner), autocast(device, self.precision):
            regions = self.captioner.regions(batch.visuals)
            said = [h.tokens for h in sample(decoder, regions.select(owner), self.max_words)]
            plain = (
                [h.tokens for h in greedy(decoder, regions, self.max_words)] if self.config.baseline == "greedy" else []
            )
        reward = self._reward(said, [row for row in rows for _ in range(k)]).view(images, k)
        if self.config.baseline == "greedy":
            gained = reward - self._reward(plain, rows)[:, None]
        else:
            gained = (reward - reward.mean(1, keepdim=True)) * k / (k - 1)
        # each distinct caption once, as in the data: what its copies gained adds up
        place: dict[tuple[int, ...], int] = {}
        copy_of = torch.tensor([place.setdefault((i // k, *words), len(place)) for i, words in enumerate(said)])
        tokens = [torch.tensor([START, *words, END]) for _, *words in place]
        times = torch.zeros(len(place)).index_add(0, copy_of, torch.ones(len(said)))
        advantage = torch.zeros(len(place)).index_add(0, copy_of, gained.flatten())
        return replace(
            batch,
            tokens=pad_sequence(tokens, batch_first=True, padding_value=PAD).to(device),
            image_of=torch.tensor([image for image, *_ in place], device=device),
            weight=times.to(device),
            guides={"weight": advantage.to(device), "reward": reward.mean().to(device)},
        )

    def _reward(self, said: Sequence[Sequence[int]], rows: Sequence[int]) -> Tensor:
        # closed by <end>, as the references are: a caption that breaks off is not a whole one
        return torch.tensor(self.cider([[*words, END] for words in said], rows), dtype=torch.float32)


class Teachers:
    """The mean word probabilities of captioners that are not trained, as logits log(1/M sum_m p_m), float32 [P, T, V].

    Args:
        captioners: M of them, with the run's vocabulary. visuals: what each looks at, by row of the train split; None:
            what the batch holds. device, precision: of the products.
    """

    def __init__(
        self,
        captioners: Sequence[Captioner],
        visuals: Sequence[Readable[Visual] | None],
        device: torch.device,
        precision: str,
    ) -> None:
        self.captioners = [captioner.to(device).eval() for captioner in captioners]
        self.visuals, self.precision = visuals, precision

    def __call__(self, batch: Batch, epoch: int) -> Tensor:
        """What the teachers would say next, after each token of the batch."""
        log_p = []
        for captioner, visuals in zip(self.captioners, self.visuals, strict=True):
            seen = visuals.read(batch.rows.tolist(), epoch).to(batch.tokens.device) if visuals else batch.visuals
            log_p.append(next_words(captioner, replace(batch, visuals=seen), self.precision).float().log_softmax(-1))
        return torch.stack(log_p).logsumexp(0)  # without 1/M: a softmax does not see it


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
