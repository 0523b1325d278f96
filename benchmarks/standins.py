"""Stand-ins of RSICD's sizes, and training on them: ours, and as it is usually written."""

import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import cycle
from math import isqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.utils.rnn import pad_sequence

from benchmarks import yardstick
from data.annotations import AnnotatedImage
from data.features import FeatureStore, build_store
from data.loading import Batch, CaptionBatches, ImageFiles, Visuals, in_order, loader
from data.synthetic import generate_scene
from data.vocabulary import SPECIALS, Vocabulary
from loss import build_loss
from models.captioner import Captioner
from models.decoder import Decoder
from models.looking import LookAfter, LookBefore
from models.tokens import PAD
from train import train_step
from utils.checkpoint import SHIPPED, load_checkpoint
from utils.config import Config, RewardConfig
from utils.devices import best_device, choose_precision, tune_memory
from utils.guides import Rewards
from utils.sources import encode

BATCH, CELLS, CHANNELS, WIDTH, WORDS = 64, 49, 1280, 512, 1350
# of RSICD's train split: images with 1 to 5 distinct captions, and distinct captions of 3 to 22 words
DISTINCT = (4529, 1403, 1296, 942, 564)
LENGTHS = (16, 75, 148, 421, 1621, 2118, 2422, 2321, 2212, 1781, 1325, 975, 651, 591, 395, 266, 138, 106, 87, 53)
DEVICE = best_device()
PRECISION = choose_precision("auto", DEVICE)
T = TypeVar("T")


@cache
def scratch() -> TemporaryDirectory:
    """A folder until the program ends."""
    return TemporaryDirectory(prefix="speed-")


def settled(call: Callable[[], T]) -> T:
    """What a call gives, once the device has done all that it was told."""
    result = call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result


def folder() -> Path:
    return Path(scratch().name)


@cache
def pictures(count: int) -> list[Path]:
    """JPEGs of 224 x 224 pixels."""
    paths = []
    for i in range(count):
        paths.append(folder() / f"{i}.jpg")
        Image.fromarray(generate_scene(0, i).image).save(paths[-1], quality=95)
    return paths


def store(images: int) -> FeatureStore:
    """Features of so many images, which are random numbers."""
    block = torch.rand(BATCH, 1, CELLS, CHANNELS).half()
    return _stored(f"{images}.h5", (block[: min(BATCH, images - start)] for start in range(0, images, BATCH)), images)


def seen(images: int) -> Tensor:
    """What the first encoder that ships gives of so many synthetic scenes, as if it were CELLS x CHANNELS.

    Cells are averaged where it has more, channels stand there again and again where it has fewer.
    """
    start = load_checkpoint(SHIPPED[0])
    encoder = start.captioner.encoder.to(DEVICE)
    files = ImageFiles(pictures(images), start.preprocessing)
    looks = (files.read(key.rows) for key in in_order(range(images), BATCH))
    features = torch.cat([encode(encoder, look, PRECISION) for look in looks])
    side = isqrt(features.shape[1])
    grid = features.transpose(1, 2).unflatten(2, (side, side)).float()
    cells = adaptive_avg_pool2d(grid, isqrt(CELLS)).flatten(2).transpose(1, 2).to(features.dtype)
    return cells[..., torch.arange(CHANNELS) % cells.shape[-1]]


def speaking() -> tuple[Decoder, Vocabulary]:
    """The first decoder that ships, for what `seen` gives, and its words."""
    start = load_checkpoint(SHIPPED[0])
    state = start.captioner.decoder.state_dict()
    place = torch.arange(CHANNELS) % len(state["region.0.weight"])
    for name in ("region.0.weight", "region.0.bias"):
        state[name] = state[name][place]
    state["region.1.weight"] = state["region.1.weight"][:, place] / place.bincount()[place]
    decoder = Decoder(len(start.vocabulary), CHANNELS, WIDTH, start.captioner.decoder.dropout.p, "dot")
    decoder.load_state_dict(state)
    return decoder.to(DEVICE), start.vocabulary


def seen_store(images: int) -> FeatureStore:
    """A store of what `seen` gives."""
    return _stored(f"seen-{images}.h5", [seen(images)[:, None]], images)


def _stored(name: str, blocks: Iterable[Tensor], images: int) -> FeatureStore:
    path = folder() / name
    if not path.exists():
        build_store(path, blocks, images, lambda features: features, {})
    return FeatureStore(path)


def captions(images: int, vocabulary: Vocabulary) -> list[AnnotatedImage]:
    """Five captions an image, which repeat as RSICD's do; words as frequent as natural ones (Zipf)."""
    dice = random.Random(0)
    words = vocabulary.words[len(SPECIALS) :]
    weights = np.cumsum([1 / (rank + 3) for rank in range(len(words))]).tolist()
    annotated = []
    for i in range(images):
        distinct = dice.choices(range(1, 6), DISTINCT)[0]
        lengths = dice.choices(range(3, 3 + len(LENGTHS)), LENGTHS, k=distinct)
        said = [" ".join(dice.choices(words, cum_weights=weights, k=length)) for length in lengths]
        annotated.append(AnnotatedImage(i, f"{i}.jpg", "train", tuple(said[j % distinct] for j in range(5))))
    return annotated


class Training:
    """A decoder and what its steps need: an untrained one with this attention, or the first that ships."""

    def __init__(self, attention: str | None, features: FeatureStore, reward: RewardConfig | None = None) -> None:
        if attention is None:
            decoder, vocabulary = speaking()
        else:
            vocabulary = Vocabulary([*SPECIALS, *(f"w{i}" for i in range(WORDS - len(SPECIALS)))])
            decoder = Decoder(len(vocabulary), CHANNELS, WIDTH, 0.5, attention)
        self.store = features
        annotated = captions(features.shape[0], vocabulary)
        self.batches = CaptionBatches(annotated, Visuals(self.store), vocabulary, max_words=30)
        config = Config().model_dump()
        if reward:
            config["model"]["losses"] = [{"criterion": "cross_entropy"}]
        self.criteria = build_loss(config, class_dim=-1)
        self.captioner = Captioner(torch.nn.Identity(), decoder).to(DEVICE)  # type: ignore[arg-type]
        lr = 1e-3 if attention else 1e-6  # stand-ins would teach the one that ships to say no end
        groups = list(self.captioner.parameter_groups(lr, lr / 10, 0.01))
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.accelerator = Accelerator(
            cpu=DEVICE.type == "cpu", mixed_precision="no" if PRECISION == "fp32" else PRECISION
        )
        self.model, self.optimizer = self.accelerator.prepare(self.captioner, self.optimizer)
        self.model.train()
        self.guide = Rewards(self.captioner, self.batches, reward, 30, PRECISION) if reward else None
        self.stream = self._stream()

    def _stream(self) -> Iterator[Batch]:
        for epoch in range(10**6):
            yield from loader(self.batches, self.batches.epoch(epoch, BATCH, 0), workers=0)

    def step(self) -> float:
        """One step; returns the captions that it stands for."""
        batch = next(self.stream).to(DEVICE)
        guided = self.guide(batch) if self.guide else batch
        train_step(self.model, self.criteria, self.optimizer, [guided], self.accelerator, 5.0)
        return batch.caption_count


class UsualTraining:
    """The same with the yardstick: 32 captions a step, each with its image's features, padded to the longest."""

    def __init__(self, ours: Training) -> None:
        self.model = yardstick.Yardstick.of(Training("additive", ours.store).captioner.decoder).to(DEVICE).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        pairs = [
            (row, list(tokens))
            for row in ours.batches.rows
            for tokens in ours.batches.captions[row].elements()  # as often as it stands there
        ]
        random.Random(0).shuffle(pairs)
        self.chunks = cycle(pairs[i : i + yardstick.BATCH] for i in range(0, len(pairs), yardstick.BATCH))
        self.store = ours.store

    def step(self) -> float:
        chunk = next(self.chunks)
        features = torch.cat([self.store.read([row]).float() for row, _ in chunk])
        tokens = pad_sequence([torch.tensor(t) for _, t in chunk], batch_first=True, padding_value=PAD)
        yardstick.train_step(self.model, self.optimizer, features.to(DEVICE), tokens.to(DEVICE))
        return len(chunk)


@torch.no_grad()
def looking_before(decoder: Decoder) -> Decoder:
    """A decoder with additive attention that speaks much as one does that looks after each word: no command trains one.

    What the two have in common is that decoder's; the LSTM hears nothing of where this one looks.
    """
    looking, width = decoder.looking, decoder.embedding.weight.shape[1]
    assert isinstance(looking, LookAfter)
    torch.manual_seed(0)
    other = Decoder(len(decoder.embedding.weight), CHANNELS, width, decoder.dropout.p, "additive").eval()
    looks = other.looking
    assert isinstance(looks, LookBefore)
    shared = {name: value for name, value in decoder.state_dict().items() if not name.startswith("looking.")}
    other.load_state_dict(shared, strict=False)
    looks.from_hidden.weight.copy_(torch.cat([looking.query.weight, looking.from_hidden.weight]))
    looks.from_hidden.bias.zero_()[: 2 * width] = looking.query.bias
    looks.from_context.weight.zero_()
    return other.to(decoder.embedding.weight.device)


def peak_memory(path: str, steps: int = 10) -> None:
    """Train on a store's images, as train.py does, and print the process's peak memory in MB (Linux)."""
    tune_memory()
    ours = Training("dot", FeatureStore(Path(path)))
    for _ in range(steps):
        ours.step()
    # of this program alone: ru_maxrss would begin with that of the one that started it
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
