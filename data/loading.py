"""From annotated images to batches: several captions per image, each distinct caption once with its multiplicity."""

import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.annotations import AnnotatedImage
from data.errors import UserError
from data.images import read_image
from data.tokenizer import tokenize
from data.transforms import Preprocessing, colour_jitter, to_channels_first, view_of
from data.vocabulary import Vocabulary
from models.pooling import Visual
from models.tokens import PAD
from models.views import turned

SLOTS = 256  # more than there are processes that read
IGNORE = -100  # what the losses do not count as a word
T = TypeVar("T", covariant=True)


class BatchKey(NamedTuple):
    """Which rows make a batch, and in which epoch (what augmentation is seeded with)."""

    epoch: int
    rows: list[int]


def in_order(rows: Sequence[int], batch_size: int) -> list[BatchKey]:
    """Batches of `rows` as they come, the last one perhaps smaller, to be looked at and not learned from."""
    return [BatchKey(0, list(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]


class Readable(Protocol[T]):
    """What is there row by row."""

    def read(self, rows: Sequence[int], epoch: int = 0) -> T:
        """These rows, in this order, each as it is seen in `epoch`."""


class Content(Readable[Tensor], Protocol):
    """Where images come from: the files (uint8 [b, 3, S, S]), or a store of features (float16 [b, h * w, D])."""

    def view(self, row: int, epoch: int) -> int:
        """The turn or flip of the image that is seen in `epoch`."""


class Regions(Protocol):
    """Where the regions of images come from."""

    def read(self, rows: Sequence[int]) -> Tensor:
        """Of each cell the share that each region covers, float16 [b, N, h * w], of the images as they are."""

    def masks(self, row: int) -> np.ndarray:
        """The regions of one image as it is, bool [N, S, S]."""


@dataclass(frozen=True)
class Visuals:
    """What the captioner looks at, row by row: images or features, and their regions, turned alike."""

    content: Content
    regions: Regions | None = None

    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        """These rows, in this order."""
        content = self.content.read(rows, epoch)
        if self.regions is None or not len(content):
            return Visual(content)
        shares = self.regions.read(rows)  # [b, N, h * w]
        side = math.isqrt(shares.shape[-1])  # preprocessed images are square
        grids = shares.unflatten(-1, (side, side))
        views = [turned(grid, self.content.view(row, epoch)) for grid, row in zip(grids, rows, strict=True)]
        return Visual(content, torch.stack(views).flatten(2))

    def masks(self, row: int) -> np.ndarray | None:
        """The regions of the image as it is, bool [N, S, S]; None: the cells are the regions."""
        return None if self.regions is None else self.regions.masks(row)


@dataclass
class Batch:
    """B images with P captions of at most T words (P >= B in training, captions of one image side by side).

    `tokens` [P, T + 1] int64 run from `<start>` to `<end>` and are padded with `<pad>`; `image_of` [P] says which of
    the B images a caption is of; `weight` [P] float32 how often it stands in the annotations; `targets` what each
    head should give; `shown` the captions that a head looks at, whole; `guides` what criteria read beside it, over
    anything of the same name (utils/guides.py).
    """

    visuals: Visual
    rows: Tensor
    tokens: Tensor
    image_of: Tensor
    weight: Tensor
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    guides: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return replace(self, **{f.name: moved(getattr(self, f.name), device) for f in fields(self)})

    @property
    def words(self) -> Tensor:
        """What is to be predicted after each token: int64 [P, T], -100 where there is nothing."""
        target = self.tokens[:, 1:]
        return target.masked_fill(target == PAD, IGNORE)

    @property
    def mask(self) -> Tensor:
        """How often each word to predict counts, float32 [P, T]: as often as its caption, 0 where there is none."""
        return (self.tokens[:, 1:] != PAD) * self.weight[:, None]

    @property
    def word_count(self) -> float:
        """Words to predict, each caption as often as it stands in the annotations."""
        return float(self.mask.sum())

    @property
    def caption_count(self) -> float:
        """Captions, each as often as it stands in the annotations."""
        return float(self.weight.sum())


class Targets(Protocol):
    """What a head should give, by the names that losses read it by: tensors, or lists and mappings of them."""

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Any]:
        """For the captions of `batch` and the images that its rows are."""


def moved(value: Any, device: torch.device) -> Any:
    """`value` with all tensors in it, within lists and mappings as well, on `device`."""
    if isinstance(value, Mapping):
        return {key: moved(inner, device) for key, inner in value.items()}
    if isinstance(value, list):
        return [moved(inner, device) for inner in value]
    return value.to(device) if isinstance(value, Tensor | Visual) else value


class ImageFiles:
    """Reads, preprocesses and, where asked, augments image files; `blank` gives grey images instead (a control)."""

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        augment: bool = False,
        seed: int = 0,
        blank: bool = False,
    ) -> None:
        self.paths = list(paths)
        self.size = preprocessing.size
        self.augment, self.seed, self.blank = augment, seed, blank
        self._resized = preprocessing.resized
        self._jitter = colour_jitter() if augment else None
        self._reading = torch.full((SLOTS,), -1).share_memory_()  # rows, at the ids of the processes that read them

    def read(self, rows: Sequence[int], epoch: int = 0) -> Tensor:
        """Images of the rows, uint8 [b, 3, size, size]; augmentation depends on seed, epoch and row alone."""
        out = torch.full((len(rows), 3, self.size, self.size), 127, dtype=torch.uint8)
        slot = os.getpid() % SLOTS
        for i, row in enumerate(rows):
            if not self.blank:
                self._reading[slot] = row
                image = self._resized(read_image(self.paths[row]))
                if self._jitter:
                    self._jitter.set_random_seed(hash((self.seed, epoch, row)) % 2**32)
                    image = self._jitter(image=image)["image"]
                out[i] = turned(torch.from_numpy(to_channels_first(image)), self.view(row, epoch))
        return out

    def last_read(self, process: int) -> Path | None:
        """The file that a process read last, None where it read none."""
        row = int(self._reading[process % SLOTS])
        return self.paths[row] if row >= 0 else None

    def view(self, row: int, epoch: int) -> int:
        """Which turn or flip of image `row` is seen in `epoch`."""
        return view_of(self.seed, epoch, row) if self.augment else 0


class CaptionBatches(Dataset[Batch]):
    """`batches[key]` is the `Batch` of these rows; the rows' order is that of `images`."""

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        visuals: Readable[Visual],
        vocabulary: Vocabulary,
        max_words: int,
        targets: Mapping[str, Targets] | None = None,
    ) -> None:
        self.images, self.visuals, self.targets = images, visuals, targets or {}
        self.captions = [distinct_captions(image, vocabulary, max_words) for image in images]
        self.rows = [row for row, captions in enumerate(self.captions) if captions]

    @property
    def counts(self) -> tuple[int, int]:
        """(captions, distinct captions of an image)."""
        return sum(sum(c.values()) for c in self.captions), sum(map(len, self.captions))

    def lengths(self) -> np.ndarray:
        """Tokens of the longest caption of each of `rows`."""
        return np.array([max(map(len, self.captions[row])) for row in self.rows])

    def __getitem__(self, key: BatchKey) -> Batch:
        captions = [
            (i, tokens, count) for i, row in enumerate(key.rows) for tokens, count in self.captions[row].items()
        ]
        longest = max(len(tokens) for _, tokens, _ in captions)
        padded = [[*tokens, *[PAD] * (longest - len(tokens))] for _, tokens, _ in captions]
        batch = Batch(
            visuals=self.visuals.read(key.rows, key.epoch),
            rows=torch.tensor(key.rows),
            tokens=torch.tensor(padded),
            image_of=torch.tensor([i for i, _, _ in captions]),
            weight=torch.tensor([float(count) for _, _, count in captions]),
        )
        images = [self.images[row] for row in key.rows]
        return replace(
            batch,
            targets={name: targets.read(images, batch) for name, targets in self.targets.items()},
            # whole: without its last column a batch has <end> of all captions but the longest
            shown={name: {"tokens": batch.tokens} for name in self.targets},
        )

    def epoch(self, epoch: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> list[BatchKey]:
        """Batches of an epoch for one of several processes; a function of its arguments alone, so runs can be resumed.

        Images are shuffled, then sorted by length within windows of 16 batches, so that little is padded; the batches
        are shuffled again. Every process gets the same number of batches; those left over sit out this epoch.

        Raises `UserError` where there are batches, but fewer than processes.
        """
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self.rows))
        lengths = self.lengths()
        window = 16 * batch_size
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        shuffled = [batches[i] for i in rng.permutation(len(batches))]
        if 0 < len(shuffled) < world:
            raise UserError(
                f"train.batch_size {batch_size}: {len(self.rows)} captioned images make {len(shuffled)} batches for "
                f"{world} processes; lower train.batch_size or the number of processes, or train on more images"
            )
        usable = len(shuffled) // world * world
        return [BatchKey(epoch, [self.rows[i] for i in batch]) for batch in shuffled[rank:usable:world]]


def distinct_captions(image: AnnotatedImage, vocabulary: Vocabulary, max_words: int) -> Counter[tuple[int, ...]]:
    """The distinct captions of an image as tokens, with how often each stands there; captions without words drop out.

    RSICD repeats one sentence five times for half of its images: 43,668 captions with words are 17,811 distinct pairs.
    """
    worded = (words for words in map(tokenize, image.captions) if words)
    return Counter(tuple(vocabulary.encode(words, max_words)) for words in worded)


def loader(batches: CaptionBatches, keys: Sequence[BatchKey], workers: int) -> Iterator[Batch]:
    """Yields the batches of `keys` in order, read ahead by `workers` processes (0: in this one).

    `UserError` where a file cannot be read, or where a process died, naming the file that it died on.
    """
    return _read_ahead(batches, keys, workers, batches.visuals)


def visual_loader(visuals: Readable[T], keys: Sequence[BatchKey], workers: int) -> Iterator[T]:
    """Yields what `visuals` reads for `keys`, in order, for a pass without captions; errors as of `loader`."""
    return _read_ahead(_Reader(visuals), keys, workers, visuals)


def _read_ahead(items: Dataset[T], keys: Sequence[BatchKey], workers: int, visuals: object) -> Iterator[T]:
    reading = DataLoader(
        _Guarded(items), sampler=keys, batch_size=None, num_workers=workers, worker_init_fn=leave_to_the_parent
    )
    stream: Any = iter(reading)
    if workers and threading.current_thread() is threading.main_thread():
        # torch's own handler raises an error wherever the program is; here a death is found where its batch is awaited
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for item in stream:
            if isinstance(item, UserError):
                raise item
            yield item
    except (RuntimeError, EOFError, OSError):
        dead = [worker.pid for worker in getattr(stream, "_workers", ()) if worker.join(1) or not worker.is_alive()]
        if not dead:
            raise
        files = getattr(visuals, "content", visuals)
        last = files.last_read(dead[0]) if isinstance(files, ImageFiles) else None
        where = f"; it was reading {last}" if last else ""
        raise UserError(f"a process that reads data died{where}; mend the file, or lower data.workers") from None


def leave_to_the_parent(_: int = 0) -> None:
    """In a process that reads: Ctrl-C, which a terminal sends to all, is for the one that started it, and ends both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Reader(Dataset[T]):
    def __init__(self, visuals: Readable[T]) -> None:
        self.visuals = visuals

    def __getitem__(self, key: BatchKey) -> T:
        return self.visuals.read(key.rows, key.epoch)


class _Guarded(Dataset[T | UserError]):
    """Gives a `UserError` in place of an item: raised in another process it would become a traceback of many lines."""

    def __init__(self, items: Dataset[T]) -> None:
        self.items = items

    def __getitem__(self, key: BatchKey) -> T | UserError:
        try:
            return self.items[key]
        except UserError as error:
            return error
