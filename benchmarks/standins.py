"""Stand-ins of RSICD's sizes, and training on them: ours, and as it is usually written."""

import random
from collections.abc import Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from benchmarks import yardstick
from data.annotations import AnnotatedImage
from data.features import FeatureStore, build_store
from data.loading import Batch, CaptionBatches, Visuals, loader
from data.synthetic import generate_scene
from data.vocabulary import SPECIALS, Vocabulary
from loss import build_loss
from models.captioner import Captioner
from models.decoder import Decoder
from models.tokens import PAD
from train import train_step
from utils.config import Config, RewardConfig
from utils.devices import choose_precision
from utils.guides import Rewards

BATCH, CELLS, CHANNELS, WIDTH, WORDS = 64, 49, 1280, 512, 1350
# of RSICD's train split: images with 1 to 5 distinct captions, and distinct captions of 3 to 22 words
DISTINCT = (4529, 1403, 1296, 942, 564)
LENGTHS = (16, 75, 148, 421, 1621, 2118, 2422, 2321, 2212, 1781, 1325, 975, 651, 591, 395, 266, 138, 106, 87, 53)
PRECISION = choose_precision("auto", torch.device("cpu"))


@cache
def scratch() -> TemporaryDirectory:
    """A folder until the program ends."""
    return TemporaryDirectory(prefix="speed-")


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
    path = folder() / f"{images}.h5"
    if not path.exists():
        block = torch.rand(BATCH, 1, CELLS, CHANNELS).half()
        sizes = (min(BATCH, images - start) for start in range(0, images, BATCH))
        build_store(path, (block[:size] for size in sizes), images, lambda features: features, {})
    return FeatureStore(path)


def captions(images: int) -> tuple[list[AnnotatedImage], Vocabulary]:
    """Five captions an image, which repeat as RSICD's do; words as frequent as natural ones (Zipf)."""
    dice = random.Random(0)
    words = [f"w{i}" for i in range(WORDS - len(SPECIALS))]
    weights = np.cumsum([1 / (rank + 3) for rank in range(len(words))]).tolist()
    annotated = []
    for i in range(images):
        distinct = dice.choices(range(1, 6), DISTINCT)[0]
        lengths = dice.choices(range(3, 3 + len(LENGTHS)), LENGTHS, k=distinct)
        said = [" ".join(dice.choices(words, cum_weights=weights, k=length)) for length in lengths]
        annotated.append(AnnotatedImage(i, f"{i}.jpg", "train", tuple(said[j % distinct] for j in range(5))))
    return annotated, Vocabulary([*SPECIALS, *words])


class Training:
    """A decoder and what its steps need."""

    def __init__(self, attention: str, features: FeatureStore, reward: bool = False) -> None:
        annotated, vocabulary = captions(features.shape[0])
        self.store = features
        self.batches = CaptionBatches(annotated, Visuals(self.store), vocabulary, max_words=30)
        config = Config().model_dump()
        if reward:
            config["model"]["losses"] = [{"criterion": "cross_entropy"}]
        self.criteria = build_loss(config, class_dim=-1)
        decoder = Decoder(len(vocabulary), CHANNELS, WIDTH, 0.5, attention)
        self.captioner = Captioner(torch.nn.Identity(), decoder)  # type: ignore[arg-type]
        groups = list(self.captioner.parameter_groups(1e-3, 1e-4, 0.01))
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.accelerator = Accelerator(cpu=True, mixed_precision="no" if PRECISION == "fp32" else PRECISION)
        self.model, self.optimizer = self.accelerator.prepare(self.captioner, self.optimizer)
        self.model.train()
        self.guide = Rewards(self.captioner, self.batches, RewardConfig(), 30, PRECISION) if reward else None
        self.stream = self._stream()

    def _stream(self) -> Iterator[Batch]:
        for epoch in range(10**6):
            yield from loader(self.batches, self.batches.epoch(epoch, BATCH, 0), workers=0)

    def step(self) -> float:
        """One step; returns the captions that it stands for."""
        batch = next(self.stream)
        guided = self.guide(batch) if self.guide else batch
        train_step(self.model, self.criteria, self.optimizer, [guided], self.accelerator, 5.0)
        return batch.caption_count


class UsualTraining:
    """The same with the yardstick: 32 captions a step, each with its image's features, padded to the longest."""

    def __init__(self, ours: Training) -> None:
        self.model = yardstick.Yardstick.of(Training("additive", ours.store).captioner.decoder).train()
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
        yardstick.train_step(self.model, self.optimizer, features, tokens)
        return len(chunk)


def peak_memory(path: str, steps: int = 10) -> None:
    """Train on a store's images and print the process's peak memory in MB (Linux)."""
    ours = Training("dot", FeatureStore(Path(path)))
    for _ in range(steps):
        ours.step()
    # of this program alone: ru_maxrss would begin with that of the one that started it
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
