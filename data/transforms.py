"""From an RGB array to what the encoder sees: one preprocessing for training and inference, and augmentation."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version otherwise
import albumentations as A

from models.views import VIEWS

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


@dataclass(frozen=True)
class Preprocessing:
    """How any image becomes the encoder's input; saved with every checkpoint.

    The image is resized to `size` x `size` pixels (area averaging where it shrinks, `interpolation` where it grows).
    Its values stay uint8: the encoder holds the mean and the standard deviation that its weights want.
    """

    size: int = 224
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 32 <= self.size <= 4096:
            raise ValueError(f"size is {self.size!r}; encoders need 32 to 4096 pixels")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}; known are {', '.join(INTERPOLATIONS)}")

    def transform(self, augment: bool = False) -> A.Compose:
        """`transform(image=[H, W, 3])["image"]` is uint8 [size, size, 3].

        With `augment` a mild change of colour; `set_random_seed` fixes which. Turns and flips are in models/views.py.
        """
        steps: list[Any] = [
            A.Resize(
                self.size,
                self.size,
                interpolation=INTERPOLATIONS[self.interpolation],
                area_for_downscale="image",
            )
        ]
        if augment:
            steps.append(
                A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(0, 0), p=0.8)
            )
        return A.Compose(steps)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a checkpoint's metadata; `Preprocessing(**fields)` is the way back."""
        return asdict(self)


def view_of(seed: int, epoch: int, row: int, views: int = VIEWS) -> int:
    """The view in which image `row` is seen in `epoch`: even over 0 to `views` - 1, and the same in every process."""
    return hash((seed, epoch, row)) % views


def to_channels_first(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] as a contiguous [3, H, W]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))
