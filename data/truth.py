"""What heads should give for scenes that know their boxes and masks, and for pictures: targets at the heads' sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from data.annotations import AnnotatedImage
from data.datasets import CaptionDataset
from data.errors import UserError
from data.images import read_image
from data.loading import Batch
from data.scenery.classes import STUFF, THINGS
from data.synthetic import Truth, boundaries, read_truth
from data.transforms import to_channels_first

Truths = Mapping[str, Truth]


def truth_of(dataset: CaptionDataset, head: str) -> Truths:
    """The truth beside a data set's pictures, by file name; `UserError` where there is none for `head`."""
    root = dataset.image_root.parent
    if not (root / "truth.json").exists():
        raise UserError(
            f"{root / 'truth.json'}: not there, and head: {head} learns from it; only synthetic scenes know their "
            f"boxes and masks: train with --dataset synthetic, or take the head out of model.losses"
        )
    truth = read_truth(root)
    if unknown := next((image.filename for image in dataset.images if image.filename not in truth), None):
        raise UserError(f"{root / 'truth.json'}: holds nothing of {unknown}; delete the folder to make it anew")
    return truth


class Masks:
    """The class of each of side x side places: the pixel in the middle of each, out of the scene's mask.

    `target` and `masks` int64 [B, side, side], the same under the names of two families of losses; `bd_gt` uint8
    [B, side, side], 1 where another class lies beside (`boundaries`).
    """

    gives = ("target", "masks", "bd_gt")

    def __init__(self, truth: Truths, side: int) -> None:
        self.truth, self.side = truth, side

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Tensor]:
        """The masks of these images."""
        masks = [middles(self.truth[image.filename].mask, self.side) for image in images]
        target = torch.from_numpy(np.stack(masks).astype(np.int64))
        edges = torch.from_numpy(np.stack([boundaries(mask) for mask in masks]))
        return {"target": target, "masks": target, "bd_gt": edges}


def middles(mask: np.ndarray, side: int) -> np.ndarray:
    """The pixels [side, side] in the middles of side x side equal parts of a mask [H, W].

    >>> middles(np.arange(16).reshape(4, 4), 2).tolist()
    [[5, 7], [13, 15]]
    """
    rows, columns = ((2 * np.arange(side) + 1) * length // (2 * side) for length in mask.shape)
    return mask[rows[:, None], columns]


class Boxes:
    """Every thing of a scene: `gt`, a dict of `boxes` float32 [n, 4] xyxy and `labels` int64 [n] an image.

    Boxes are in pixels of an image of `img_size`, as the encoder sees it; labels count THINGS, `num_classes` in all.
    """

    gives = ("gt", "img_size", "num_classes")

    def __init__(self, truth: Truths, size: int) -> None:
        self.truth, self.size = truth, size
        self.scale = size / scene_size(truth)

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Any]:
        """The boxes of these images."""
        facts = [self.truth[image.filename] for image in images]
        gt = [
            {
                "boxes": torch.from_numpy(f.boxes * np.float32(self.scale)),
                "labels": torch.from_numpy(f.labels) - len(STUFF),
            }
            for f in facts
        ]
        return {"gt": gt, "img_size": self.size, "num_classes": len(THINGS)}


class Subject:
    """The largest thing of a scene, or the whole scene where it holds none: `boxes` float32 [B, 4] xyxy px."""

    gives = ("boxes",)

    def __init__(self, truth: Truths, size: int) -> None:
        self.truth, self.size = truth, size
        self.scale = size / scene_size(truth)

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Tensor]:
        """The boxes of these images."""
        return {"boxes": torch.stack([self._box(self.truth[image.filename].boxes) for image in images])}

    def _box(self, boxes: np.ndarray) -> Tensor:
        if not len(boxes):
            return torch.tensor([0.0, 0.0, self.size, self.size])
        largest = (boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()
        return self.scale * torch.from_numpy(boxes[largest])


class Pictures:
    """The images themselves, `images` float32 [B, 3, side, side] in 0..1; any data set has them."""

    gives = ("images",)

    def __init__(self, dataset: CaptionDataset, side: int) -> None:
        self.dataset, self.side = dataset, side

    def read(self, images: Sequence[AnnotatedImage], batch: Batch) -> dict[str, Tensor]:
        """These images, each pixel the mean of what it covers."""
        shape, files = (self.side, self.side), map(self.dataset.path, images)
        small = [cv2.resize(read_image(file), shape, interpolation=cv2.INTER_AREA) for file in files]
        return {"images": torch.from_numpy(np.stack([to_channels_first(image) for image in small])) / 255}


def scene_size(truth: Truths) -> int:
    """The side of the scenes, px: all of a data set have one."""
    return len(next(iter(truth.values())).mask)
