"""What criteria read that is not annotated: captions with rewards, forgeries for a critic, and what teachers say.

Guides change a batch before its step. `train.reward` replaces its captions by samples from the model, each weighted
with what it gained (self-critical training); a critic is shown samples beside what people wrote; then every other
model that a criterion reads says, for the same words, what it would say next (distillation, anchors).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.datasets import CaptionDataset
from data.errors import UserError
from data.loading import Batch, CaptionBatches
from data.soft_targets import SoftTargets
from loss import LossFactory
from metrics.cider_reward import CiderReward
from models.captioner import Captioner
from models.decoding import greedy, sample
from models.heads import Seen
from models.tokens import END, PAD, START
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.config import Config, RewardConfig
from utils.devices import autocast
from utils.teachers import LiveTeacher, Teacher, evaluating, make_teacher, next_words

# what a criterion can read as target.KEY -> the option of `train` that brings it
TARGET = {"teacher_logits": "teachers", "ref_logits": "init", "old_policy": "reward"}


def load_models(config: Config) -> tuple[Checkpoint | None, list[Checkpoint | SoftTargets]]:
    """The checkpoint `train.init`, and `train.teachers`: checkpoints, or files of what teachers said (.h5).

    Raises `UserError` where `train.init` has not the run's encoder, decoder and regions, or where two have other words.
    """
    init = load_checkpoint(Path(config.train.init)) if config.train.init else None
    paths = map(Path, config.train.teachers)
    teachers = [SoftTargets(path) if path.suffix == ".h5" else load_checkpoint(path) for path in paths]
    models = zip((config.train.init, *config.train.teachers), (init, *teachers), strict=True)
    named = [(path, model.vocabulary.words) for path, model in models if model]
    for path, words in named:
        if words != named[0][1]:
            raise UserError(f"{path}: other words than {named[0][0]} has; train both on the same captions")
    if init is None:
        return None, teachers
    heads = (f"heads.{name}" for name in init.captioner.heads)
    model = ("encoder.name", "encoder.extra_layers", "decoder.width", "decoder.attention", *heads)
    for part in ("regions", *(f"model.{part}" for part in model)):
        had, wanted = (attrgetter(part)(which) for which in (init.config, config))
        if had != wanted:
            raise UserError(f"{config.train.init}: trained with {part}={had}, not {wanted}; begin with the same")
    return init, teachers


class Guides:
    """All guides of a run; `guides(batch, epoch)` is what the step is made with.

    Only what a criterion reads is computed: `teacher_logits` of `train.teachers`; `ref_logits` of the frozen
    `train.init`; `old_policy`, the captioner's own logits when the captions were sampled.

    Args:
        config, criteria, captioner: the run's. init, teachers: those of `train`. dataset, batches: what it is trained
            on. precision: of its products.
    """

    def __init__(
        self,
        config: Config,
        criteria: LossFactory,
        captioner: Captioner,
        init: Checkpoint | None,
        teachers: Sequence[Checkpoint | SoftTargets],
        dataset: CaptionDataset,
        batches: CaptionBatches,
        precision: str,
    ) -> None:
        self.precision = precision
        self.rewards: Rewards | None = None
        self.draw: Callable[[Batch], Batch] | None = None
        if "critic" in captioner.heads:
            self.draw = partial(samples_of, captioner, max_words=config.data.max_words, precision=precision)
        elif config.train.reward and config.train.reward.critic:
            raise UserError("train.reward.critic: no loss trains a critic; add {criterion: gan_loss, head: critic}")
        self.sources: dict[str, Teacher] = {}
        device = captioner.encoder.mean.device
        if config.train.reward:
            if not (config.train.reward.cider or config.train.reward.critic):
                raise UserError("train.reward: cider and critic are both 0, so nothing is rewarded; raise one")
            self.rewards = Rewards(captioner, batches, config.train.reward, config.data.max_words, precision)
            if "target.old_policy" in criteria.reads:
                self.sources["old_policy"] = lambda batch, epoch: next_words(captioner, batch, precision)
        if init and "target.ref_logits" in criteria.reads:
            self.sources["ref_logits"] = LiveTeacher(init.captioner, None, device, precision)
        if "target.teacher_logits" in criteria.reads:
            views = None if config.model.encoder.trainable else config.data.views
            self.sources["teacher_logits"] = make_teacher(config, teachers, dataset, batches, device, precision, views)

    def show(self, batch: Batch) -> Batch:
        """The batch, with samples beside its captions where there is a critic to look at them."""
        return with_forgeries(batch, batch, self.draw(batch)) if self.draw else batch

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch, with sampled captions where there are rewards, and with all that criteria read in `guides`."""
        batch = self.rewards(batch) if self.rewards else self.show(batch)
        return replace(batch, guides=batch.guides | {key: say(batch, epoch) for key, say in self.sources.items()})


class Rewards:
    """Self-critical training's transformation of a batch (Rennie et al., CVPR 2017).

    K captions c_1..c_K are sampled of each image, and the loss of each is weighted by its advantage

        A_k = r(c_k) - b,   b = r(greedy caption)               (baseline "greedy")
                            b = 1/(K-1) sum_{j != k} r(c_j)     (baseline "mean"; Luo, arXiv 2003.09971)

    with r = `cider` times the CIDEr-D against the image's train captions + `critic` times the probability that a person
    wrote c, by the critic as it stands (Dai et al., ICCV 2017, section 3.2). The gradient of cross-entropy without
    label smoothing is then that of -E[r], per word. Sampling is without dropout: what improves is the policy that
    captions are made by. Heads go on with the annotated captions, but for one that tells the decoder what to speak of.

    Args:
        captioner: what is trained. batches: of the train split; they hold the references. config: K, b and r.
        max_words: of the longest caption. precision: of the products.
    """

    def __init__(
        self, captioner: Captioner, batches: CaptionBatches, config: RewardConfig, max_words: int, precision: str
    ) -> None:
        self.captioner, self.config, self.max_words, self.precision = captioner, config, max_words, precision
        references = {row: [tokens[1:] for tokens in batches.captions[row].elements()] for row in batches.rows}
        self.cider = CiderReward(references) if config.cider else None
        self.telling = [name for name, head in captioner.heads.items() if head in captioner.tellers]

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the P <= B * K distinct captions among B * K samples, `weight` [P] how often each was drawn.

        In `guides`, `weight` [P] is what the copies of each gained together, and `reward` the mean of r.
        """
        images, k, device = len(batch.rows), self.config.samples, batch.tokens.device
        owner = torch.arange(images, device=device).repeat_interleave(k)
        decoder = self.captioner.decoder
        with evaluating(self.captioner), autocast(device, self.precision):
            regions = self.captioner.regions(batch.visuals)
            said = [h.tokens for h in sample(decoder, regions, self.max_words, samples=k)]
            plain = (
                [h.tokens for h in greedy(decoder, regions, self.max_words)] if self.config.baseline == "greedy" else []
            )
        reward = self._reward(said, batch, owner).view(images, k)
        if self.config.baseline == "greedy":
            gained = reward - self._reward(plain, batch, torch.arange(images, device=device))[:, None]
        else:
            gained = (reward - reward.mean(1, keepdim=True)) * k / (k - 1)
        # each distinct caption once, as in the data: what its copies gained adds up
        place: dict[tuple[int, ...], int] = {}
        copy_of = torch.tensor([place.setdefault((i // k, *words), len(place)) for i, words in enumerate(said)])
        times = torch.zeros(len(place)).index_add(0, copy_of, torch.ones(len(said)))
        advantage = torch.zeros(len(place)).index_add(0, copy_of, gained.flatten())
        people = {"tokens": batch.tokens, "image_of": batch.image_of}
        drawn = replace(
            batch,
            tokens=closed([words for _, *words in place]).to(device),
            image_of=torch.tensor([image for image, *_ in place], device=device),
            weight=times.to(device),
            shown={name: people for name in batch.targets if name not in self.telling},
            guides={"weight": advantage.to(device), "reward": reward.mean().to(device)},
        )
        return with_forgeries(drawn, batch, drawn) if "critic" in batch.targets else drawn

    def _reward(self, said: Sequence[Sequence[int]], batch: Batch, owner: Tensor) -> Tensor:
        """The r of captions, float32 [P] on the CPU, each of the batch's image `owner` [P]."""
        reward = torch.zeros(len(said))
        if self.cider:
            # closed by <end>, as the references are: a caption that breaks off is not a whole one
            rows = batch.rows[owner].tolist()
            reward += self.config.cider * torch.from_numpy(self.cider([[*words, END] for words in said], rows)).float()
        if self.config.critic:
            with evaluating(self.captioner), autocast(owner.device, self.precision):
                features = self.captioner.features(batch.visuals.content)
                seen = Seen(features, closed(said).to(owner.device), owner)
                score = self.captioner.heads["critic"](seen)["pred"]
            reward += self.config.critic * score.float().sigmoid().cpu()
        return reward


def samples_of(captioner: Captioner, batch: Batch, max_words: int, precision: str) -> Batch:
    """The batch with a sample of the captioner in place of each caption."""
    with evaluating(captioner), autocast(batch.tokens.device, precision):
        regions = captioner.regions(batch.visuals)
        said = sample(captioner.decoder, regions.select(batch.image_of), max_words)
    return replace(batch, tokens=closed([h.tokens for h in said]).to(batch.tokens.device))


def with_forgeries(batch: Batch, people: Batch, drawn: Batch) -> Batch:
    """`batch`, whose critic is shown captions of `people`, those `drawn`, and people's beside the next image.

    These are the three kinds of Dai et al. (ICCV 2017, eq. 3). Where there is but one image there is no next.
    """
    images = len(people.rows)
    kinds = [(people, people.image_of), (drawn, drawn.image_of)]
    if images > 1:
        kinds.append((people, (people.image_of + 1) % images))
    longest = max(kind.tokens.shape[1] for kind, _ in kinds)
    padded = [F.pad(kind.tokens, (0, longest - kind.tokens.shape[1]), value=PAD) for kind, _ in kinds]
    kind = torch.cat([torch.full_like(of, i) for i, (_, of) in enumerate(kinds)])
    targets = {"target_is_real": kind == 0, "sampled": kind == 1, "weight": torch.cat([k.weight for k, _ in kinds])}
    shown = {"tokens": torch.cat(padded), "image_of": torch.cat([of for _, of in kinds])}
    return replace(batch, targets=batch.targets | {"critic": targets}, shown=batch.shown | {"critic": shown})


def closed(captions: Sequence[Sequence[int]]) -> Tensor:
    """Captions between `<start>` and `<end>`, padded: int64 [P, T + 2]."""
    rows = [torch.tensor([START, *words, END]) for words in captions]
    return pad_sequence(rows, batch_first=True, padding_value=PAD)
