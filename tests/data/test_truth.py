"""Targets against the scenes that they are of, looked at pixel by pixel."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import CaptionDataset, load_dataset
from data.errors import UserError
from data.loading import Batch
from data.pairs import Pairs
from data.scenery.classes import CLASSES, THINGS
from data.synthetic import boundaries, read_truth
from data.truth import Boxes, Masks, Pictures, Subject, truth_of
from models.pooling import Visual

NOTHING = torch.zeros(0)


def batch(image_of: list[int], weight: list[float]) -> Batch:
    return Batch(Visual(NOTHING), NOTHING, NOTHING, torch.tensor(image_of), torch.tensor(weight))


@pytest.fixture(scope="module")
def dataset(scenes: Path) -> CaptionDataset:
    return load_dataset("synthetic", scenes)


def test_masks_hold_the_middle_of_each_place(dataset: CaptionDataset) -> None:
    images = dataset.split("val")[:3]
    found = Masks(truth_of(dataset, "segmentation"), side=12).read(images, batch([], []))
    assert found["target"].shape == (3, 12, 12) and found["target"].dtype == torch.int64
    for image, target, edges in zip(images, found["target"], found["bd_gt"], strict=True):
        mask = np.asarray(Image.open(dataset.image_root.parent / "masks" / image.filename))
        expected = [[mask[8 * row + 4, 8 * column + 4] for column in range(12)] for row in range(12)]
        assert target.tolist() == np.array(expected).tolist()
        assert edges.tolist() == boundaries(np.array(expected)).tolist()
    assert torch.equal(found["masks"], found["target"])


def test_boxes_grow_with_the_image_and_lie_about_their_class(dataset: CaptionDataset) -> None:
    images = dataset.split("train")
    truth = truth_of(dataset, "yolox")
    found = Boxes(truth, size=192).read(images, batch([], []))  # scenes have 96 pixels
    assert (found["img_size"], found["num_classes"]) == (192, len(THINGS))
    seen = 0
    for image, gt in zip(images, found["gt"], strict=True):
        mask = truth[image.filename].mask
        for (x1, y1, x2, y2), label in zip((gt["boxes"] / 2).int().tolist(), gt["labels"].tolist(), strict=True):
            assert (mask[y1:y2, x1:x2] == CLASSES.index(list(THINGS)[label])).any()
            seen += 1
    assert seen > 100


def test_the_subject_is_the_largest_thing_or_the_whole_scene(dataset: CaptionDataset) -> None:
    images = dataset.split("train")
    truth = read_truth(dataset.image_root.parent)
    boxes = Subject(truth, size=96).read(images, batch([], []))["boxes"]
    without = 0
    for image, box in zip(images, boxes.tolist(), strict=True):
        areas = {tuple(b): (b[2] - b[0]) * (b[3] - b[1]) for b in truth[image.filename].boxes.tolist()}
        without += not areas
        assert tuple(box) == (max(areas, key=lambda b: areas[b]) if areas else (0, 0, 96, 96))
    assert 0 < without < len(images)


def test_pictures_are_means_of_what_their_pixels_cover(dataset: CaptionDataset) -> None:
    images = dataset.split("val")[:2]
    found = Pictures(dataset, side=24).read(images, batch([], []))["images"]
    for image, small in zip(images, found, strict=True):
        pixels = np.asarray(Image.open(dataset.path(image)), np.float64).reshape(24, 4, 24, 4, 3).mean((1, 3)) / 255
        # rounded to 8 bits
        np.testing.assert_allclose(small.permute(1, 2, 0).numpy(), pixels, atol=0.51 / 255)


def test_pairs_name_the_image_of_each_caption(dataset: CaptionDataset) -> None:
    images = dataset.split("val")[:3]
    found = Pairs().read(images, batch([0, 0, 2], [3.0, 2.0, 5.0]))
    assert found["labels"].tolist() == [images[0].imgid, images[0].imgid, images[2].imgid]
    assert found["weight"].tolist() == [3.0, 2.0, 5.0]


def test_truth_of_other_pictures_is_refused(dataset: CaptionDataset, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text((dataset.image_root.parent / "truth.json").read_text())
    strange = replace(dataset.images[0], filename="elsewhere.png")
    with pytest.raises(UserError, match=r"truth\.json: holds nothing of elsewhere\.png"):
        truth_of(replace(dataset, image_root=tmp_path / "RSICD_images", images=(strange,)), "yolox")
