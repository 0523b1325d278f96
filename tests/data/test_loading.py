import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import dataloader

from data.annotations import AnnotatedImage
from data.errors import UserError
from data.loading import IGNORE, BatchKey, CaptionBatches, ImageFiles, distinct_captions, loader, visual_loader
from data.transforms import Preprocessing
from data.vocabulary import Vocabulary
from models.pooling import Visual
from models.tokens import END, START

WORDS = ["a", "plane", "red", "two", "boats"]
VOCABULARY = Vocabulary.build([WORDS], 1)


class Numbers:
    """Visual input that says which row and epoch it is of."""

    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        return Visual(torch.tensor([[[float(row), float(epoch)]] for row in rows]))


def annotated(*captions: str, imgid: int = 0) -> AnnotatedImage:
    return AnnotatedImage(imgid, f"{imgid}.png", "train", captions)


def batches(count: int) -> CaptionBatches:
    images = [annotated(*["a plane " * (1 + i % 5)] * 3, "two boats", imgid=i) for i in range(count)]
    return CaptionBatches(images, Numbers(), VOCABULARY, max_words=30)


def test_a_repeated_caption_counts_instead_of_standing_twice() -> None:
    found = distinct_captions(annotated("A red plane.", "a red plane", "two boats !", " . "), VOCABULARY, 30)
    assert sorted(found.values()) == [1, 2]
    assert sum(found.values()) == 3  # the one without a word is gone


def test_a_batch() -> None:
    images = [annotated("a plane", "a plane", "two red boats"), annotated(" "), annotated("boats", imgid=1)]
    data = CaptionBatches(images, Numbers(), VOCABULARY, max_words=30)
    assert data.rows == [0, 2]
    assert data.counts == (4, 3)
    batch = data[BatchKey(3, [2, 0])]
    assert batch.visuals.content[:, 0].tolist() == [[2, 3], [0, 3]]
    assert batch.image_of.tolist() == [0, 1, 1]
    assert batch.weight.tolist() == [1, 2, 1]
    words = batch.words
    assert batch.tokens[:, 0].tolist() == [START] * 3
    assert words[0].tolist()[1:] == [END, IGNORE, IGNORE]
    assert VOCABULARY.decode(words[2].tolist()) == ["two", "red", "boats"]
    assert batch.word_count == 2 * 1 + 3 * 2 + 4  # the end counts as a word
    assert batch.caption_count == 4


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_shows_every_image_once_over_all_processes(world: int) -> None:
    data = batches(60)
    parts = [data.epoch(4, 5, seed=0, rank=rank, world=world) for rank in range(world)]
    rows = [row for part in parts for key in part for row in key.rows]
    assert sorted(rows) == list(range(60))
    assert len({len(part) for part in parts}) == 1
    assert parts[0] == data.epoch(4, 5, seed=0, rank=0, world=world)
    assert parts[0] != data.epoch(5, 5, seed=0, rank=0, world=world)
    assert parts[0] != data.epoch(4, 5, seed=1, rank=0, world=world)


def test_no_process_goes_without_a_batch() -> None:
    data = batches(10)
    assert [len(data.epoch(0, 5, seed=0, rank=rank, world=2)) for rank in range(2)] == [1, 1]
    for rank in range(3):  # whichever it is, so that none waits for the others
        with pytest.raises(UserError, match=r"2 batches for 3 processes; lower train\.batch_size or the number of"):
            data.epoch(0, 5, seed=0, rank=rank, world=3)


def test_batches_hold_captions_of_like_length() -> None:
    data = batches(640)
    padded = real = 0
    for key in data.epoch(0, 16, seed=0):
        lengths = [max(map(len, data.captions[row])) for row in key.rows]
        padded += max(lengths) * len(lengths)
        real += sum(lengths)
    assert real / padded > 0.9  # shuffled without windows it is 0.66


def test_loader_keeps_the_order_in_workers_and_without() -> None:
    data = batches(12)
    keys = data.epoch(0, 4, seed=0)
    for workers in (0, 2):
        found = [batch.rows.tolist() for batch in loader(data, keys, workers)]
        assert found == [key.rows for key in keys]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_image_files(files: list[Path]) -> None:
    plain = ImageFiles(files, Preprocessing(32))
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(plain.read([2])[0].permute(1, 2, 0).numpy(), pixels)
    assert plain.read([]).shape == (0, 3, 32, 32)
    blank = ImageFiles(files, Preprocessing(32), blank=True).read([0, 1])
    assert blank.unique().tolist() == [127]


def test_augmentation_depends_on_seed_epoch_and_row_alone(files: list[Path]) -> None:
    one = ImageFiles(files, Preprocessing(32), augment=True, seed=1)
    two = ImageFiles(files, Preprocessing(32), augment=True, seed=1)
    two.read([0, 1])
    assert torch.equal(one.read([2, 0], epoch=3)[0], two.read([2], epoch=3)[0])
    # a fifth of the draws leave the colours as they are, and then there are eight: few of ten coincide
    assert len({tuple(one.read([2], epoch=epoch).flatten().tolist()) for epoch in range(10)}) > 6
    other_seed = ImageFiles(files, Preprocessing(32), augment=True, seed=9)
    assert not torch.equal(one.read([0, 1, 2]), other_seed.read([0, 1, 2]))


def test_errors_of_other_processes_are_one_line_and_name_the_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    paths[2].write_bytes(b"")
    keys = [BatchKey(0, [i]) for i in range(4)]
    with pytest.raises(UserError, match=r"2\.png") as caught:
        list(visual_loader(ImageFiles(paths, Preprocessing(32)), keys, workers=1))
    assert "\n" not in str(caught.value)


class Deadly(ImageFiles):
    """Kills the process that reads its third image, as the kernel does where memory is short."""

    def read(self, rows: Sequence[int], epoch: int = 0) -> torch.Tensor:
        images = super().read(rows, epoch)
        if 2 in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return images


def test_a_process_that_dies_is_reported_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # seconds after which torch looks whether it lives
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match=r"died; it was reading .*2\.png"):
        list(visual_loader(Deadly(paths, Preprocessing(32)), [BatchKey(0, [i]) for i in range(4)], workers=1))


class Interrupted(ImageFiles):
    """Ctrl-C in a terminal reaches the process that reads, too."""

    def read(self, rows: Sequence[int], epoch: int = 0) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return super().read(rows, epoch)


def test_a_process_that_reads_leaves_ctrl_c_to_the_one_that_started_it(files: list[Path]) -> None:
    keys = [BatchKey(0, [i]) for i in range(3)]
    assert len(list(visual_loader(Interrupted(files, Preprocessing(32)), keys, workers=1))) == 3
